"""`python -m ig`."""

from ig.cli import main

main()
