"""A map keeps each channel to itself: ``s·x + t`` is known where x is, and where s is 0.

With a threshold τ a batch norm with |γ/σ| ≤ τ counts as one with γ = 0, which holds β everywhere: by the
layer's own statistics that is the mean of what it computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bnfold.core.affine import Affine, Array
from bnfold.core.site import Site
from bnfold.pruning.operator import Channels, Cut, Mask, Operator, Removal, selected, size_along


@dataclass(frozen=True)
class Map(Operator):
    """One affine node.

    Attributes:
        index: its data input.
        affine: the map.
        flat: channels whose scale counts as 0, by the threshold.
    """

    index: int
    affine: Affine
    flat: Mask | None = None

    def data(self, site: Site) -> list[int]:
        return [self.index]

    def channels(self, site: Site, given: Mapping[int, Channels]) -> Channels:
        if self.index in given:
            inner = given[self.index]
        else:
            inner = Channels(1, np.full(size_along(site, site.input(self.index), 1), np.nan))
        scale, shift = self.affine.along(inner.axis, len(inner.known))
        known = np.where(scale == 0, shift, scale * inner.known + shift)
        if self.flat is not None:
            known = np.where(self.flat & (scale != 0), self._beta(site), known)
        return Channels(inner.axis, known)

    def cut(self, site: Site, removal: Removal) -> Cut:
        if site.node.op_type == "BatchNormalization":
            return Cut({i: selected(site.const(i), 0, removal.output) for i in range(1, 5)})
        others = [i for i in range(len(site.node.inputs)) if i != self.index and site.has(i)]
        edits = {}
        for other in others:
            const = site.const(other)
            axis = removal.axis - (len(site.out_shape()) - const.rank)
            if axis >= 0 and const.shape[axis] == len(removal.output):
                edits[other] = selected(const, axis, removal.output)
        return Cut(edits)

    def _beta(self, site: Site) -> Array:
        return site.const(2).exact
