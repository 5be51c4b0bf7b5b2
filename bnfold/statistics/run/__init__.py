"""Measuring: the model that measures itself, and shards of data that merge."""
