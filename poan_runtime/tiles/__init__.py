"""A slice cut into tiles and put together again."""
