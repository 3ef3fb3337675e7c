"""`python -m rnnfast` runs the `rnnfast` command."""

from rnnfast.cli import main

main(prog_name="rnnfast")
