"""``python -m metarec`` is the program `metarec`."""

from metarec.cli import main

main()
