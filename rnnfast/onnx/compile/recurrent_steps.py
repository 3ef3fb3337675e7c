"""RNN, GRU and LSTM nodes with constant weights."""

import numpy as np

from rnnfast.native import _engine


def emit_recurrent(builder, node, inputs, outputs):
    """Emit a recurrent command; False without constant weights, for other types than float32, if BLAS multiplies, or if
    there are no steps or rows.
    """
    run = node.run
    layer, cells = getattr(run, "layer", None), getattr(run, "cells", None)
    inputs = [*inputs, *[None] * (8 - len(inputs))]
    if cells is None or cells[0].blas or inputs[0].dtype != np.float32:
        return False
    T, rows = inputs[0].shape[:2] if layer.layout == 0 else inputs[0].shape[1::-1]
    if T == 0 or rows == 0:
        return False
    D, H = layer.directions, cells[0].hidden_size
    states = [None if i in run.dropped else inputs[i] for i in (5, 6)]
    states = [None if s is None or s.known is not None and not s.known.any() else s for s in states]
    x = builder.view(inputs[0])
    if x.shape[2] > 1 and x.strides[2] != 4:
        x = builder.contiguous(x)
    initial = []
    for state in states:
        view = None if state is None else builder.view(state)
        if view is not None:
            view = builder.contiguous(view if layer.layout == 0 else view.swapaxes(0, 1))
        initial.append(view)
    if layer.layout:
        x = x.swapaxes(0, 1)
        whole = builder.new((rows, T, D, H))
        y = whole.transpose(1, 2, 0, 3)
    else:
        whole = y = builder.new((T, D, rows, H))
    last = [builder.new((D, rows, H)) for _ in range(2 if node.op_type == "LSTM" else 1)]
    strides = [s // 4 for s in (x.strides[0], x.strides[1], y.strides[0], y.strides[2], y.strides[1])]
    prepared = builder.made(_engine.Prepared, cells, run.reverse, T, rows, strides, run.threads, inputs[4] is not None)
    workspace = builder.new((prepared.workspace,))
    step_flops = sum(2 * gate_products(cell) for cell in cells)
    lengths = [None] * 3
    if inputs[4] is not None:
        lengths = [
            builder.contiguous(builder.view(inputs[4])),
            builder.status("sequence_lens has {}, expected 0 to {limit}", limit=T),
            builder.new((2 * rows + T,), np.int64),
        ]
    builder.emit(
        "recurrent",
        prepared.address,
        x,
        y,
        *initial,
        *last,
        *[None] * (2 - len(last)),
        workspace,
        *lengths,
        out=whole,
        weights=sum(cell.nbytes for cell in cells),
        flops=step_flops * T * rows,
    )
    for operand, view in zip(outputs, (whole, *last)):
        if operand is not None:
            builder.set(operand, view if operand is outputs[0] or not layer.layout else view.swapaxes(0, 1))
    return True


def gate_products(cell):
    """Return the number of products of one row's inputs and outputs with the weights of all gates."""
    gates = _engine.GATES[cell.kind]
    return gates * cell.hidden_size * (cell.input_size + cell.output_size)


EMIT = dict.fromkeys(("RNN", "GRU", "LSTM"), emit_recurrent)
