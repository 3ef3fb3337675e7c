"""Where the tests find files."""

import pathlib

ROOT = pathlib.Path(__file__).parent.parent
"""The checkout."""

MODELS = ROOT / "models"
"""The small models and programs of this project."""

FIXTURES = ROOT / "tests" / "fixtures"
"""Files that tests need."""

SHARED = ROOT.parent / "shared"
"""Real models of other people, and test suites of other engines: they lie beside the checkout where they are to be had."""
