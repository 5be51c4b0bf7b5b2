"""Models in and out: read with every defect named, written atomically, never damaged."""

from bnfold.files.reading import constant_bytes, external_tensors, from_proto, load
from bnfold.files.writing import save, staged, write

__all__ = ["constant_bytes", "external_tensors", "from_proto", "load", "save", "staged", "write"]
