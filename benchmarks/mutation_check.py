"""Change the rules and the planner in small ways, one at a time, and see whether the tests notice.

    python benchmarks/mutation_check.py --mutants 300 --seed 0 [-j 1] [--minutes 40] [--survivors] [--write]

A mutant is one change of one expression in ``bnfold/core`` or ``bnfold/rules``: a comparison, an
arithmetic operator, a boolean, a number, a condition or a statement that is left out. A mutant is drawn by
a hash of the seed and of what it changes, so that changing one function draws no other mutants elsewhere.
Each runs in a fork of this process, which has loaded everything but bnfold, with the tests that a mutant
of its room is most likely to fail first, until one fails; one that computes three times as long as the
unchanged code counts as noticed. Results are kept as they come, so that the script goes on where it was
stopped; --survivors asks the survivors again, after new tests. With --write the page docs/mutation.md gets
the figures and every survivor, each with what ``results/mutation_explained.json`` says of it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import hashlib
import importlib.abc
import importlib.util
import io
import itertools
import json
import math
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import ModuleType

import pages

ROOT = Path(__file__).parent.parent
DATA = ROOT / "benchmarks" / "results" / "mutation.json"
EXPLAINED = ROOT / "benchmarks" / "results" / "mutation_explained.json"
TIMEOUT = 900

# Examples are tests themselves; reasons are texts.
LEFT_OUT = {"reasons.py", "example.py", "__init__.py"}

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.MatMult: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        path: of the file, from the root of the project.
        place: the number of the change among all changes of the file.
        name: as the results call it, wherever it stands in the file: path, function, before, after, and
            a number if the function has several that are alike.
    """

    path: str
    place: int
    name: str

    def order(self, seed: int) -> bytes:
        """Where the seed puts it among all mutants."""
        return hashlib.sha256(f"{seed} {self.name}".encode()).digest()


# ---------------------------------------------------------------- what can be changed


def changes(node: ast.AST) -> Iterator[Callable[[], ast.AST | None]]:
    """Every way to change one node: each returns the new one, or None to leave a statement out."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        yield lambda: _with(node, ops=[COMPARISONS[type(node.ops[0])](), *node.ops[1:]])
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield lambda: _with(node, op=ARITHMETIC[type(node.op)]())
    if isinstance(node, ast.BoolOp):
        yield lambda: _with(node, op=ast.And() if isinstance(node.op, ast.Or) else ast.Or())
        yield from ((lambda kept=kept: kept) for kept in node.values)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield lambda: node.operand
    if isinstance(node, (ast.If, ast.IfExp)):
        yield lambda: _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        value = (not node.value) if isinstance(node.value, bool) else node.value + 1
        yield lambda: ast.Constant(value)
    if isinstance(node, (ast.Expr, ast.AugAssign)) and not _is_text(node):
        yield lambda: None
    if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield lambda: _with(node, value=ast.Constant(None))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    twin = copy.copy(node)
    for name, value in fields.items():
        setattr(twin, name, value)
    return twin


def sites(tree: ast.Module) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Every node of a file's functions with where it hangs: its parent, the field, the place in a list."""
    for parent in _code(tree):
        for field, value in ast.iter_fields(parent):
            if field in ("annotation", "returns", "decorator_list", "type_params", "keywords"):
                continue
            children = value if isinstance(value, list) else [value]
            for place, child in enumerate(children):
                if isinstance(child, (ast.expr, ast.stmt)):
                    yield parent, field, place if isinstance(value, list) else None, child


def _code(tree: ast.Module) -> Iterator[ast.AST]:
    """The inner nodes of a file's functions and of its tables, without its examples."""
    pending: list[ast.AST] = [top for top in tree.body if not _is_example(top)]
    while pending:
        node = pending.pop(0)
        if isinstance(node, (ast.expr, ast.stmt)):
            yield node
        pending.extend(
            child
            for name, value in ast.iter_fields(node)
            if name not in ("annotation", "returns", "decorator_list")
            for child in (value if isinstance(value, list) else [value])
            if isinstance(child, ast.AST)
        )


def _is_example(node: ast.AST) -> bool:
    decorators = [ast.unparse(each) for each in getattr(node, "decorator_list", [])]
    return any(each.startswith(("folds", "refuses")) for each in decorators)


def described(source: str) -> list[str]:
    """The changes of a file, in words that do not depend on where in the file they stand."""
    tree, found, seen = ast.parse(source), [], Counter[str]()
    functions = _functions(tree)
    for *_, child in sites(tree):
        for change in changes(child):
            new = change()
            after = "nothing" if new is None else _short(ast.unparse(new))
            text = f"{functions.get(child, 'module')}: {_short(ast.unparse(child))} → {after}"
            seen[text] += 1
            found.append(text if seen[text] == 1 else f"{text} ({seen[text]})")
    return found


def mutated(source: str, wanted: int) -> str:
    """The file with the change of this number."""
    tree = ast.parse(source)
    every = ((site, change) for site in sites(tree) for change in changes(site[-1]))
    (parent, field, place, _), change = next(itertools.islice(every, wanted, None))
    _put(parent, field, place, change() or ast.Pass())
    return ast.unparse(ast.fix_missing_locations(tree))


def _functions(tree: ast.AST, inside: str = "") -> dict[ast.AST, str]:
    """The function, with its class, that every node is in."""
    found = {}
    for child in ast.iter_child_nodes(tree):
        name = inside
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            name = f"{inside}.{child.name}".lstrip(".")
        found |= ({child: inside} if inside else {}) | _functions(child, name)
    return found


def _put(parent: ast.AST, field: str, place: int | None, child: ast.AST) -> None:
    if place is None:
        setattr(parent, field, child)
    else:
        getattr(parent, field)[place] = child


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:77] + "..."


def drawn(count: int, seed: int) -> list[Mutant]:
    """As many mutants, of all there are, as a seed draws."""
    files = [*ROOT.glob("bnfold/core/**/*.py"), *ROOT.glob("bnfold/rules/**/*.py")]
    everything = [
        Mutant(path := str(file.relative_to(ROOT)), place, f"{path} {text}")
        for file in files
        if file.name not in LEFT_OUT
        for place, text in enumerate(described(file.read_text(encoding="utf-8")))
    ]
    return sorted(everything, key=lambda mutant: mutant.order(seed))[:count]


# ---------------------------------------------------------------- running the tests


class Replaced(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from other source."""

    def __init__(self, name: str, source: str, path: Path) -> None:
        self.name, self.source, self.path = name, source, path

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        """Only the mutated module is ours."""
        return (
            importlib.util.spec_from_loader(name, self, origin=str(self.path)) if name == self.name else None
        )

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed source; ``inspect`` still sees the file."""
        module.__file__ = str(self.path)
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


def tests_for(mutant: Mutant) -> list[list[str]]:
    """Runs of pytest, the likeliest to fail first."""
    stem = Path(mutant.path).parent.name + "." + Path(mutant.path).stem
    rules = "tests/test_rules.py"
    planner = [f"tests/test_{name}.py" for name in ("planner", "sharing", "parts", "functions")]
    files = [f"tests/test_{name}.py" for name in ("constants", "rounding", "quantized", "exporters")]
    random_graphs = ["tests/test_random_graphs.py", "tests/test_placement.py"]
    if mutant.path.startswith("bnfold/rules"):
        return [[rules, "-k", stem], planner, files, random_graphs]
    return [planner, files, [rules, "-k", "outputs_stay or untouched"], random_graphs]


def survives(mutant: Mutant) -> bool:
    """Run the tests on a mutant, in this process; place -1 is the file as it is."""
    import pytest

    path = ROOT / mutant.path
    source = path.read_text(encoding="utf-8")
    if mutant.place >= 0:
        source = mutated(source, mutant.place)
    name = ".".join(Path(mutant.path).with_suffix("").parts)
    sys.meta_path.insert(0, Replaced(name, source, path))
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--assert=plain",
        "--tb=no",
        "-W",
        "ignore::pytest.PytestWarning",
    ]
    for chosen in tests_for(mutant):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            # 5: no test was chosen, as for a file that registers no rule.
            if pytest.main([*options, *chosen]) not in (0, 5):
                return False
    return True


def outcome(mutant: Mutant, seconds: int) -> tuple[str, float]:
    """Fork, and wait for the verdict: "survived", "killed" or "timeout", and the seconds of computing."""
    child = os.fork()
    if child == 0:
        os.setsid()
        code = 1
        with contextlib.suppress(BaseException):
            # Of the processor, not of the clock: how busy the machine is decides nothing.
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            code = 0 if survives(mutant) else 1
        os._exit(code)
    _, status, used = os.wait4(child, 0)
    took = used.ru_utime + used.ru_stime
    if os.WIFSIGNALED(status) and took >= seconds - 1:
        return "timeout", took
    return "survived" if status == 0 else "killed", took


def preload() -> None:
    """Load what every test needs, so that a fork has it; nothing of bnfold."""
    import hypothesis  # noqa: F401
    import onnx.reference  # noqa: F401
    import onnx_ir.passes.common  # noqa: F401
    import onnxruntime  # noqa: F401
    import pytest  # noqa: F401
    import scipy.optimize  # noqa: F401

    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]
    os.chdir(ROOT)
    assert "bnfold" not in sys.modules


def main() -> None:
    """Print one line per survivor, and the share of mutants that the tests notice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-j", "--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=40.0, help="stop after so long; run again to go on")
    parser.add_argument("--survivors", action="store_true", help="ask the survivors again")
    parser.add_argument("--write", action="store_true", help="put the result into docs/mutation.md")
    asked = parser.parse_args()
    mutants, until = drawn(asked.mutants, asked.seed), time.monotonic() + 60 * asked.minutes
    known, asked_again = stored(DATA), "survived" if asked.survivors else None
    left = [mutant for mutant in mutants if known.get(mutant.name) in (None, asked_again)]
    longest = unchanged() if left else {}
    lock = Lock()

    def judge(mutant: Mutant) -> None:
        if time.monotonic() < until:
            what, _ = outcome(mutant, longest[mutant.path[7:11]])
            if what == "survived":
                print(mutant.name, flush=True)
            with lock:
                known[mutant.name] = what
                keep(known)

    with ThreadPoolExecutor(asked.jobs) as pool:
        list(pool.map(judge, left))
    lines = report(mutants, known, stored(EXPLAINED))
    print("\n".join(lines))
    if asked.write:
        keep({mutant.name: known[mutant.name] for mutant in mutants if mutant.name in known})
        pages.write("mutation.md", "mutation_check", "\n".join(lines))


def unchanged() -> dict[str, int]:
    """How long a mutant of each room may run: three times as long as the code as it is."""
    preload()
    longest = {}
    for room in ("core/planning/plan.py", "rules/weights/conv.py"):
        what, took = outcome(Mutant(f"bnfold/{room}", -1, ""), TIMEOUT)
        if what != "survived":
            sys.exit(f"the tests fail without any change of {room}: nothing could be told from them.")
        longest[room[:4]] = math.ceil(3 * took)
    return longest


def stored(path: Path) -> dict[str, str]:
    """What a file of results says of each mutant, none if there is no file yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def keep(known: dict[str, str]) -> None:
    """Write what is known so far."""
    text = json.dumps(known, indent=1, ensure_ascii=False, sort_keys=True)
    DATA.write_text(text + "\n", encoding="utf-8")


def report(mutants: list[Mutant], known: dict[str, str], explained: dict[str, str]) -> list[str]:
    """What came out, in Markdown."""
    judged = {mutant.name: known[mutant.name] for mutant in mutants if mutant.name in known}
    counts = Counter(judged.values())
    killed = counts["killed"] + counts["timeout"]
    head = f"{len(judged)} mutants of {len(mutants)} drawn: {killed} noticed, which is "
    head += f"{100 * killed / max(1, len(judged)):.1f} % ({counts['timeout']} by running on and on), "
    head += f"{counts['survived']} survived."
    survivors = sorted(name for name, what in judged.items() if what == "survived")
    return [head, "", *(f"* `{name}`: {explained.get(name, 'not explained')}" for name in survivors)]


if __name__ == "__main__":
    main()
