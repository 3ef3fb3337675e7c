from rnnfast.cli import main

main(prog_name="rnnfast")
