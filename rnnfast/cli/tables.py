"""The output of commands: tables and lines for people to read, JSON for programs.

Names from models are printed as they are where they print at all: they are no markup, and a control character is shown
as an escape sequence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rnnfast.errors import printable

# Width of output that does not go to a terminal, so that names are not wrapped in a log.
FILE_WIDTH = 160


class Screen(Console):
    """The console on stdout."""

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=True)
        if not self.is_terminal:
            self.width = FILE_WIDTH

    def on_broken_pipe(self) -> None:
        """Leave the report to the command: rich's own ends the process without a word."""
        raise

    def write_line(self, text: str) -> None:
        """Print one line."""
        self.print(Text(printable(text)))


def table(title: str | None, columns: Mapping[str, str], rows: Iterable[tuple[str, ...]]) -> Table:
    """A table of rows of texts; `columns` has for each header "left" or "right", the side its texts are aligned to."""
    result = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    for header, justify in columns.items():
        result.add_column(header, justify="right" if justify == "right" else "left")
    for row in rows:
        result.add_row(*(Text(printable(cell)) for cell in row))
    return result


def print_json(facts: Any) -> None:
    """Print JSON in ASCII. Of the characters that do not print json.dumps escapes all but DEL."""
    click.echo(json.dumps(facts, indent=2).replace("\x7f", "\\u007f"))


def strict(row: dict[str, Any]) -> dict[str, Any]:
    """The row with NaN and infinity as text, because JSON has no such numbers."""
    return {key: str(v) if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
