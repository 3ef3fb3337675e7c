"""Fits the constants of vmath.h and prints them as they stand there: python fit.py (needs mpmath, NumPy and SciPy).

A polynomial is a weighted minimax fit (a linear programme on a grid). Its coefficients are rounded to float32 one after
the other from the lowest up; after each, the rest is fitted again, so that later ones absorb the rounding of the
earlier ones, and of both neighbouring float32 numbers that one is kept which leaves the smaller error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import mpmath as mp
import numpy as np
from numpy.polynomial import chebyshev
from scipy.optimize import linprog

mp.mp.dps = 50
GRID = 1500  # an even number of points: none is 0 on a symmetric interval
LN2 = mp.log(2)


@dataclass
class Fit:
    name: str  # of the table
    text: str  # what is approximated, where, and relative to what
    q: Callable  # approximated by the sum of c[i] x^i
    weight: Callable  # an error e of q is a relative error e * weight of the function
    low: mp.mpf
    high: mp.mpf
    terms: int


def after_linear(f, x):
    """q in f(x) = x + x^2 q(x)"""
    return (f(x) - x) / x**2


def after_linear_weight(f, x):
    return x**2 / f(x)


def log_erfc_q(y):
    """q in log(erfc(-y)) = y + y q(y)"""
    return mp.log(mp.erfc(-y)) / y - 1


def log_erfc_weight(y):
    return y * mp.erfc(-y) / mp.erf(-y)


WIDER = mp.mpf("1.001")  # the reduced argument may pass its bound by the rounding of x * log2(e)
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
]


def grid(fit):
    """x, q(x) and |weight(x)| at Chebyshev nodes, which are never the ends, where q may be 0 / 0"""
    nodes = [mp.cos(mp.pi * (i + mp.mpf(0.5)) / GRID) for i in range(GRID)]
    xs = [(fit.low + fit.high) / 2 - (fit.high - fit.low) / 2 * node for node in nodes]
    return tuple(np.array([float(f(x)) for x in xs]) for f in (lambda x: x, fit.q, lambda x: abs(fit.weight(x))))


def minimax(x, y, weight, fixed, terms):
    """(error, c): c is `fixed` and the further coefficients for which max |weight * (polynomial - y)| is smallest"""
    rest = y - np.polyval(fixed[::-1], x)
    free = terms - len(fixed)
    if not free:
        return np.abs(weight * rest).max(), fixed
    # a linear programme in Chebyshev coefficients; least squares first brings its numbers near to 1
    domain = [x.min(), x.max()]
    basis = (weight * x ** len(fixed))[:, None] * chebyshev.chebvander(np.interp(x, domain, [-1, 1]), free - 1)
    start = np.linalg.lstsq(basis, weight * rest, rcond=None)[0]
    error = weight * rest - basis @ start
    unit = np.abs(error).max()
    ones = np.ones((len(x), 1))
    rows = np.block([[basis, -ones], [-basis, -ones]])
    programme = linprog([0] * free + [1], rows, np.concatenate([error, -error]) / unit, bounds=(None, None))
    series = chebyshev.Chebyshev(start + unit * programme.x[:-1], domain).convert(kind=np.polynomial.Polynomial)
    return unit * programme.fun, [*fixed, *series.coef, *[0.0] * (free - len(series.coef))]


def float32_fit(x, y, weight, terms):
    """The same with coefficients that are float32 numbers"""
    fixed = []
    while len(fixed) < terms:
        ideal = minimax(x, y, weight, fixed, terms)[1][len(fixed)]
        nearest = np.float32(ideal)
        other = np.nextafter(nearest, np.float32(np.inf if ideal > nearest else -np.inf))
        both = [*fixed, float(nearest)], [*fixed, float(other)]
        fixed = min(both, key=lambda kept: minimax(x, y, weight, kept, terms)[0])
    return minimax(x, y, weight, fixed, terms)


def literal(value):
    """A float32 number in C"""
    mantissa, exponent = float(value).hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.')}p{int(exponent)}f"


def table(fit):
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
    """log(2) also as a sum whose first part has so few bits that n * LN2_HI and x - n * LN2_HI are exact"""
    high = mp.floor(LN2 * 2**16 + mp.mpf(0.5)) / 2**16
    values = {"LOG2_E": 1 / LN2, "LN2": LN2, "LN2_HI": high, "LN2_LO": LN2 - high}
    return "\n".join(f"#define {name} {literal(np.float32(float(v)))}" for name, v in values.items())


if __name__ == "__main__":
    print(logarithms())
    for row in FITS:
        print(table(row))
