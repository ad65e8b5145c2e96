"""`python -m poan_export` is `poan-export`."""

from poan_export.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
