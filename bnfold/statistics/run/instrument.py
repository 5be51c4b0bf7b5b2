"""A model that measures itself: per batch norm, the mean and variance of what it normalizes.

No activation is copied out of the runtime, and nodes that only the model's own outputs need are gone.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bnfold.statistics.graph.layer import Layer
from bnfold.statistics.run import quick
from bnfold.statistics.run.probe import Probing
from bnfold.statistics.run.tap import Tap, Writer


def instrument(
    model: ir.Model, layers: Sequence[Layer], *, training: bool = False, exact: Set[str] = frozenset()
) -> list[Tap]:
    """Let ``model`` itself return the moments of each layer's input, and nothing else.

    Args:
        model: is changed in place.
        layers: what to measure.
        training: normalize by the moments of each batch, as in training, instead of the stored ones.
        exact: the outputs of layers that are not to be measured the quick way.
    """
    values = {value.name: value for node in model.graph for value in node.outputs}
    values.update((value.name, value) for value in model.graph.inputs)
    write = Writer(model)
    model.graph.outputs.clear()
    groups = quick.groups(model, [] if training else [each for each in layers if each.output not in exact])
    done = {place.layer.output for group in groups for place in group}
    taps: list[Tap] = []
    for layer in layers:
        if layer.output in done:
            continue
        probing = Probing(write, layer, values[layer.tensor])
        taps.append(probing.attach())
        if training:
            values[layer.output].replace_all_uses_with(probing.normalized())
    # Last: the runtime works its way back from the last result, so that every layer is measured
    # as soon as it is computed, and still in the cache.
    taps += [quick.attach(group, values, write) for group in groups]
    model.graph.sort()
    RemoveUnusedNodesPass()(model)
    return taps
