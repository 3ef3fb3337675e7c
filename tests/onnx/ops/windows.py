"""Random windows of convolutions and pooling."""

import random


def window_attributes(choose, rank, size, kernel, padding=True):
    """Random strides, dilations and padding under which every window fits."""
    strides = [choose.randint(1, 3) for _ in range(rank)]
    mode = choose.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
    # onnxruntime has no dilations with SAME, and pads by negative amounts where the stride exceeds the kernel.
    same = mode.startswith("SAME")
    dilations = [1 if same else choose.randint(1, 2) for _ in range(rank)]
    if same:
        strides = [min(s, k) for s, k in zip(strides, kernel)]
    attributes = dict(strides=strides, dilations=dilations, auto_pad=mode)
    pads = [0] * (2 * rank)
    if mode == "NOTSET" and padding:
        pads = [choose.randint(0, k - 1) for k in kernel * 2]
        attributes["pads"] = pads
    fits = same or all(
        n + a + b >= (k - 1) * d + 1 for n, k, d, a, b in zip(size, kernel, dilations, pads[:rank], pads[rank:])
    )
    return attributes, fits


def window_cases(count, seed):
    choose = random.Random(seed)
    while count:
        rank = choose.choice([1, 2, 2, 3])
        size = [choose.randint(2, 9 if rank < 3 else 5) for _ in range(rank)]
        kernel = [choose.randint(1, 4) for _ in range(rank)]
        attributes, fits = window_attributes(choose, rank, size, kernel)
        if fits:
            count -= 1
            yield choose, size, kernel, attributes
