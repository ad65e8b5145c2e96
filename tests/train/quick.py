"""`poan-train` in the least time: its arguments, and a call."""

from poan_train import cli

SMALL = {"channels": 4, "blocks": 1, "poab_after": 1, "embedding": 2}
"""What `small_networks` puts in place of poan-lite's sizes: a step takes milliseconds."""
QUICK = ["--contrast", "T2", "--scale", "2", "--batch", "2", "--patch", "8", "--log-every", "1"]
QUICK += ["--precision", "fp32"]


def run(*arguments):
    return cli.main([str(a) for a in arguments])
