"""Which model runs, and whether it is the file that was checked."""
