"""The `rnnfast` command: info, check, run, quantize, serve, bench and profile.

The exit status is 0 if all is well; 1 if `info` found something that is not supported, `check` or `bench` a
difference, or `quantize` layers whose error is over the tolerance; 2 if a file, an input or the usage is wrong.
"""

from __future__ import annotations

import contextlib
import os
import sys
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
from rnnfast.cli.quantize import quantize
from rnnfast.cli.run import run
from rnnfast.cli.serve import serve
from rnnfast.errors import Error, printable


class Commands(click.Group):
    """A group whose commands report whatever fails in one line of stderr, with exit status 2."""

    def main(self, *args: Any, **extra: Any) -> Any:
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:  # None where stdout is closed
            reconfigure(errors="backslashreplace")  # what the terminal's encoding lacks, such as é in ASCII
        try:
            return super().main(*args, **extra)
        except Exception as e:  # help and version are printed before a command is invoked
            _report(e)
            sys.exit(2)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            try:
                return super().invoke(ctx)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        except click.UsageError as e:
            e.message = printable(e.message)  # type: ignore[misc]  # its own stubs call it final
            raise
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as e:
            _report(e)
            ctx.exit(2)


def _report(error: Exception) -> None:
    """Print one line about an error."""
    text = " ".join(str(error).split())
    if not isinstance(error, Error):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    with contextlib.suppress(OSError):  # stderr may be closed too
        click.echo(f"rnnfast: {printable(text)}", err=True)
    # What cannot be written to stdout would fail again when the interpreter ends.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(rnnfast.__version__, prog_name="rnnfast")
def main() -> None:
    """Inspect, check, run and measure ONNX models with recurrent networks on the CPU."""


for command in (info, check, run, quantize, serve, bench, profile):
    main.add_command(command)
