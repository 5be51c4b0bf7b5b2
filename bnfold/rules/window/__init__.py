"""Operators that summarize a window, or an axis, of their input."""
