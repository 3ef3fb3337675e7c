"""Fit the constants of vmath.h and print them in its form: python fit.py (needs mpmath, NumPy and SciPy).

A polynomial is a weighted minimax fit, found as a linear program on a grid. Its coefficients are rounded to float32 one
after the other, the lowest first. After each, the remaining ones are fitted again, so that they absorb its rounding
error. Of the two neighbouring float32 numbers, the one that leaves the smaller error is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import mpmath as mp
import numpy as np
from numpy.polynomial import chebyshev
from scipy.optimize import linprog

mp.mp.dps = 50
GRID = 1500  # an even number of points, so that none is 0 on a symmetric interval
LN2 = mp.log(2)


@dataclass
class Fit:
    """A polynomial to be fitted."""

    name: str  # the name of its table
    text: str  # the function that is approximated, the interval, and the value that the error is relative to
    q: Callable  # this is approximated by the sum of c[i] x^i
    weight: Callable  # an error e of q is a relative error e * weight of the function
    low: mp.mpf
    high: mp.mpf
    terms: int


def after_linear(f, x):
    """Return q in f(x) = x + x^2 q(x)."""
    return (f(x) - x) / x**2


def after_linear_weight(f, x):
    """Return the weight of an error of that q."""
    return x**2 / f(x)


def log_erfc_q(y):
    """Return q in log(erfc(-y)) = y + y q(y)."""
    return mp.log(mp.erfc(-y)) / y - 1


def log_erfc_weight(y):
    """Return the weight of an error of that q relative to erf(y)."""
    return y * mp.erfc(-y) / mp.erf(-y)


def odd_q(f, s):
    """Return q in f(r) = c r + r^3 q(r^2) at s = r^2, where c is the derivative of f at 0."""
    r = mp.sqrt(s)
    return (f(r) - mp.diff(f, 0) * r) / r**3


def odd_weight(f, s):
    """Return the weight of an error of that q."""
    return mp.sqrt(s) ** 3 / f(mp.sqrt(s))


def cos_q(s):
    """Return q in cos(r) = 1 - r^2 / 2 + r^4 q(r^2) at s = r^2."""
    return (mp.cos(mp.sqrt(s)) - 1 + s / 2) / s**2


def cos_weight(s):
    """Return the weight of an error of that q."""
    return s**2 / mp.cos(mp.sqrt(s))


def log_quotient_q(z):
    """Return q in log((1 + s) / (1 - s)) = 2 s + s^3 (2 / 3 + s^2 q(s^2)) at z = s^2."""
    s = mp.sqrt(z)
    return ((mp.atanh(s) - s) * 2 / s**3 - mp.mpf(2) / 3) / z


def log_quotient_weight(z):
    """Return the weight of an error of that q."""
    s = mp.sqrt(z)
    return s**5 / (2 * mp.atanh(s))


WIDER = mp.mpf("1.001")  # the rounding of x * log2(e) may carry the reduced argument past its bound
FITS = [
    Fit(
        "EXPM1_Q",
        "expm1(r) = r + r^2 q(r) on |r| <= log(2) / 2, relative to expm1(r)",
        partial(after_linear, mp.expm1),
        partial(after_linear_weight, mp.expm1),
        -WIDER * LN2 / 2,
        WIDER * LN2 / 2,
        5,
    ),
    Fit(
        "LOG_Q",
        "log1p(f) = f + f^2 q(f) on sqrt(1/2) <= 1 + f <= sqrt(2), relative to log1p(f)",
        partial(after_linear, mp.log1p),
        partial(after_linear_weight, mp.log1p),
        mp.sqrt(0.5) - 1,
        mp.sqrt(2) - 1,
        9,
    ),
    Fit(
        "LOG1P_Q",
        "log1p(z) = z + z^2 q(z) on 0 <= z <= 1, relative to log1p(z)",
        partial(after_linear, mp.log1p),
        partial(after_linear_weight, mp.log1p),
        mp.mpf(0),
        mp.mpf(1),
        9,
    ),
    Fit(
        "ERF_Q",
        "log(erfc(-y)) = y + y q(y) on -4 <= y <= 0, relative to erf(y)",
        log_erfc_q,
        log_erfc_weight,
        mp.mpf(-4),
        mp.mpf(0),
        9,
    ),
    Fit(
        "SIN_Q",
        "sin(r) = r + r^3 q(r^2) on |r| <= pi / 4, relative to sin(r)",
        partial(odd_q, mp.sin),
        partial(odd_weight, mp.sin),
        mp.mpf(0),
        WIDER * (mp.pi / 4) ** 2,
        3,
    ),
    Fit(
        "COS_Q",
        "cos(r) = 1 - r^2 / 2 + r^4 q(r^2) on |r| <= pi / 4, relative to cos(r)",
        cos_q,
        cos_weight,
        mp.mpf(0),
        WIDER * (mp.pi / 4) ** 2,
        3,
    ),
    Fit(
        "ATAN_Q",
        "atan(t) = t + t^3 q(t^2) on |t| <= tan(pi / 8), relative to atan(t)",
        partial(odd_q, mp.atan),
        partial(odd_weight, mp.atan),
        mp.mpf(0),
        WIDER * mp.tan(mp.pi / 8) ** 2,
        5,
    ),
    Fit(
        "LOG_QUOTIENT_Q",
        "log((1 + s) / (1 - s)) = 2 s + s^3 (2 / 3 + s^2 q(s^2)) on |s| <= 3 - sqrt(8), relative to it",
        log_quotient_q,
        log_quotient_weight,
        mp.mpf(0),
        WIDER * (3 - mp.sqrt(8)) ** 2,
        3,
    ),
]


def grid(fit):
    """Return x, q(x) and |weight(x)| at Chebyshev nodes, which exclude the ends, where q may be 0 / 0."""
    nodes = [mp.cos(mp.pi * (i + mp.mpf(0.5)) / GRID) for i in range(GRID)]
    xs = [(fit.low + fit.high) / 2 - (fit.high - fit.low) / 2 * node for node in nodes]
    return tuple(np.array([float(f(x)) for x in xs]) for f in (lambda x: x, fit.q, lambda x: abs(fit.weight(x))))


def minimax(x, y, weight, fixed, terms):
    """Return (error, c): c is `fixed` and the other coefficients, which minimise max |weight * (polynomial - y)|."""
    rest = y - np.polyval(fixed[::-1], x)
    free = terms - len(fixed)
    if not free:
        return np.abs(weight * rest).max(), fixed
    # A linear program in Chebyshev coefficients; a least-squares fit first brings its numbers close to 1.
    domain = [x.min(), x.max()]
    basis = (weight * x ** len(fixed))[:, None] * chebyshev.chebvander(np.interp(x, domain, [-1, 1]), free - 1)
    start = np.linalg.lstsq(basis, weight * rest, rcond=None)[0]
    error = weight * rest - basis @ start
    unit = np.abs(error).max()
    ones = np.ones((len(x), 1))
    rows = np.block([[basis, -ones], [-basis, -ones]])
    program = linprog([0] * free + [1], rows, np.concatenate([error, -error]) / unit, bounds=(None, None))
    series = chebyshev.Chebyshev(start + unit * program.x[:-1], domain).convert(kind=np.polynomial.Polynomial)
    return unit * program.fun, [*fixed, *series.coef, *[0.0] * (free - len(series.coef))]


def float32_fit(x, y, weight, terms):
    """Return the same with coefficients that are float32 numbers."""
    fixed = []
    while len(fixed) < terms:
        ideal = minimax(x, y, weight, fixed, terms)[1][len(fixed)]
        nearest = np.float32(ideal)
        other = np.nextafter(nearest, np.float32(np.inf if ideal > nearest else -np.inf))
        both = [*fixed, float(nearest)], [*fixed, float(other)]
        fixed = min(both, key=lambda kept: minimax(x, y, weight, kept, terms)[0])
    return minimax(x, y, weight, fixed, terms)


def literal(value):
    """Return a float32 number as a C literal."""
    mantissa, exponent = float(value).hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.')}p{int(exponent)}f"


def table(fit):
    """Return the C table of a fit."""
    error, c = float32_fit(*grid(fit), fit.terms)
    lines, line = [], "   "
    for value in c:
        if len(line) + len(literal(value)) > 116:
            lines.append(line)
            line = "   "
        line += f" {literal(value)},"
    body = "\n".join([*lines, line])
    return f"/* {fit.text}: error 2^{np.log2(error):.1f} */\nstatic const float {fit.name}[] = {{\n{body}\n}};"


def logarithms():
    """Return the constants of log(2), also as a sum LN2_HI + LN2_LO.

    LN2_HI has so few bits that n * LN2_HI and x - n * LN2_HI are exact.
    """
    high = mp.floor(LN2 * 2**16 + mp.mpf(0.5)) / 2**16
    values = {"LOG2_E": 1 / LN2, "LN2": LN2, "LN2_HI": high, "LN2_LO": LN2 - high}
    return "\n".join(f"#define {name} {literal(np.float32(float(v)))}" for name, v in values.items())


def sums():
    """Return the constants that are sums of floats: PI_2_* of pi / 2, PI_4_* of pi / 4, TWO_THIRDS_* of 2 / 3."""
    lines = [f"#define TWO_OVER_PI {literal(np.float32(float(2 / mp.pi)))}"]
    for name, rest, parts in (("PI_2", mp.pi / 2, 3), ("PI_4", mp.pi / 4, 2), ("TWO_THIRDS", mp.mpf(2) / 3, 2)):
        for part in range(1, parts + 1):
            value = np.float32(float(rest))
            lines.append(f"#define {name}_{part} {literal(value)}")
            rest -= mp.mpf(float(value))
    return "\n".join(lines)


if __name__ == "__main__":
    print(logarithms())
    print(sums())
    for row in FITS:
        print(table(row))
