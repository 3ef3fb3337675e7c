"""Tables and lines for people to read; what models name is never taken for markup."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Of what does not go to a terminal: names are not to be folded in a log.
FILE_WIDTH = 160


def console():
    screen = Console(highlight=False, markup=False, soft_wrap=True)
    if not screen.is_terminal:
        screen.width = FILE_WIDTH
    return screen


def table(title, columns, rows):
    """columns: header -> "left" or "right"; rows: tuples of texts."""
    result = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    for header, justify in columns.items():
        result.add_column(header, justify=justify)
    for row in rows:
        result.add_row(*map(Text, row))
    return result
