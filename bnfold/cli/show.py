"""The small commands: ``verify``, ``explain``, ``rules``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bnfold.wording import printable

if TYPE_CHECKING:
    from bnfold.verification import Verdict


@click.command(short_help="Show that two models are equal.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--inputs", type=click.Path(path_type=Path), help="A .npz with the inputs, by name.")
@click.option("--exact", is_flag=True, help="Say which of both is closer to A computed in float64.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Measure the noise floor too.")
def verify(a: Path, b: Path, inputs: Path | None, exact: bool, as_json: bool, verbose: bool) -> None:
    """Show that model B gives the outputs of model A; exit 1 if it does not, or nobody can tell."""
    from bnfold import render, verification

    verdict = verification.verify(a, b, inputs=inputs, noise=verbose, exact=exact)
    if as_json:
        click.echo(json.dumps(verdict.to_dict(), indent=1))
    else:
        render.on_terminal([render.errors(verdict)] if verdict.outputs else [])
        for line in _nearer(verdict) if exact else ():
            click.echo(printable(line))
        click.echo(printable(verdict.summary))
    sys.exit(0 if verdict.ok else 1)


def _nearer(verdict: Verdict) -> Iterator[str]:
    """Which model is closer to the truth, output by output."""
    for name, (a, b) in verdict.from_truth.items():
        closer = "both are as close" if a == b else f"{'A' if a < b else 'B'} is closer"
        yield f"{name}: A is {a:.3g} ulp from A in float64, B is {b:.3g}; {closer}."
    if not verdict.from_truth:
        yield "No output could be computed in float64."


@click.command(short_help="Explain why a batch norm stays.")
@click.argument("reason", required=False)
def explain(reason: str | None) -> None:
    """Explain why a batch norm stays; without REASON, list every reason there is."""
    from bnfold.core.reasons import Reason

    if reason is None:
        for each in Reason:
            click.echo(f"{each.name}: {each.text}")
        return
    found = Reason.__members__.get(reason.upper().replace("-", "_"))
    if found is None:
        raise click.UsageError(f"there is no reason {reason!r}; `bnfold explain` lists them all.")
    click.echo(f"{found.name}\n{found.text}\nWhat would help: {found.unblock}")


@click.command(short_help="List the operators bnfold knows.")
def rules() -> None:
    """List the operators whose algebra bnfold knows, and what it can do with each."""
    from bnfold.core.rule import registered

    for op_type, entry in sorted(registered().items()):
        versions = ", ".join(str(version) for version in sorted(entry.versions))
        click.echo(f"{op_type:<20} {', '.join(entry.verbs):<18} versions {versions}")


def fail(message: str) -> None:
    """Say what went wrong: one line on stderr, whatever a model's names hold."""
    click.echo("bnfold: " + printable(" ".join(message.split())), err=True)
