"""Folders of the files that tests read."""

import pathlib

ROOT = pathlib.Path(__file__).parent.parent
"""The checkout."""

MODELS = ROOT / "models"
"""The small models and programs of this project."""

FIXTURES = ROOT / "tests" / "fixtures"
"""Small files that tests read."""

SHARED = ROOT.parent / "shared"
"""Published models of other people and test suites of other engines, which are not part of the repository; tests that
need them are skipped where the folder is absent, see CONTRIBUTING.md."""
