"""Loops, lists and branches as TorchScript exports them: what rnnfast computes is what torch does.

Exporters rely on what torch and onnxruntime do beside the letter of ONNX's specification. Each module here is one way
to write a recurrence by hand; onnxruntime computes all of them, too.
"""

import inspect
import io
import warnings
from typing import List, Optional  # noqa: UP035 - what TorchScript reads

import numpy as np
import pytest

import rnnfast

torch = pytest.importorskip("torch")
nn, Tensor = torch.nn, torch.Tensor

X = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32))
# Sums in another order, through at most ten steps; 1e-6 was the largest difference.
TOLERANCE = 1e-5
MODULES = {}


def case(*arguments):
    """Return a decorator that adds a module class with the arguments of its call."""

    def add(module):
        MODULES[module.__name__] = module, arguments or (X,)
        return module

    return add


@case()
class Unbind(nn.Module):
    def forward(self, x):
        found: List[Tensor] = []  # noqa: UP006
        for row in x.unbind(0):
            found.append(torch.softmax(row, 0))
        return torch.stack(found)


@case()
class UnbindAlongTheLastAxis(nn.Module):
    def forward(self, x):
        found: List[Tensor] = []  # noqa: UP006
        for row in x.unbind(-1):
            found.append(row * 2)
        return torch.cat(found, -1)


@case()
class SplitByOne(nn.Module):
    def forward(self, x):
        found: List[Tensor] = []  # noqa: UP006
        for row in x.split(1, 1):
            found.append(row)
        return torch.cat(found, 0)


@case()
class SplitByTwo(nn.Module):
    def forward(self, x):
        found: List[Tensor] = []  # noqa: UP006
        for rows in x.split(2):
            found.append(rows.sum(0))
        return torch.stack(found)


@case()
class Enumerate(nn.Module):
    def forward(self, x):
        found: List[Tensor] = []  # noqa: UP006
        for i, row in enumerate(x.unbind(0)):
            found.append(row * i)
        return torch.stack(found, -1)


@case()
class InsertAndPop(nn.Module):
    def forward(self, x):
        found: List[Tensor] = [x[0]]  # noqa: UP006
        found.insert(0, x[1])
        found.insert(1, x[2])
        found.insert(-1, x[3])
        last = found.pop()
        return torch.stack(found) - last + found[-1]


@case()
class Backwards(nn.Module):
    def forward(self, x):
        state = torch.zeros(3, 4)
        found: List[Tensor] = []  # noqa: UP006
        for i in range(x.size(0) - 1, -1, -1):
            state = torch.tanh(state + x[i])
            found.insert(0, state)
        return torch.stack(found)


@case()
class Nested(nn.Module):
    def forward(self, x):
        found: List[Tensor] = []  # noqa: UP006
        for rows in x.unbind(0):
            total = torch.zeros(4)
            for row in rows.unbind(0):
                total = total * 0.5 + row * row
            found.append(total)
        return torch.stack(found)


@case()
class TwoStates(nn.Module):
    def forward(self, x):
        states = (torch.zeros(3, 4), torch.ones(3, 4))
        for row in x.unbind(0):
            states = (states[1] + row, states[0] * row)
        return states[0] - states[1]


@case(X, torch.tensor(3))
class WhileCounted(nn.Module):
    def forward(self, x, n):
        i, state = 0, x[0]
        while i < int(n):
            state = state * x[i]
            i += 1
        return state


@case()
class WhileOfValues(nn.Module):
    def forward(self, x):
        state, i = torch.zeros(3, 4), 0
        while bool(state.abs().max() < 2.0):
            state = state + x[i % 5]
            i += 1
        return state * i


@case()
class Break(nn.Module):
    def forward(self, x):
        state = torch.zeros(3, 4)
        for row in x.unbind(0):
            state = state + row
            if bool(state.sum() > 1.0):
                break
        return state


@case()
class Continue(nn.Module):
    def forward(self, x):
        state = torch.zeros(3, 4)
        for row in x.unbind(0):
            if bool(row.sum() > 0.0):
                continue
            state = state + row
        return state


@case()
class EarlyReturn(nn.Module):
    def forward(self, x):
        if bool(x.sum() > 0):
            return x * 2
        return x - 1


@case()
class NoneBefore(nn.Module):
    def forward(self, x):
        found: List[Tensor] = []  # noqa: UP006
        before: Optional[Tensor] = None  # noqa: UP045
        for row in x.unbind(0):
            if before is not None:
                found.append(row - before)
            before = row
        return torch.stack(found)


@case()
class Grows(nn.Module):
    def forward(self, x):
        found = x[0]
        for i in range(1, x.size(0)):
            found = torch.cat([found, x[i]], 0)
        return found


@case()
class Writes(nn.Module):
    def forward(self, x):
        y = torch.zeros_like(x)
        for i in range(x.size(0)):
            y[i] = x[i].cumsum(-1)
        y[:, 2] = y[:, 0]
        y[2:4, :, 1] = 3.0
        return y


@case()
class CellInALoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.gates, self.recurrence = nn.Linear(4, 12), nn.Linear(6, 12, bias=False)

    def forward(self, x):
        state = torch.zeros(3, 6)
        found: List[Tensor] = []  # noqa: UP006
        for i in range(x.size(0)):
            update, new = (self.gates(x[i]) + self.recurrence(state)).chunk(2, -1)
            state = torch.sigmoid(update) * state + torch.tanh(new)
            found.append(state)
        return torch.stack(found)


@case()
class LayerInALoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(4, 4, 2)

    def forward(self, x):
        states = (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
        found: List[Tensor] = []  # noqa: UP006
        for i in range(x.size(0)):
            y, states = self.layer(x[i : i + 1], states)
            found.append(y)
        return torch.cat(found, 0)


@case()
class GreedyDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.cell, self.scores = nn.Embedding(7, 4), nn.Linear(8, 4), nn.Linear(4, 7)

    def forward(self, x):
        state, token = x[0], torch.zeros(3, dtype=torch.long)
        found: List[Tensor] = []  # noqa: UP006
        for _ in range(9):
            state = torch.tanh(self.cell(torch.cat([self.embedding(token), state], -1)))
            token = self.scores(state).argmax(-1)
            found.append(token)
            if bool((token == 3).all()):
                break
        return torch.stack(found, 1)


@case()
class BestPath(nn.Module):
    def __init__(self):
        super().__init__()
        self.moves = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        scores = x[0]
        history: List[Tensor] = []  # noqa: UP006
        for i in range(1, x.size(0)):
            scores, best = (scores[:, :, None] + self.moves + x[i][:, None]).max(1)
            history.append(best)
        state = scores.argmax(1)
        path: List[Tensor] = [state]  # noqa: UP006
        for i in range(len(history)):
            state = history[len(history) - 1 - i].gather(1, state[:, None]).squeeze(1)
            path.insert(0, state)
        return torch.stack(path, 0)


def exported(module, arguments, opset):
    """Return the bytes of a scripted module's ONNX file, with all dimensions free."""
    file = io.BytesIO()
    options = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    names = ["x", "n"][: len(arguments)]
    free = {name: {i: f"{name}{i}" for i in range(a.dim())} for name, a in zip(names, arguments)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is old, and this is the exporter of its time
        scripted = torch.jit.script(module)
        torch.onnx.export(
            scripted, arguments, file, opset_version=opset, input_names=names, dynamic_axes=free, **options
        )
    return file.getvalue()


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("name", MODULES)
def test_scripted_modules(name, opset):
    kind, arguments = MODULES[name]
    if (name, opset) == ("NoneBefore", 13):
        pytest.skip("optional values came with opset 15")
    torch.manual_seed(0)
    module = kind().eval()
    expected = module(*arguments).detach().numpy()
    session = rnnfast.InferenceSession(exported(module, arguments, opset))
    feed = {i.name: a.numpy() for i, a in zip(session.get_inputs(), arguments)}
    for _ in range(2):
        (found,) = session.run(None, feed)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
