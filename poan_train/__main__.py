"""`python -m poan_train` is `poan-train`."""

from poan_train.start import train

if __name__ == "__main__":
    raise SystemExit(train())
