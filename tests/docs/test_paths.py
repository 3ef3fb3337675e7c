"""The files and names that the pages for contributors mention are there."""

import re

import pytest

from tests.paths import ROOT

PAGES = ["CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md", "docs/lexicon.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "decisions").glob("*.md"))
FOLDERS = "rnnfast|tests|bench|models|docs"
# `name` or `Class.name`, perhaps several of them, "in" or "of" `a/file`
NAMED = re.compile(rf"((?:`[\w.*]+`(?:, | and | or )?)+) (?:in|of)\s+`((?:{FOLDERS})/[\w/.]+|setup\.py)`")


@pytest.mark.parametrize("page", PAGES)
def test_paths(page):
    """Each path in backticks is a file or folder of the checkout."""
    paths = re.findall(rf"`((?:{FOLDERS})/[\w/.-]+)`", (ROOT / page).read_text())
    assert not [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_names(page):
    """Each name that a page places in a file is a word of that file."""
    for names, path in NAMED.findall((ROOT / page).read_text()):
        text = (ROOT / path).read_text()
        for name in re.findall(r"[\w*]+", names):
            pattern = re.escape(name).replace(r"\*", r"\w*")
            assert re.search(rf"\b{pattern}\b", text), (page, name, path)


def test_names_are_found():
    """The pattern of names meets what it is for."""
    found = NAMED.findall((ROOT / "docs" / "architecture.md").read_text())
    assert len(found) > 20 and ("`ISAS`", "setup.py") in found
