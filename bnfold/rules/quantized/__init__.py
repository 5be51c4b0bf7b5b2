"""Operators between floating point and integers."""
