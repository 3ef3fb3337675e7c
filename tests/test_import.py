"""Importing rnnfast loads little, and programs and type checkers see the same names."""

import ast
import importlib
import subprocess
import sys

import rnnfast
from tests.paths import ROOT


def test_type_checkers_see_the_names_that_programs_see():
    """The imports under `if TYPE_CHECKING` are those that `__getattr__` makes, name by name."""
    tree = ast.parse((ROOT / "rnnfast" / "__init__.py").read_text())
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.asname: node.module for node in guarded.body for alias in node.names}
    assert seen == rnnfast._LAZY
    for name, module in rnnfast._LAZY.items():
        assert getattr(rnnfast, name) is importlib.import_module(
            "rnnfast." + name if module == "rnnfast" else module
        ) or (getattr(rnnfast, name) is getattr(importlib.import_module(module), name))
    assert set(dir(rnnfast)) == {"Error", "errors", *seen}
    assert (ROOT / "rnnfast" / "py.typed").exists()


def test_importing_loads_no_extension_module():
    """A program that imports rnnfast and uses nothing of it pays for the errors only."""
    program = (
        "import sys, numpy; before = set(sys.modules); import rnnfast; "
        "print(*sorted(name for name in set(sys.modules) - before if name.startswith('rnnfast')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["rnnfast", "rnnfast.errors"]
