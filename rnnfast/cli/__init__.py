"""The `rnnfast` command: info, check, run, bench and profile.

The exit status is 0 if all is well; 1 if `info` found something that is not supported, or `check` or `bench` a
difference; 2 if a file, an input or the usage is wrong.
"""

from __future__ import annotations

from typing import Any

try:
    import click
    import rich  # noqa: F401
except ImportError as e:
    raise SystemExit(f"rnnfast: the command line needs {e.name}: pip install 'rnnfast[cli]'") from None

import rnnfast
from rnnfast.cli.bench import bench
from rnnfast.cli.check import check
from rnnfast.cli.info import info
from rnnfast.cli.profile import profile
from rnnfast.cli.run import run
from rnnfast.errors import Error


class Commands(click.Group):
    """A group whose commands report rnnfast's errors in one line of stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Error as e:
            click.echo(f"rnnfast: {' '.join(str(e).split())}", err=True)
            ctx.exit(2)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(rnnfast.__version__, prog_name="rnnfast")
def main() -> None:
    """Inspect, check, run and measure ONNX models with recurrent networks on the CPU."""


for command in (info, check, run, bench, profile):
    main.add_command(command)
