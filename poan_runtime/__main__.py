"""`python -m poan_runtime` is `poan-run`."""

from poan_runtime.commands.run import main

if __name__ == "__main__":
    raise SystemExit(main())
