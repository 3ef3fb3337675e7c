"""A structure-aware fuzzer: random graphs of every operator, and mutated files, compared with the reference.

`python -m tests.fuzz --seconds 600` runs it; `make fuzz SECONDS=600` is the same. A case is made from its seed alone,
so a finding is repeated by `python -m tests.fuzz --seed SEED`.
"""
