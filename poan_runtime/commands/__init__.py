"""One face per program."""
