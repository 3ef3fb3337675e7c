"""`python -m bench.published`: write the tables of low precision, their chart and those of the documentation anew.

Nothing is measured: all is made from the JSON files in `bench/results`.
"""

import json
import pathlib

from bench import errors, precision_report

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "howto" / "weight-types.md"


def stored(name):
    """Return the path and the contents of the one JSON file with results of this name."""
    (path,) = RESULTS.glob(f"*-{name}.json")
    return path, json.loads(path.read_text())


def texts():
    """Return the path of each file with tables -> its text."""
    found, page = {}, PAGE.read_text()
    for module, name in ((precision_report, "precision"), (errors, "errors")):
        path, results = stored(name)
        found[path.with_suffix(".md")] = module.markdown(results)
        page = with_table(page, module.summary(results))
    return found | {PAGE: page}


def with_table(page, table):
    """Return a page in which a table takes the place of the one whose first column has the same title.

    Raises ValueError if there is none.
    """
    lines, title = page.split("\n"), _title(table[0])
    begins = [i for i, line in enumerate(lines) if _title(line) == title]
    if not begins:
        raise ValueError(f"the page has no table that begins with {title!r}")
    end = next((i for i in range(begins[0], len(lines)) if not lines[i].startswith("|")), len(lines))
    return "\n".join(lines[: begins[0]] + list(table) + lines[end:])


def _title(line):
    return line.split("|")[1].strip() if line.startswith("|") else None


def main():
    """Write all files."""
    from bench.plot import draw_precision

    for path, text in texts().items():
        path.write_text(text)
    path, results = stored("precision")
    draw_precision(results, path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
