"""What runs a tile, on a CPU or a GPU."""

PRECISIONS = ("auto", "fp32", "bf16")
"""What ``--precision`` may name; here, where a command line reads it without loading an engine."""
