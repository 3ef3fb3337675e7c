"""Tables and lines for people to read. Names from models are never read as markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Width of output that does not go to a terminal, so that names are not wrapped in a log.
FILE_WIDTH = 160


def console() -> Console:
    """The console on stdout."""
    screen = Console(highlight=False, markup=False, soft_wrap=True)
    if not screen.is_terminal:
        screen.width = FILE_WIDTH
    return screen


def table(title: str | None, columns: Mapping[str, str], rows: Iterable[tuple[str, ...]]) -> Table:
    """A table of rows of texts; `columns` has for each header "left" or "right", the side its texts are aligned to."""
    result = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    for header, justify in columns.items():
        result.add_column(header, justify="right" if justify == "right" else "left")
    for row in rows:
        result.add_row(*map(Text, row))
    return result
