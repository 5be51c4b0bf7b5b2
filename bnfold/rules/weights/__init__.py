"""Layers whose weights absorb a map."""
