"""The entry point of ``python -m freedive``."""

from freedive.cli import main

main()
