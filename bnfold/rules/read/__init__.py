"""Operators that are an affine map of one input."""
