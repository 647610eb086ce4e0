"""`python -m cac_align.cli` is `cac-align`."""

from cac_align.cli.main import program

program()
