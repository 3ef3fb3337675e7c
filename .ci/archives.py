"""Check the archives that are published.

python archives.py contents FILE...   what the sdist and the wheel contain (from the checkout)
python archives.py example            the first example of ./README.md, run on the installed package
"""

import doctest
import pathlib
import re
import sys
import tarfile
import zipfile

GENERATED = re.compile(r"rnnfast/\w+/_\w+\.c$")
# What the package reads besides its modules: the page, the OpenAPI document and the messages of the server.
DATA = "py.typed", "*.html", "*.json", "*.proto"
# A program for those who change the kernels, which is no module of the package.
FIT = "rnnfast/kernels/fit.py"


def files(*patterns):
    """The files below rnnfast whose names match one of some patterns."""
    found = {pattern: set(map(str, pathlib.Path("rnnfast").rglob(pattern))) for pattern in patterns}
    assert all(found.values()), f"no file is {[pattern for pattern in patterns if not found[pattern]]}"
    return set().union(*found.values())


def check_sdist(path):
    """The sdist has every source of the package, what setup.py reads, and no generated C."""
    with tarfile.open(path) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    sources = files("*.py", "*.pyx", "*.pxd", "*.pyi", "*.c", "*.h", *DATA)
    sources = {name for name in sources if not GENERATED.search(name) and name != FIT}
    assert "rnnfast/kernels/kernels.c" in sources and "rnnfast/py.typed" in sources
    missing = (sources | {"README.md", "LICENSE", "pyproject.toml", "setup.py"}) - found
    assert not missing, f"{path} lacks {sorted(missing)}"
    others = {name for name in found if GENERATED.search(name) or name.startswith(("tests", "build"))}
    assert not others, f"{path} has {sorted(others)}"


def check_wheel(path):
    """The wheel has the package's Python files, stubs, data and extension modules, and neither C nor tests."""
    found = set(zipfile.ZipFile(path).namelist())
    missing = files("*.py", "*.pyi", *DATA) - found - {FIT}
    assert not missing, f"{path} lacks {sorted(missing)}"
    modules = {name.partition(".")[0] for name in found if name.endswith(".so")}
    expected = {name.removesuffix(".pyx") for name in files("*.pyx")}
    assert modules == expected, f"{path} has the modules {sorted(modules)}, expected {sorted(expected)}"
    others = {name for name in found if name.endswith((".c", ".h", ".pyx", ".pxd")) or "tests" in name}
    assert not others, f"{path} has {sorted(others)}"


def run_example():
    """The first Python block of the README gives what it shows, by the installed package."""
    import rnnfast

    assert pathlib.Path(rnnfast.__file__).is_relative_to(sys.prefix), f"{rnnfast.__file__} is not the installed package"
    block = re.search(r"```python\n(>>>.*?)```", pathlib.Path("README.md").read_text(), re.S)[1]
    test = doctest.DocTestParser().get_doctest(block, {}, "README.md", "README.md", 0)
    failed, attempted = doctest.DocTestRunner().run(test)
    assert attempted >= 4 and not failed
    print(f"{attempted} lines of the first example ran on {rnnfast.__file__}")


if __name__ == "__main__":
    if sys.argv[1] == "example":
        run_example()
    for path in sys.argv[2:]:
        print(path)
        (check_wheel if path.endswith(".whl") else check_sdist)(path)
