"""Along a run of affine nodes that find no home: they are stated as one, or as a Mul and an Add."""

from __future__ import annotations

import onnx_ir as ir

from bnfold.core.affine import Affine
from bnfold.core.graph.view import View
from bnfold.core.planning.leftover import leftover
from bnfold.core.planning.plan import Direction, Plan, at
from bnfold.core.reasons import Reason, require


def merge(view: View, seed: ir.Node) -> Plan:
    """Plan to state the whole run of affine nodes that begins at ``seed`` as one; raises like ``go_up``.

    Where no single node can say it (see ``leftover``), three or more become two.
    """
    with at(seed):
        require(not view.portable, Reason.NO_GAIN)
        run, affine = run_from(view, seed)
        require(len(run) > 1, Reason.NO_GAIN)
        single = leftover(affine, run[-1].outputs[0], view.facts, view.opset) is not None
    plan = Plan(seed, Direction.MERGE, bypassed=run[:-1], restated={run[-1]: affine}, path=run[1:])
    if len(run) > 2 and not single:
        scale = plan.bypassed.pop()
        plan.restated = {scale: affine.linear, run[-1]: affine.translation}
        plan.changed = [scale.outputs[0]]
    return plan


def run_from(view: View, seed: ir.Node) -> tuple[list[ir.Node], Affine]:
    """The affine nodes in a row from ``seed`` on, as far as one constant can hold them, and their map."""
    _, affine = view.read(seed)
    node, run = seed, [seed]
    while (behind := _next_of_run(view, node)) is not None:
        joined = (behind[1] @ affine).collapsed()
        if joined.volume > affine.volume + behind[1].volume:
            break
        node, affine = behind[0], joined
        run.append(node)
    return run, affine


def run_through(view: View, node: ir.Node) -> tuple[list[ir.Node], Affine]:
    """The run of affine nodes that ``node`` is part of, and its map."""
    start = node
    while (producer := view.data_producer(start)) is not None and view.is_affine(producer):
        behind = _next_of_run(view, producer)
        if behind is None or behind[0] is not start:
            break
        start = producer
    run, whole = run_from(view, start)
    while node not in run:  # one constant could hold no more
        behind = _next_of_run(view, run[-1])
        assert behind is not None, "the node is further along"
        run, whole = run_from(view, behind[0])
    return run, whole


def _next_of_run(view: View, node: ir.Node) -> tuple[ir.Node, Affine] | None:
    value = node.outputs[0]
    uses = list(view.readers(value))
    if value.is_graph_output() or len(uses) != 1 or uses[0][0].graph is not node.graph:
        return None
    reader = uses[0][0]
    return (reader, view.read(reader)[1]) if view.is_affine(reader) else None
