"""Judging what was measured, in words and pictures."""
