"""Below a Transpose: affine nodes on the last axis are stated as one batch norm on the second.

    transpose(relu(s·x + t))  =  relu(s'·transpose(x) + t')

Keras on torch is exported with a Transpose in front of every convolution. Behind it, what finds no home is a
batch norm of images, which ONNX Runtime executes in the layout of its convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from bnfold.core.graph.view import View
from bnfold.core.planning.plan import Direction, Plan, at
from bnfold.core.planning.profit import is_blocked
from bnfold.core.planning.walk.merge import run_from
from bnfold.core.reasons import Reason, Refused, require
from bnfold.core.rule import Becomes


def below(view: View, seed: ir.Node) -> Plan:
    """Plan to state the run that begins at ``seed`` below a Relu and a Transpose; raises like ``go_up``."""
    with at(seed):
        require(not view.portable, Reason.NO_GAIN)
        run, whole = run_from(view, seed)
        require(len(run) > 1, Reason.NO_GAIN)
        path = list(_path(view, run[-1]))
        relu, transpose = (node for node in path if not view.is_noop(node))
        order = transpose.attributes.get_ints("perm", ())
        require(len(order) == whole.rank, Reason.NO_GAIN)
        turned = whole.rearranged(lambda array: array.transpose(order))
        require(is_blocked(view, turned, transpose.outputs[0]), Reason.NO_GAIN)
    plan = Plan(seed, Direction.MERGE, bypassed=run, path=[*run[1:], *path])
    plan.stays[transpose.outputs[0]] = turned
    plan.becomes[relu] = Becomes("Identity")
    plan.becomes[transpose] = Becomes("Transpose", {"perm": order}, then=Becomes("Relu"))
    plan.changed.extend(node.outputs[0] for node in path[:-1])
    return plan


def _path(view: View, node: ir.Node) -> Iterator[ir.Node]:
    """The Relu behind a node, the Transpose behind that, and the no-ops before either."""
    wanted = ["Relu", "Transpose"]
    for reader in _readers(view, node):
        if reader.op_type == wanted[0] and view.site(reader).version:
            wanted.pop(0)
        else:
            require(view.is_noop(reader), Reason.NO_GAIN)
        yield reader
        if not wanted:
            return
    raise Refused(Reason.NO_GAIN)


def _readers(view: View, node: ir.Node) -> Iterator[ir.Node]:
    """What reads a node, what reads that, and so on, as long as each has one reader in the same graph."""
    while not node.outputs[0].is_graph_output():
        uses = list(view.readers(node.outputs[0]))
        if len(uses) != 1 or uses[0][0].graph is not node.graph:
            return
        node = uses[0][0]
        yield node
