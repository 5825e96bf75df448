"""`python -m salver`."""

from salver.cli.main import main

main(prog_name="salver")
