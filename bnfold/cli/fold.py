"""``bnfold fold``: one call per model, every failure reported, none stopping the rest."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold.cli import many
from bnfold.cli.show import fail
from bnfold.errors import BnfoldError, UnexpectedError, VerificationError
from bnfold.wording import printable

if TYPE_CHECKING:
    from bnfold.job import Order, Outcome

    Result = tuple[Outcome | None, BnfoldError | None]

SCHEMA_VERSION = 1


@click.command(short_help="Fold models (the default command).")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write (one model only).")
@click.option("--in-place", is_flag=True, help="Replace the input.")
@click.option("-f", "--force", is_flag=True, help="Replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Say what would be folded, write nothing.")
@click.option("--check", is_flag=True, help="Like --dry-run, and exit 1 if anything could be folded.")
@click.option("--inputs", type=click.Path(path_type=Path), help="A .npz to verify with, by input name.")
@click.option("--no-verify", is_flag=True, help="Write without proving that the outputs are equal.")
@click.option("--freeze-initializers", is_flag=True, help="Make initializers that are inputs constants.")
@click.option("--to-inference", is_flag=True, help="Let nodes in training mode use their stored statistics.")
@click.option("--portable", is_flag=True, help="Only rewrites that help on every runtime.")
@click.option("--no-merge", is_flag=True, help="Leave layers apart that are added or stand in a row.")
@click.option("--no-prune", is_flag=True, help="Leave channels that hold one value.")
@click.option(
    "--prune-below",
    type=click.FloatRange(min=0, max=1e9),
    metavar="T",
    help="Also remove channels with |γ/σ| ≤ T; changes the outputs, by how much is reported.",
)
@click.option("--only", multiple=True, metavar="GLOB", help="Fold only nodes of these names.")
@click.option("--skip", multiple=True, metavar="GLOB", help="Leave nodes of these names alone.")
@click.option(
    "--map", "map_file", type=click.Path(path_type=Path), help="Write every fold's provenance (JSON)."
)
@click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Report as Markdown on stdout.")
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Models at a time."
)
@click.option("-q", "--quiet", is_flag=True, help="No report.")
@click.option("-v", "--verbose", is_flag=True, help="List every affine node and measure the noise floor.")
def fold(
    models: Sequence[Path],
    as_json: bool,
    as_markdown: bool,
    jobs: int,
    quiet: bool,
    verbose: bool,
    **asked: Any,
) -> None:
    """Fold MODELS: each gets a smaller, equal model beside it; a bad one does not stop the others.

    Every batch norm is reported: where it went, or why it stays, in each direction.
    """
    _refuse_contradictions(models, as_json, as_markdown, quiet, asked)
    outcomes: list[dict[str, Any]] = []
    code = 0
    for model, (outcome, failure) in _results(
        models, jobs, {**asked, "verbose": verbose, "quiet": quiet}, quiet
    ):
        if as_json and not quiet:
            outcomes.append(_entry(model, outcome, failure))
        if failure is not None:
            fail(f"{failure}")
            code = max(code, failure.exit_code)
        elif outcome is not None:
            if asked["check"] and outcome.report.changed:
                code = max(code, 1)
            if not (quiet or as_json):
                _show(outcome, as_markdown, verbose)
    if as_json and not quiet:
        click.echo(json.dumps({"schema_version": SCHEMA_VERSION, "files": outcomes}, indent=1))
    sys.exit(code)


def _results(
    models: Sequence[Path], jobs: int, asked: dict[str, Any], quiet: bool
) -> Iterator[tuple[Path, Result]]:
    """What became of each model, in their order."""
    asked["alone"] = len(models) == 1 and not quiet
    for done, (model, made) in enumerate(many.each(models, fold_one, asked, jobs), 1):
        yield model, made if isinstance(made, tuple) else (None, made)
        if not (quiet or asked["alone"]) and sys.stderr.isatty():
            click.echo(f"\r{done} of {len(models)} models", err=True, nl=done == len(models))


def _entry(model: Path, outcome: Outcome | None, failure: BnfoldError | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"model": str(model)} if outcome is None else outcome.to_dict()
    entry["error"] = None if failure is None else str(failure)
    if isinstance(failure, VerificationError) and failure.verdict is not None:
        entry["verification"] = failure.verdict.to_dict()
    return entry


def _refuse_contradictions(
    models: Sequence[Path], as_json: bool, as_markdown: bool, quiet: bool, asked: dict[str, Any]
) -> None:
    several = len(models) > 1
    contradictions = {
        "-o names one file, and there are several models.": several and asked["output"],
        "--map names one file, and there are several models.": several and asked["map_file"],
        "--inputs fits one model, and there are several.": several and asked["inputs"],
        "-o and --in-place contradict each other.": asked["output"] and asked["in_place"],
        "--check and --dry-run write no model, so -o and --in-place have no place.": (
            asked["check"] or asked["dry_run"]
        )
        and (asked["output"] or asked["in_place"]),
        "--json and --markdown contradict each other.": as_json and as_markdown,
        "--quiet leaves no report for --json or --markdown.": quiet and (as_json or as_markdown),
        "--prune-below is a number of 0 or more.": asked["prune_below"] != asked["prune_below"],
        "--no-prune and --prune-below contradict each other.": asked["no_prune"]
        and asked["prune_below"] is not None,
        "--prune-below changes the outputs; without --no-verify it is measured by how much.": asked[
            "prune_below"
        ]
        and asked["no_verify"],
        "--inputs are for verification, which --no-verify leaves out.": asked["inputs"]
        and asked["no_verify"],
    }
    for sentence, holds in contradictions.items():
        if holds:
            raise click.UsageError(sentence)


def _order(asked: dict[str, Any], say: Callable[[str], None]) -> Order:
    from bnfold.job import Mode, Order
    from bnfold.passes.optimize import OptimizePass

    options = {
        name: asked[name] for name in ("only", "skip", "freeze_initializers", "portable", "to_inference")
    }
    options["merge"] = not asked["no_merge"]
    options["prune_below"] = None if asked["no_prune"] else asked["prune_below"] or 0.0
    return Order(
        mode=Mode.CHECK if asked["check"] else Mode.DRY_RUN if asked["dry_run"] else Mode.WRITE,
        output=asked["output"],
        in_place=asked["in_place"],
        force=asked["force"],
        verify=not asked["no_verify"],
        inputs=asked["inputs"],
        noise=asked["verbose"],
        map_file=asked["map_file"],
        folding=lambda: OptimizePass(**options),
        say=say,
        tell=lambda text: None if asked["quiet"] else click.echo(f"bnfold: {printable(text)}", err=True),
    )


def fold_one(model: Path, asked: dict[str, Any]) -> Result:
    """Fold one model as the options ask; returns what became of it, or what went wrong."""
    from bnfold import job

    try:
        with _progress(asked["alone"]) as say:
            return job.run(model, _order(asked, say)), None
    except BnfoldError as error:
        return None, error
    except Exception as error:  # a defect of ours must not stop the other files, nor look like a result
        return None, UnexpectedError(
            f"{model} met a defect of bnfold ({type(error).__name__}: {error}); "
            "nothing was written, please report it with the model."
        )


def _show(outcome: Outcome, as_markdown: bool, verbose: bool) -> None:
    from bnfold import render

    lines, tables = render.summary(outcome), render.tables(outcome, verbose)
    proof = [] if outcome.verdict is None else [printable(outcome.verdict.summary)]
    if as_markdown:
        body = [render.markdown(table) for table in tables]
        click.echo("\n\n".join(["\n".join(f"{line}  " for line in lines), *body, *proof]))
        return
    click.echo("\n".join(lines))
    render.on_terminal(tables)
    for line in proof:
        click.echo(line)


@contextmanager
def _progress(shown: bool) -> Iterator[Any]:
    """A line on the terminal that says what is going on, for as long as it goes on."""
    if not (shown and sys.stderr.isatty()):
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield status.update
