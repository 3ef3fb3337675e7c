"""The `rnnfast` command: info, check, run, bench and profile.

Exit status: 0 all well; 1 `info` found something unsupported, `check` or `bench` a difference; 2 wrong file, input or
usage.
"""

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
    """A group whose commands report rnnfast's errors in one line."""

    def invoke(self, context):
        try:
            return super().invoke(context)
        except Error as e:
            click.echo(f"rnnfast: {' '.join(str(e).split())}", err=True)
            context.exit(2)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(rnnfast.__version__, prog_name="rnnfast")
def main():
    """Recurrent networks on CPUs: look into ONNX files, check, run and measure them."""


for command in (info, check, run, bench, profile):
    main.add_command(command)
