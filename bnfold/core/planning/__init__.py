"""Where a map can go, and whether that is worth it; nothing here changes a model."""
