"""Tiles on servers that speak KServe v2 (the Open Inference Protocol), as Triton does."""
