"""Which inputs of a model are states, and which outputs they come back as: names say it, or the caller does.

An input and an output pair if their words are the same, apart from the words that say which side they are on
(`h_in` and `h_out`, `state` and `new_state`, `conv_cache` and `conv_cache_out`) and apart from an ending (`h0` and
`hn`, `c` and `cn`, `hidden_1` and `hidden_2`). The two of a pair always have the same type and shapes that fit. That
shapes fit makes no pair: a speaker may go in and an embedding of the same shape come out.
"""

import collections.abc
import re

from rnnfast.errors import InputError, InputTypeError
from rnnfast.streaming.state_flow import idle_state

INPUT_WORDS = {"in", "input", "init", "initial", "prev", "previous", "past", "old", "last"}
OUTPUT_WORDS = {"out", "output", "new", "next", "cur", "current", "updated", "present", "final", "n"}
# Endings of the last word: (the input's, the output's).
ENDINGS = (("", ""), ("", "n"), ("0", "n"), ("0", ""), ("x", "y"))


def find_state_pairs(model, given=None):
    """{state input: state output} of a model, in the order of its inputs.

    Args:
        model: The Model.
        given: The caller's pairs, which are checked and returned in that order; None to find them.

    Raises:
        InputError: The pairs are not clear, or the caller's do not fit.
        InputTypeError: The caller's pairs are no mapping.
    """
    if given is not None:
        return _check_given(model, given)
    pairs = named_pairs(model)
    if not pairs:
        raise InputError(f"{model.source.label}: which inputs are states is not clear: {_candidates(model)}")
    idle = idle_state(model.folded, pairs)
    if idle is not None:
        name, why = idle
        others = {i: o for i, o in pairs.items() if i != name} or pairs
        raise InputError(
            f"{model.source.label}: input {name!r} and output {pairs[name]!r} have the names of a state, but {why}; "
            f"give it when the stream is opened, stream({name}=...), or say which are states: stream(states={others})"
        )
    return pairs


def named_pairs(model):
    """{state input: state output} of a model whose names pair, in the order of its inputs."""
    inputs, outputs = _required(model), list(model.outputs)
    found = _by_names(inputs, outputs, _bases) or _by_names(inputs, outputs, _unnumbered)
    if found and (len(found) == len(inputs) or len(found) == len(outputs)):
        found = [pair for pair in found if pair != (inputs[0].name, outputs[0].name)]
    return dict(found)


def _required(model):
    """The inputs that every call gives."""
    required = set(model.required_inputs)
    return [v for v in model.inputs if v.name in required]


def _by_names(inputs, outputs, bases):
    """(input, output) names that pair by name, without those that have several partners."""
    partners = [
        (i.name, o.name)
        for i in inputs
        for o in outputs
        if types_match(i.type, o.type) and _same(bases(i.name, INPUT_WORDS), bases(o.name, OUTPUT_WORDS))
    ]
    return _unique(partners)


def _unique(partners):
    """The pairs whose input and output are in no other pair."""
    return [
        (i, o)
        for i, o in partners
        if sum(i == other for other, _ in partners) == 1 and sum(o == other for _, other in partners) == 1
    ]


def _bases(name, sides):
    """A name's words, joined: all of them, and without those that say on which side it is."""
    words = re.findall(r"[A-Z]?[a-z]+\d*|[A-Z]+(?![a-z])\d*|\d+", name)
    words = [word.lower() for word in words]
    rest = [word for word in words if word not in sides]
    return {"_".join(words), "_".join(rest)} if rest else set()


def _unnumbered(name, sides):
    """The results of `_bases` without a number at the end."""
    return {
        base
        for base in (re.sub(r"_?\d+$", "", base) for base in _bases(name, sides))
        if base and base not in INPUT_WORDS | OUTPUT_WORDS
    }


def _same(of_input, of_output):
    """Return whether a base of the input and one of the output are the same, apart from an ending."""
    return any(
        i.endswith(before) and (stem := i[: len(i) - len(before)]) and stem + after == o
        for i in of_input
        for o in of_output
        for before, after in ENDINGS
    )


def types_match(a, b):
    """Return whether one value can be of both Types."""
    if a.kind != "tensor" or b.kind != "tensor" or a.dtype != b.dtype:
        return False
    if a.shape is None or b.shape is None:
        return True
    return len(a.shape) == len(b.shape) and all(
        n == m for n, m in zip(a.shape, b.shape) if type(n) is int and type(m) is int
    )


def _candidates(model):
    """For the error message: which outputs each input could come back as, and what to write then."""
    inputs, outputs = _required(model), model.outputs
    partners = {i.name: [o.name for o in outputs if types_match(i.type, o.type)] for i in inputs}
    partners = {name: fitting for name, fitting in partners.items() if fitting}
    if not partners:
        return "no output has the type and shape of an input; states={} says that there is none"
    fits = ", ".join(f"{name!r} fits {' or '.join(map(repr, fitting))}" for name, fitting in partners.items())
    # The first input is mostly the frame, and the first output the result.
    name = [*partners][-1]
    example = {name: partners[name][-1]} if name != inputs[0].name else {"input": "output"}
    return (
        f"no names pair an input with an output, and shapes alone make no state; {fits}; "
        f"name the pairs if there are states, stream(states={example}), and give states={{}} if there are none"
    )


def _check_given(model, given):
    """The caller's pairs in the order of the inputs, or an error."""
    label = model.source.label
    if not isinstance(given, collections.abc.Mapping):
        raise InputTypeError(f"{label}: states is {type(given).__name__}, expected a mapping of input to output names")
    inputs, outputs = {v.name: v.type for v in model.inputs}, {v.name: v.type for v in model.outputs}
    for i, o in given.items():
        if i not in inputs or o not in outputs:
            raise InputError(
                f"{label}: states has {i!r}: {o!r}, the inputs are {list(inputs)}, the outputs {list(outputs)}"
            )
        if not types_match(inputs[i], outputs[o]):
            raise InputError(
                f"{label}: states has {i!r}: {o!r}, but they are {inputs[i]} {inputs[i].shape} and "
                f"{outputs[o]} {outputs[o].shape}"
            )
    if len(set(given.values())) < len(given):
        raise InputError(f"{label}: states names an output twice: {dict(given)}")
    return {name: given[name] for name in inputs if name in given}
