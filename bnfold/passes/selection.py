"""Which nodes a pass may touch: ``--only`` and ``--skip``."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import onnx_ir as ir

from bnfold.core.graph.graphs import graphs_of
from bnfold.core.graph.view import name_of
from bnfold.errors import SelectionError

Patterns = str | Sequence[str] | None


class Selection:
    """Nodes by name: those that match one of the globs ``only``, if any is given, and none of ``skip``."""

    def __init__(self, only: Patterns = None, skip: Patterns = None) -> None:
        self.only, self.skip = _patterns(only), _patterns(skip)
        self._checked = False

    def chosen(self, name: str) -> bool:
        """Whether a node of this name may be touched."""
        wanted = not self.only or any(fnmatchcase(name, glob) for glob in self.only)
        return wanted and not any(fnmatchcase(name, glob) for glob in self.skip)

    def check(self, model: ir.Model) -> None:
        """Hold the globs against the first model that is met; later passes may have removed what they name.

        Raises:
            SelectionError: a glob matches no node.
        """
        if self._checked or not (self.only or self.skip):
            return
        self._checked = True
        bodies = (*graphs_of(model), *model.functions.values())
        names = [name_of(node) for body in bodies for node in body]
        for option, globs in (("only", self.only), ("skip", self.skip)):
            for glob in globs:
                if not any(fnmatchcase(name, glob) for name in names):
                    raise SelectionError(
                        f"{option} {glob!r} matches no node of the model; use names from the report."
                    )


def _patterns(given: Patterns) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())
