"""Write ``docs/rules.md`` from the rules: equations, what folds, and what is refused for which reason.

python benchmarks/rules_page.py
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from bnfold.core.example import EXAMPLES, Example
from bnfold.core.reasons import Reason
from bnfold.core.rule import Registered, registered

TARGET = Path(__file__).parent.parent / "docs" / "rules.md"
PREFIX = "bnfold.rules."

HEAD = """\
# Rules

Written by `python benchmarks/rules_page.py` from the files in `bnfold/rules`; do not edit.

A rule knows one operator by up to three equations. **read**: the node is itself an affine map.
**pull**: it takes a map from behind, `out ∘ op = op′ ∘ rest`. **push**: it takes a map from in front,
`op ∘ into = rest ∘ op′`. What is `rest` goes on to the node's inputs or readers. Each example below is a
test: it folds, or is refused for the reason stated and would go wrong without it.
"""

REASONS = """\
## Reasons

What `bnfold explain` says of each.

| reason | what is the matter | what would help |
|---|---|---|
"""


def page() -> str:
    """The whole page."""
    modules = sorted({entry.module for entry in registered().values()} | set(map(home, EXAMPLES)))
    sections = ["\n".join(section(module)) for module in modules]
    reasons = "\n".join(f"| `{reason.name}` | {reason.text} | {reason.unblock} |" for reason in Reason)
    return "\n".join([HEAD, *sections, REASONS + reasons + "\n"])


def section(module: str) -> Iterator[str]:
    """The lines on one rule file."""
    yield f"## {module.removeprefix(PREFIX).replace('.', '/')}\n"
    paragraphs = inspect.cleandoc(import_module(module).__doc__ or "").split("\n\n")
    yield from (f"{as_code(text) if '   ' in text else text}\n" for text in paragraphs)
    operators = [operator(name, entry) for name, entry in registered().items() if entry.module == module]
    if operators:
        yield "| operator | versions | verbs |\n|---|---|---|"
        yield from (*operators, "")
    examples = [example for example in EXAMPLES if home(example) == module]
    if folded := [shown(example) for example in examples if example.reason is None]:
        yield "Folds: " + ", ".join(folded) + ".\n"
    refused = [example for example in examples if example.reason is not None]
    if refused:
        yield "| refuses | reason | why |\n|---|---|---|"
        yield from (refusal(example) for example in refused)
        yield ""


def as_code(text: str) -> str:
    """Equations keep their columns."""
    return f"```text\n{textwrap.dedent(text)}\n```"


def home(example: Example) -> str:
    """The module an example is written in."""
    return example.build.__module__


def operator(name: str, entry: Registered) -> str:
    """A row of the table of operators."""
    versions = ", ".join(map(str, sorted(entry.versions)))
    link = f"[{name}](https://onnx.ai/onnx/operators/onnx__{name}.html)"
    return f"| {link} | {versions} | {', '.join(entry.verbs)} |"


def shown(example: Example) -> str:
    """An example's name, and what it leaves behind."""
    left = ", ".join(example.leaves)
    return f"`{example.build.__name__}`" + (f" (leaves {left})" if left else "")


def refusal(example: Example) -> str:
    """A row of the table of refusals."""
    assert example.reason is not None
    return f"| `{example.build.__name__}` | `{example.reason.name}` | {example.reason.text} |"


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
