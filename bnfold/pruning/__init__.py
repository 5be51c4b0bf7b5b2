"""Channels that always hold one value are carried into their readers and removed."""
