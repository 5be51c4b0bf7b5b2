"""The small commands: ``verify``, ``explain``, ``rules``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from bnfold.wording import printable


@click.command(short_help="Show that two models are equal.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--inputs", type=click.Path(path_type=Path), help="A .npz with the inputs, by name.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Measure the noise floor too.")
def verify(a: Path, b: Path, inputs: Path | None, as_json: bool, verbose: bool) -> None:
    """Show that model B gives the outputs of model A; exit 1 if it does not, or nobody can tell."""
    from bnfold import render, verification

    verdict = verification.verify(a, b, inputs=inputs, noise=verbose)
    if as_json:
        click.echo(json.dumps(verdict.to_dict(), indent=1))
    else:
        render.on_terminal([render.errors(verdict)] if verdict.outputs else [])
        click.echo(printable(verdict.summary))
    sys.exit(0 if verdict.ok else 1)


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
