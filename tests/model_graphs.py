"""A graph with a state, and inputs for it, for the tests of Model and InferenceSession."""

from tests.graphs import parse, random

GRU = parse(
    """g (float[t,b,4] x, float[1,b,3] h) => (float[t,1,b,3] y, float[1,b,3] last) {
    y, last = GRU <hidden_size = 3> (x, w, r, bias, , h) }""",
    w=random(0, 1, 9, 4),
    r=random(1, 1, 9, 3),
    bias=random(2, 1, 18),
)
X, H = random(3, 5, 2, 4), random(4, 1, 2, 3)
