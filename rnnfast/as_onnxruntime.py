"""`python -m rnnfast.as_onnxruntime PROGRAM [ARGUMENT ...]`: runs a program that imports onnxruntime on rnnfast.

PROGRAM is the path of a Python file, or `-m MODULE`. See `rnnfast.as_onnxruntime`.
"""

import os
import runpy
import sys

import rnnfast


def main() -> None:
    """Run the program of the command line."""
    arguments = sys.argv[1:]
    as_module = arguments[:1] == ["-m"]
    if len(arguments) <= as_module:
        sys.exit("usage: python -m rnnfast.as_onnxruntime (PROGRAM | -m MODULE) [ARGUMENT ...]")
    rnnfast.as_onnxruntime()
    sys.argv = arguments[as_module:]
    if as_module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
