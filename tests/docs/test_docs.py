"""The documentation: its code runs and prints what the pages say, its links have targets, its site can be built."""

import ast
import doctest
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys

import pytest

from rnnfast.onnx.ops import MODULES, table
from tests.paths import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import build

sys.path.pop(0)

DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
LINKED = [DOCS / page for page in PAGES]
LINKED += [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "models").glob("*.md"))]
SILERO = ROOT / "build" / "silero_vad" / "data" / "silero_vad.onnx"
# (page, command, the output that the page shows) of each "$ command" in a console block. A server does not end by
# itself: what stands beside one runs in tests/models/test_vad_load.py and tests/server.
COMMANDS = [
    (page, command, output)
    for page in PAGES
    for block in re.findall(r"^```console\n(.*?)^```", (DOCS / page).read_text(), re.S | re.M)
    for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M)
    if not command.startswith("python models/vad_load.py") and not command.endswith("&")
]
# Pages that document the names of a module -> that module.
REFERENCES = {
    f"reference/{name}.md": f"rnnfast.{name}" for name in ("nn", "train", "plot", "ray", "reference", "errors")
}
REFERENCES["reference/rnnfast.md"] = "rnnfast"
# Public names that stand in the text of a page, as values without a docstring of their own, or on pages of their own.
IN_TEXT = {
    "rnnfast": {"Error", "capi", "errors", "nn", "plot", "ray", "reference", "train"},
    "rnnfast.reference": {"ACTIVATIONS", "DERIVATIVES"},
}


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.S | re.M)


def comparable(text):
    """Without what differs between machines: measured numbers, widths of columns, and the order of measured steps.

    Times are printed with four digits, so that some look like integers: of a profile no number stands for itself.
    """
    profile = "quartiles" in text
    if profile:
        text = re.sub(r"(?<=[ (])\d[\d.,]*(e[-+]\d+)?%?(?=[ )\n])", "N", text)
    text = re.sub(r"-?\d+\.\d+(e[-+]\d+)?%?|\d+e[-+]\d+%?|\b\d+(?= times faster)|(?<= )0(?= +ok)", "N", text)
    lines = [re.sub(r"[─-]{4,}", "-", re.sub(r" +", " ", line)).strip() for line in text.strip().splitlines()]
    return sorted(lines) if profile else lines


# ---------------------------------------------------------------------------------------------------- code
@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)])
def test_python(page, monkeypatch):
    """Blocks with `>>>` are doctests in one namespace for each page, the others are run before them."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    blocks = python_blocks(page)
    for name in sorted(set(re.findall(r"^(?:>>> )?(?:import|from) (\w+)", "".join(blocks), re.M)) - {"rnnfast"}):
        pytest.importorskip(name)
    names = {"__name__": "__main__"}
    for block in blocks:
        if ">>> " not in block:
            exec(block, names)
    text = (DOCS / page).read_text()
    examples = doctest.DocTestParser().get_doctest(text, names, page, str(DOCS / page), 0)
    assert len(examples.examples) == text.count("\n>>> ")
    assert doctest.DocTestRunner().run(examples, clear_globs=False).failed == 0


def test_python_is_marked():
    """Each fenced block says its language, so that no code is left out; installation commands have none."""
    for page in PAGES:
        text = (DOCS / page).read_text()
        fences = re.findall(r"^```(.*)$", text, re.M)
        assert len(fences) % 2 == 0, page
        assert text.count(">>> ") == "".join(python_blocks(page)).count(">>> "), page
        for language, block in re.findall(r"^```(.*)\n(.*?)^```", text, re.S | re.M):
            assert language or "import " not in block, page


@pytest.mark.parametrize("page, command, output", COMMANDS, ids=[f"{page}: {command}" for page, command, _ in COMMANDS])
def test_command(page, command, output, tmp_path):
    command, _, kept = command.partition(" | grep ")
    if command == "make demo":
        if not SILERO.exists():
            pytest.skip("make demo has not fetched the model")
        command = f"models/vad_demo.py {SILERO}"
    else:
        pytest.importorskip("rich")
        pytest.importorskip("onnxruntime")
        command = f"-m {command}"
    (tmp_path / "models").symlink_to(ROOT / "models")
    result = subprocess.run(
        [sys.executable, *shlex.split(command)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert result.stderr == ""
    if command.endswith("--help"):  # its output is put in when the site is built
        assert result.returncode == 0 and result.stdout.startswith("Usage: ") and output == ""
        return
    printed = [line for line in result.stdout.splitlines(keepends=True) if kept.strip("'") in line]
    assert comparable("".join(printed)) == comparable(output)


def test_every_command_has_its_help():
    click = pytest.importorskip("click")
    pytest.importorskip("rich")
    from rnnfast.cli import main

    assert isinstance(main, click.Group)
    assert {f"rnnfast {name} --help" for name in main.commands} == {
        command for page, command, _ in COMMANDS if page == "reference/command-line.md" and command.endswith("--help")
    }


# ---------------------------------------------------------------------------------------------------- pages
@pytest.mark.parametrize("path", LINKED, ids=[path.relative_to(ROOT).as_posix() for path in LINKED])
def test_links(path):
    text = path.read_text()
    for target in build.links(text):
        assert (path.parent / target).exists(), target
    parts = build.CODE.split(text)[::2]
    for file, anchor in re.findall(r"\]\(([^)\s#:]*)#([^)\s]+)\)", "".join(parts)):
        assert anchor in anchors((path.parent / file if file else path).read_text()), (file, anchor)


def anchors(text):
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_navigation():
    """Each page is in the navigation, and each entry of it is a page."""
    config = (DOCS / "zensical.toml").read_text()
    listed = re.findall(r'"([\w/-]+\.md)"', build.decisions(config))
    assert len(listed) == len(set(listed))
    assert sorted(listed) == sorted([*PAGES, *build.ALSO])
    for path in build.ALSO:
        assert (ROOT / path).exists()


def test_operators():
    groups = dict(re.findall(r"^\| (\w+) \| ([\w., ]+) \|$", (DOCS / "operators.md").read_text(), re.M))
    del groups["group"]
    assert sorted(groups) == sorted(MODULES)
    listed = [name for names in groups.values() for name in names.split(", ")]
    assert sorted(listed) == sorted(".".join(filter(None, key)) for key in table())


@pytest.mark.parametrize("page", REFERENCES)
def test_reference(page):
    """A reference page has each public name of its module, once, and no other."""
    module = importlib.import_module(REFERENCES[page])
    names = re.findall(r"^::: ([\w.]+)$", (DOCS / page).read_text(), re.M)
    for name in names:
        assert inspect.getdoc(build.resolve(name)), f"{name} has no docstring"
    names = [name.removeprefix(f"{module.__name__}.") for name in names if not name.startswith("rnnfast.streaming.")]
    names = [name for name in names if "." not in name]  # no methods
    assert sorted(names) == sorted(set(public_names(module)) - IN_TEXT.get(module.__name__, set()))
    for name in IN_TEXT.get(module.__name__, ()):
        assert hasattr(module, name)


# Functions of rnnfast.errors that the package itself uses.
INTERNAL = {"with_location", "printable", "raise_if_from_handler", "no_memory", "raises_limit_error"}


def public_names(module):
    if hasattr(module, "__all__"):
        return module.__all__
    tree = ast.parse(inspect.getsource(module))
    names = [node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    return [name for name in names if not name.startswith("_") and name not in INTERNAL]


def test_page_style():
    """Lines are short, and each page begins with its only title."""
    for page in PAGES:
        lines = re.sub(r"^```.*?^```", "", (DOCS / page).read_text(), flags=re.S | re.M).splitlines()
        assert lines[0].startswith("# ") and sum(line.startswith("# ") for line in lines) == 1, page
        for line in lines:
            assert len(line) <= 120 or line.startswith("|") or "](" in line, (page, line)


# ---------------------------------------------------------------------------------------------------- the site
@pytest.mark.slow
def test_site():
    """The site builds without warnings, and its pages fetch nothing from elsewhere."""
    pytest.importorskip("zensical")
    pytest.importorskip("mkdocstrings_handlers.python")
    result = subprocess.run([sys.executable, str(DOCS / "build.py")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    pages = sorted(build.SITE.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        text = page.read_text()
        fetched = re.findall(r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=[\"']?([^\"'\s>]+)", text)
        fetched += re.findall(r"<link\b(?![^>]*rel=[\"']?canonical)[^>]*?\bhref=[\"']?([^\"'\s>]+)", text)
        assert not [url for url in fetched if re.match(r"(https?:)?//", url)], page
        assert 'class="mermaid"' not in text and "glightbox" not in text, page
    index = (build.SITE / "search.json").read_text()
    for word in ("InferenceSession", "DivergedError", "matmul"):
        assert word in index
