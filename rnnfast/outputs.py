"""What a call gives back."""


class Outputs(dict):
    """Output name -> ndarray, in the graph's order; names that are identifiers are attributes too."""
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no output {name!r}, there are {list(self)}") from None
