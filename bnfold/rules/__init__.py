"""One file per operator algebra; every module below is found and imported, none is listed."""

from __future__ import annotations

from importlib import import_module
from pkgutil import walk_packages


def load() -> None:
    """Import every rule file, which registers its rules and examples."""
    for module in walk_packages(__path__, f"{__name__}."):
        import_module(module.name)
