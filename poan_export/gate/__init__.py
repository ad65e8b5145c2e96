"""Is the exported file still PyTorch? Real tiles, hard cases, tolerances."""
