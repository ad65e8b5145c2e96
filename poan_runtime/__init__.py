"""Super-resolve whole MR volumes tile by tile, without torch."""
