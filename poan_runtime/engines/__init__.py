"""What runs a tile, on a CPU or a GPU."""
