"""Packages that only some of this needs, imported when it does."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from bnfold.errors import MissingDependencyError


def optional(module: str, extra: str) -> Any:
    """Import a module that comes with one of bnfold's extras.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise MissingDependencyError(
            f"{package} is not installed; run: pip install 'bnfold[{extra}]'"
        ) from error
