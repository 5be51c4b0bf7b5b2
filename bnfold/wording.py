"""Text from a model, made fit to be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """A name from a model, with control characters escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
