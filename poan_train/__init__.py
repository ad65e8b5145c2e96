"""Networks, degradation, data, training and evaluation (torch)."""
