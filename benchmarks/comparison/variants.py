"""One model under every optimizer: made, checked against float64, and told apart by what is executed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import onnx
import peers
import twin

import bnfold
from bnfold import files

from .executed import executed, remaining, session, written
from .reference import Array, Reference, error_of
from .subjects import Subject

PEERS = [name for name in peers.PEERS if name != "ort-extended"]
ORIGINAL, TWIN, BNFOLD = "original", "twin", "bnfold"
LEVELS = ("all", "off")
# Beyond this part of an output's largest value, and ten times the original's own error, a result is wrong.
_WRONG, _WORSE = 1e-3, 10.0


def then_bnfold(peer: str) -> str:
    """What a peer's result is called after bnfold had its turn."""
    return f"{peer} → bnfold"


@dataclass
class Variant:
    """One model file that came of a subject, or what became of the attempt.

    Attributes:
        name: "original", "twin", an optimizer, or an optimizer with bnfold behind it.
        failure: why there is no model, or none that runs; empty if there is.
        wrong: whether it computes something else than the original.
        error: largest error against float64, as part of the output's largest value; None if unknown.
        batch_norms: how many there are.
        affine: how many other affine nodes that some weights could absorb.
        remaining: how many of both are still there when it runs, after ONNX Runtime has folded what it can.
        nodes: of all kinds, in the main graph.
        operators: how many of each operator.
        bytes: of the file and its external data.
        seconds: of the optimizer's whole process.
        peak: bytes of memory of that process.
        executed: what ONNX Runtime makes of it at each level; equal if the same kernels run.
    """

    name: str
    failure: str = ""
    wrong: bool = False
    error: float | None = None
    batch_norms: int = 0
    affine: int = 0
    remaining: int = 0
    nodes: int = 0
    operators: dict[str, int] | None = None
    bytes: int = 0
    seconds: float | None = None
    peak: int | None = None
    executed: dict[str, str] | None = None


@dataclass
class Workshop:
    """The folder in which one subject's variants are made."""

    subject: Subject
    folder: Path
    _known: dict[str, tuple[dict[str, str], int]] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Where a variant's model is."""
        if name == ORIGINAL:
            return self.subject.path
        return self.folder / name.replace(" → ", "-then-") / "model.onnx"

    def variants(self) -> list[Variant]:
        """Make and check what has not been made by the same programs from the same file already."""
        record, key = self.folder / "variants.json", self._source + _own_code()
        if record.exists():
            known = json.loads(record.read_text())
            if known["key"] == key:
                return [Variant(**each) for each in known["variants"]]
        self.folder.mkdir(parents=True, exist_ok=True)
        made = [self._checked(each) for each in self._make()]
        record.write_text(json.dumps({"key": key, "variants": [asdict(each) for each in made]}))
        return made

    def once(self, name: str, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> None:
        """Keep what ``make`` returns beside the variants, for as long as the key stays the same."""
        record = self.folder / f"{name}.json"
        if not record.exists() or json.loads(record.read_text()).pop("key", None) != key:
            record.write_text(json.dumps({"key": key, **make()}))

    @cached_property
    def inputs(self) -> Path:
        """What all variants are run on."""
        return self._reference.inputs

    @cached_property
    def _reference(self) -> Reference:
        return Reference(self.subject.path, self.folder, self._source)

    @cached_property
    def _source(self) -> str:
        digest = hashlib.sha256(self.subject.path.read_bytes())
        digest.update(json.dumps(peers.versions()).encode())
        return digest.hexdigest()[:16]

    def _make(self) -> Iterator[Variant]:
        yield Variant(ORIGINAL)
        yield self._written(TWIN, lambda: twin.twin(self.subject.path)[0])
        ran = peers.optimize("bnfold --no-verify", self.subject.path, self.path(BNFOLD))
        yield Variant(BNFOLD, self._told(ran.failure), seconds=ran.seconds, peak=ran.peak)
        for name in PEERS:
            ran = self._peer(name)
            yield Variant(name, self._told(ran.failure), seconds=ran.seconds, peak=ran.peak)
            if not ran.failure:
                after = then_bnfold(name)
                yield self._written(after, lambda name=name: bnfold.fold(self.path(name)).model)

    def _peer(self, name: str) -> peers.Ran:
        """Run another optimizer, once for each source: what it writes does not depend on bnfold."""
        folder = self.path(name).parent
        record = folder / f"{self._source}.ran"
        if record.exists():
            return peers.Ran(**json.loads(record.read_text()))
        shutil.rmtree(folder, ignore_errors=True)
        ran = peers.optimize(name, self.subject.path, self.path(name))
        if ran.seconds is not None:  # one that was stopped may have been unlucky
            record.write_text(json.dumps(asdict(ran)))
        return ran

    def _written(self, name: str, make: Callable[[], Any]) -> Variant:
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        try:
            files.save(make(), self.path(name))
        except Exception as error:
            return Variant(name, self._told(f"{type(error).__name__}: {error}"))
        return Variant(name)

    def _told(self, failure: str) -> str:
        """A failure as the page tells it: with files by their names below the folders of one machine."""
        for folder in (self.folder, self.subject.path.parent):
            failure = failure.replace(f"{folder}/", "")
        return failure[:200]

    def _checked(self, variant: Variant) -> Variant:
        if variant.failure:
            return variant
        path = self.path(variant.name)
        try:
            variant.batch_norms, variant.affine = twin.affine_nodes(path)
            variant.operators = _operators(path)
            variant.nodes, variant.bytes = sum(variant.operators.values()), _bytes(path)
            outputs = session(path, "off").run(None, self._reference.feeds)
            variant.executed, variant.remaining = self._executed(path)
        except Exception as error:
            variant.failure = self._told(f"ONNX Runtime: {str(error).splitlines()[0]}")
            return variant
        if variant.name != TWIN:
            self._compare(variant, outputs)
        return variant

    def _executed(self, path: Path) -> tuple[dict[str, str], int]:
        """What comes of a graph when it is loaded, asked once of each graph."""
        graph = written(path)
        if graph not in self._known:
            self._known[graph] = {level: executed(path, level) for level in LEVELS}, remaining(path)
        return self._known[graph]

    def _compare(self, variant: Variant, outputs: list[Array]) -> None:
        """Judge by float64; where onnx cannot compute that, by the original's own outputs."""
        truth, own = self._reference.truth, self._reference.own
        variant.error = None if truth is None else error_of(outputs, truth)
        if variant.name != ORIGINAL:
            reached = error_of(outputs, own if truth is None else truth)
            allowed = _WRONG if truth is None else max(_WRONG, _WORSE * error_of(own, truth))
            variant.wrong = not reached <= allowed


def _operators(path: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in onnx.load(path, load_external_data=False).graph.node:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return dict(sorted(found.items()))


def _bytes(path: Path) -> int:
    external = files.external_tensors(files.load(path))
    return path.stat().st_size + sum(Path(each).stat().st_size for each in {str(t.path) for t in external})


@cache
def _own_code() -> str:
    """A digest of all code that decides what bnfold makes of a model."""
    digest = hashlib.sha256()
    package, here = Path(bnfold.__file__).parent, Path(__file__).parent
    rooms = ("core", "rules", "branches", "pruning", "passes")
    made = [path for room in rooms for path in (package / room).rglob("*.py")]
    checks = [
        here.parent / "twin.py",
        *(here / f"{name}.py" for name in ("variants", "executed", "reference")),
    ]
    for path in sorted([*made, *checks]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
