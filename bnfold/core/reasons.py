"""Why a map cannot go somewhere: every reason is stated once, here, and shown everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum


class Reason(Enum):
    """A condition under which folding would be wrong, unproven or of no use.

    Each member holds what is the matter and what would change it.
    """

    # What a batch norm itself says.
    TRAINING_MODE = (
        "The node normalizes by the statistics of the current batch, so it is no fixed map.",
        "Export the model in inference mode, or let the node use its stored statistics: --to-inference.",
    )
    TRAINING_OUTPUTS = (
        "The node also returns the batch or running statistics, which only training needs.",
        "Export the model in inference mode, or let the node use its stored statistics: --to-inference.",
    )
    SPATIAL_STATISTICS = (
        "spatial=0 normalizes every position by itself, which is not a per-channel map.",
        "Export with spatial=1 or opset 9 and later.",
    )
    NOT_FINITE = (
        "A parameter of the map, or a weight it meets, is infinite or not a number.",
        "Repair the statistics or weights; they are broken in the original too.",
    )
    BAD_VARIANCE = (
        "Variance plus epsilon is not positive, so its square root has no reciprocal.",
        "Repair the running variance; it is broken in the original too.",
    )
    NOT_CONSTANT = (
        "A value that would have to change is computed at run time.",
        "Nothing, unless the exporter can write it as a constant.",
    )
    OVERRIDABLE = (
        "The constant is also listed as a graph input, so a caller may replace it at run time.",
        "Pass --freeze-initializers if no caller does.",
    )
    UNKNOWN_VERSION = (
        "bnfold does not know this version of the operator.",
        "Convert the model to a newer opset, or update bnfold if the opset is newer than it.",
    )
    NOT_AFFINE = (
        "The operator is not an affine map of its input here.",
        "Nothing: it is not a batch norm.",
    )
    NOT_FLOAT = (
        "The tensor is not floating point, where scaling and shifting round or wrap.",
        "Nothing: integers are not scaled exactly.",
    )
    BROADCASTS = (
        "The constant enlarges the tensor it is combined with, which a per-channel map never does.",
        "Nothing, unless the constant is written in the tensor's own shape.",
    )

    # What an operator can take.
    NONLINEAR = (
        "The operator is nonlinear: no scale or shift passes it exactly.",
        "Nothing: no exact equation exists.",
    )
    NO_RULE = (
        "No rule knows how a map passes this operator.",
        "A rule file for it, if an exact equation exists.",
    )
    UNKNOWN_SHAPE = (
        "The shape that would prove which axis is which is not known.",
        "Declare the shapes of the graph's inputs.",
    )
    MIXED_AXES = (
        "The map varies along an axis on which the weights, or the operand, do not.",
        "Nothing: no such weights exist.",
    )
    PADDED_SHIFT = (
        "Zero padding is inserted after the shift, so the shift is not constant at the border.",
        "A layer without padding, or a map without shift.",
    )
    EXTRAPOLATES = (
        "The operator fills what lies outside its input with a fixed value, which the map would change.",
        "Another coordinate transformation mode.",
    )
    SHIFT_VARIES = (
        "The layer sums different taps at different positions, so a shift is not constant behind it.",
        "A map without shift.",
    )
    NEEDS_NO_SHIFT = (
        "Only a pure scale passes this operator, and the map also shifts.",
        "A map without shift.",
    )
    NEGATIVE_SCALE = (
        "A scale is negative, which turns the activation around.",
        "Nothing: the sign is part of the trained weights.",
    )
    ZERO_SCALE = (
        "A scale is zero, and the operator's own constant would have to be divided by it.",
        "Nothing: what a zero scale lets through cannot be told from its result.",
    )
    OTHER_OPERAND = (
        "The map arrives at an input that cannot take it, such as a weight computed at run time.",
        "Nothing: the operator is not linear in that input alone.",
    )
    BRANCHES_DIFFER = (
        "Branches that meet here carry different maps.",
        "The same map on every branch.",
    )
    EPSILON = (
        "The normalization divides by a spread plus epsilon, and a scale in front changes the spread alone.",
        "A map without scale.",
    )
    EQUATION = (
        "The equation names an index twice in one operand, or its indices are not those of the operands.",
        "An equation in which every operand names each of its axes once.",
    )
    DROPS = (
        "The operator drops values at random (training mode), so a shift or its scale is not kept.",
        "Export the model in inference mode.",
    )
    ROUNDS = (
        "The cast changes the type, so values are rounded between the map and the weights.",
        "Export in one floating-point type.",
    )

    # Quantized tensors.
    QUANTIZED_BETWEEN = (
        "The tensor is quantized between the map and the layer: integers are already rounded and clipped.",
        "Fold first, then quantize; a positive scale alone passes a DequantizeLinear.",
    )
    QUANTIZED_AXIS = (
        "The constant has one quantization scale for all that the map scales differently.",
        "Quantize per channel (opset 13 and later), along the layer's output channels.",
    )
    QUANTIZED_SHIFT = (
        "A quantized constant has steps too coarse to be shifted exactly.",
        "Keep the constant in floating point, or a bias in int32.",
    )
    QUANTIZED_STEP = (
        "The quantization's scale would be rounded, which may move a value by a whole step.",
        "A scale that is a power of two, or fold first and then quantize.",
    )
    QUANTIZED_SIGN = (
        "A quantization scale would not be positive, which integer kernels and other runtimes rule out, "
        "and the integers cannot be turned around within their type.",
        "Quantize symmetrically, with zero point 0 and without the lowest integer.",
    )
    QUANTIZED_BIAS = (
        "The bias is int32 in steps of the input's scale times the weight's, which would no longer hold.",
        "Keep the bias in floating point.",
    )
    INTEGER_ARITHMETIC = (
        "The tensor is computed in integers, or turned into them, with a rounding that no map passes.",
        "Fold first, then quantize.",
    )

    # Where branches meet.
    NOT_LINEAR = (
        "An activation or another operator that is not linear stands between the layer and the sum.",
        "Nothing: the branches are not one linear map.",
    )
    WINDOWS_DIFFER = (
        "The layers do not look at their input at the same positions (stride, borders, channels).",
        "Equal strides, and padding that keeps the kernels' centres together.",
    )
    PADDED_BETWEEN = (
        "The second layer pads with zeros where the first one, continued beyond the border, is not zero.",
        "A second layer without padding, or a first one with a kernel of one element.",
    )
    MORE_WORK = (
        "As one layer they would take more multiplications than apart.",
        "Nothing: apart they are cheaper.",
    )

    # Where channels are removed.
    GROUPED = (
        "The layer works in groups, each of which would have to lose the same number of channels.",
        "A layer without groups, or a depthwise one.",
    )
    STILL_READ = (
        "The channel holds one value, but is added to or multiplied with one that varies.",
        "The same channel constant on every branch.",
    )
    LAST_CHANNEL = (
        "The tensor would be left without a single channel.",
        "Nothing: one channel has to stay.",
    )

    # What the graph allows.
    GRAPH_INPUT = (
        "The tensor is a graph input: there is no operator in front of it to take the map.",
        "Nothing in this direction.",
    )
    GRAPH_OUTPUT = (
        "The tensor that would change is a graph output, whose value is promised to the caller.",
        "Remove that output if no caller needs it.",
    )
    OTHER_READER = (
        "Another operator reads the tensor that would change.",
        "A map on every reader's path, or a layer of its own for this one.",
    )
    INVERSE_FOR_SIBLINGS = (
        "The tensor's other readers would have to undo the map, which divides by its scales and rounds anew.",
        "A layer of its own for this map.",
    )
    SUBGRAPH = (
        "The map would have to cross the border of an If, Loop or Scan body.",
        "Nothing, unless the body is inlined.",
    )
    IN_FUNCTION = (
        "The node stands in a model-local function, and would not fold if that were inlined.",
        "Inline the function to see what is in the way: onnx.inliner.inline_local_functions.",
    )
    NO_READER = ("Nothing reads the result.", "Nothing: the node is dead and costs nothing.")
    OVERFLOWS = (
        "A folded weight would be infinite in the type it is stored in.",
        "Store the layer in a wider type.",
    )
    PRECISION_LOST = (
        "Folded weights would lose more than 2 ulp of their channel's largest magnitude to underflow.",
        "Store the layer in a wider type.",
    )

    # What is allowed but of no use.
    COSTS_A_NODE = (
        "The shift would need a node of its own, so nothing would be gained.",
        "A layer with a bias, or an Add behind it.",
    )
    NO_GAIN = (
        "The map could move, but the graph would not become smaller.",
        "Nothing: it is as small as it gets.",
    )
    DENSE_BIAS = (
        "The constant is the bias of the layer in front of it and costs what a bias costs.",
        "Nothing: it is in its place.",
    )
    ACTIVATION_TURNS = (
        "The activation would have to become a Max or Min with constants, which costs more than it saves.",
        "Nothing: runtimes run an activation with the layer in front of it, but not a Max.",
    )
    FUSED_BY_RUNTIME = (
        "The constant belongs to an activation, normalization or attention that runtimes run as one kernel.",
        "Nothing: taking it out would make the model slower.",
    )
    EXCLUDED = ("--only or --skip excludes the node.", "Change --only or --skip.")

    @property
    def text(self) -> str:
        """What is the matter, in one sentence."""
        return self.value[0]

    @property
    def unblock(self) -> str:
        """What would make the fold possible, in one sentence."""
        return self.value[1]


class Refused(Exception):  # noqa: N818  a refusal is an answer, not an error
    """A map cannot go this way; says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason.text


_silenced: ContextVar[frozenset[Reason]] = ContextVar("silenced", default=frozenset())


def require(condition: bool, reason: Reason) -> None:
    """State a condition of an equation.

    Raises:
        Refused: if the condition does not hold.
    """
    if not condition and not is_silenced(reason):
        raise Refused(reason)


def is_silenced(reason: Reason) -> bool:
    """Whether conditions of this kind are ignored, which only a test does."""
    return reason in _silenced.get()


@contextmanager
def silenced(*reasons: Reason) -> Iterator[None]:
    """Ignore these conditions, to show in a test that each of them bears load."""
    token = _silenced.set(frozenset(reasons))
    try:
        yield
    finally:
        _silenced.reset(token)
