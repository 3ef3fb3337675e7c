"""Folders of the files that tests read."""

import pathlib

ROOT = pathlib.Path(__file__).parent.parent
"""The checkout."""

MODELS = ROOT / "models"
"""The small models and programs of this project."""

FIXTURES = ROOT / "tests" / "fixtures"
"""Small files that tests read."""

SHARED = ROOT.parent / "shared"
"""Real models of other people and test suites of other engines, where they are to be had; see tests/published.py."""
