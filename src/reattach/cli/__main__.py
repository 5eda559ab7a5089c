"""``python -m reattach.cli``."""

from reattach.cli import main

main()
