"""Spectra and what belongs to them: windows, DFT, STFT and mel filters (ONNX operator specification, say DFT-20)."""

import numpy as np

from rnnfast.errors import InputError, InputTypeError
from rnnfast.onnx.ops.arguments import check_axis, integer
from rnnfast.onnx.ops.numeric import is_floating, quiet, same_dtype
from rnnfast.onnx.ops.types import Dtype, Flag, check_size


# ----------------------------------------------------------------------------------------------------- windows
def _window(coefficients):
    """Return the operator of a window: the sum of c[k] cos(2 pi k n / N), where N is its size, less 1 if symmetric."""

    @quiet
    def window(size, *, output_datatype: Dtype | None = None, periodic: Flag = 1):
        n = integer(size, "size")
        if n < 0:
            raise InputError(f"size is {n}, expected 0 or more")
        dtype = np.dtype(np.float32) if output_datatype is None else output_datatype
        check_size((n,), np.float64)
        angle = 2 * np.pi * np.arange(n) / np.float64(n if periodic else n - 1)
        return sum(c * np.cos(k * angle) for k, c in enumerate(coefficients)).astype(dtype)

    return window


# ---------------------------------------------------------------------------------------------------- spectra
def _check_signal(x, axis, name):
    """Raise an error unless x is of a floating-point type and its last axis holds real numbers, or pairs of them."""
    if not is_floating(x.dtype):
        raise InputTypeError(f"{name} of type {x.dtype}, expected a floating-point type")
    if x.ndim < 2 or x.shape[-1] not in (1, 2):
        raise InputError(f"{name} of shape {x.shape}, expected a last axis of 1 or 2")
    if axis is not None and axis == x.ndim - 1:
        raise InputError(f"axis {axis} of {name} holds real and imaginary parts")


def _as_complex(x):
    """Return [...] of the real numbers or complex numbers that the last axis of x holds; halves become float32."""
    x = x.astype(np.float32) if x.dtype.itemsize < 4 else x
    return x[..., 0] if x.shape[-1] == 1 else x[..., 0] + 1j * x[..., 1]


def _as_pairs(z, dtype):
    """Return the real and imaginary parts of complex numbers along a new last axis."""
    return np.stack([z.real, z.imag], -1).astype(dtype)


def points_of(given, length, inverse, onesided):
    """Return how many points a DFT of `given` ones has, if it is not cut or padded to a length."""
    n = (2 * (given - 1) if inverse and onesided else given) if length is None else integer(length, "dft_length")
    if n < 1:
        raise InputError(f"a transform of {n} points, expected at least 1")
    return n


def _dft(x, length, axis, inverse, onesided):
    """Return the discrete Fourier transform of x along an axis, cut or padded with zeros to a length."""
    axis = check_axis(axis, x.ndim)
    _check_signal(x, axis, "the input")
    z = _as_complex(x)
    n = points_of(z.shape[axis], length, inverse, onesided)
    check_size((*z.shape[:axis], n, *z.shape[axis + 1 :]), np.complex128)
    if onesided and inverse:
        return np.fft.irfft(z, n, axis)[..., None].astype(x.dtype)
    if onesided:
        if np.iscomplexobj(z):
            raise InputError("onesided is 1 for a complex input, expected a real one")
        return _as_pairs(np.fft.rfft(z, n, axis), x.dtype)
    return _as_pairs((np.fft.ifft if inverse else np.fft.fft)(z, n, axis), x.dtype)


@quiet
def dft_17(x, dft_length=None, *, axis: int = 1, inverse: Flag = 0, onesided: Flag = 0):
    """DFT before opset 20: the axis is an attribute."""
    return _dft(x, dft_length, axis, inverse, onesided)


@quiet
def dft(x, dft_length=None, axis=None, *, inverse: Flag = 0, onesided: Flag = 0):
    """DFT: the discrete Fourier transform of real numbers [..., 1] or complex ones [..., 2] along an axis."""
    return _dft(x, dft_length, -2 if axis is None else integer(axis, "axis"), inverse, onesided)


@quiet
def stft(signal, frame_step, window=None, frame_length=None, *, onesided: Flag = 1):
    """STFT: the transforms [batch, frames, bins, 2] of frames of a signal [batch, length, 1 or 2].

    A real signal may lack its last axis: torch writes it so, and onnxruntime takes it.
    """
    signal = signal[..., None] if signal.ndim == 2 else signal
    _check_signal(signal, None, "the signal")
    if signal.ndim != 3:
        raise InputError(f"a signal of shape {signal.shape}, expected [batch, length, 1 or 2]")
    step = integer(frame_step, "frame_step")
    if window is not None:
        same_dtype((signal, window))
        if window.ndim != 1:
            raise InputError(f"a window of shape {window.shape}, expected a vector")
    if frame_length is not None:
        size = integer(frame_length, "frame_length")
    elif window is not None:
        size = len(window)
    else:
        size = signal.shape[1]
    if step < 1 or not 1 <= size <= signal.shape[1]:
        raise InputError(f"frames of {size} with a step of {step} in a signal of {signal.shape[1]}")
    if window is not None and len(window) != size:
        raise InputError(f"a window of {len(window)} for frames of {size}")
    z = _as_complex(signal)
    if onesided and np.iscomplexobj(z):
        raise InputError("onesided is 1 for a complex signal, expected a real one")
    count = 1 + (signal.shape[1] - size) // step
    check_size((signal.shape[0], count, size), np.complex128)
    frames = np.lib.stride_tricks.sliding_window_view(z, size, axis=1)[:, ::step]
    if window is not None:
        frames = frames * (window.astype(np.float32) if window.dtype.itemsize < 4 else window)
    return _as_pairs((np.fft.rfft if onesided else np.fft.fft)(frames), signal.dtype)


@quiet
def mel_weight_matrix(
    num_mel_bins, dft_length, sample_rate, lower_edge_hertz, upper_edge_hertz, *, output_datatype: Dtype | None = None
):
    """MelWeightMatrix: triangles [dft_length // 2 + 1, num_mel_bins] that are evenly spaced on the mel scale."""
    names = ("num_mel_bins", "dft_length", "sample_rate")
    mels, length, rate = (integer(x, name) for x, name in zip((num_mel_bins, dft_length, sample_rate), names))
    low, high = float(lower_edge_hertz.reshape(())), float(upper_edge_hertz.reshape(()))
    if min(mels, length, rate) < 1 or not 0 <= low < high < np.inf:
        raise InputError(
            f"{mels} mel bins of a transform of {length} points at {rate} Hz between {low} and {high} Hz, expected "
            "positive numbers and edges in ascending order"
        )
    bins = length // 2 + 1
    check_size((bins, mels), np.float64)
    edges = 2595 * np.log10(1 + np.array([low, high]) / 700)
    mel = edges[0] + np.arange(mels + 2) * ((edges[1] - edges[0]) / (mels + 2))
    position = ((length + 1) * (700 * (10 ** (mel / 2595) - 1)) // rate).astype(np.int64)
    if position[-1] > bins:
        raise InputError(f"{high} Hz is beyond the spectrum of a transform of {length} points at {rate} Hz")
    start, centre, end = position[:-2], position[1:-1], position[2:]
    k = np.arange(bins)[:, None]
    rising, falling = (k - start) / (centre - start), (end - k) / (end - centre)
    result = np.where((start <= k) & (k <= centre), rising, np.where((centre < k) & (k < end), falling, 0))
    result = np.where((k == centre), 1, result)
    return result.astype(np.float32 if output_datatype is None else output_datatype)


OPS = {
    "HannWindow": {17: _window((0.5, -0.5))},
    "HammingWindow": {17: _window((25 / 46, -21 / 46))},
    "BlackmanWindow": {17: _window((0.42, -0.5, 0.08))},
    "DFT": {17: dft_17, 20: dft},
    "STFT": {17: stft},
    "MelWeightMatrix": {17: mel_weight_matrix},
}
