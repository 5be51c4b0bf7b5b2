"""The command ``bnfold``. It only talks: everything it does is in the modules it imports when needed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold import __version__
from bnfold.errors import BnfoldError, UnexpectedError, VerificationError

if TYPE_CHECKING:
    from bnfold.job import Order, Outcome

SCHEMA_VERSION = 1


class _Commands(click.Group):
    """A group whose default command is ``fold``: ``bnfold model.onnx`` is ``bnfold fold model.onnx``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            args = ["fold", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bnfold")
def cli() -> None:
    """Fold every batch normalization of an ONNX model into the weights around it, exactly.

    `bnfold MODEL.onnx` folds, proves that the outputs are unchanged, and writes MODEL.folded.onnx;
    `bnfold fold --help` lists its options.

    Exit code 0: done. 1: a check failed. 2: bad usage or input.
    """


@cli.command(short_help="Fold models (the default command).")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write (one model only).")
@click.option("--in-place", is_flag=True, help="Replace the input.")
@click.option("-f", "--force", is_flag=True, help="Replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Say what would be folded, write nothing.")
@click.option("--check", is_flag=True, help="Like --dry-run, and exit 1 if anything could be folded.")
@click.option("--inputs", type=click.Path(path_type=Path), help="A .npz to verify with, by input name.")
@click.option("--no-verify", is_flag=True, help="Write without proving that the outputs are equal.")
@click.option("--freeze-initializers", is_flag=True, help="Make initializers that are inputs constants.")
@click.option("--portable", is_flag=True, help="Only rewrites that help on every runtime.")
@click.option("--only", multiple=True, metavar="GLOB", help="Fold only nodes of these names.")
@click.option("--skip", multiple=True, metavar="GLOB", help="Leave nodes of these names alone.")
@click.option(
    "--map", "map_file", type=click.Path(path_type=Path), help="Write every fold's provenance (JSON)."
)
@click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Report as Markdown on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No report.")
@click.option("-v", "--verbose", is_flag=True, help="List every affine node and measure the noise floor.")
def fold(
    models: Sequence[Path], as_json: bool, as_markdown: bool, quiet: bool, verbose: bool, **asked: Any
) -> None:
    """Fold MODELS: each gets a smaller, equal model beside it.

    Every batch norm is reported: where it went, or why it stays, in each direction.
    """
    _refuse_contradictions(models, as_json, as_markdown, quiet, asked)
    outcomes: list[dict[str, Any]] = []
    code = 0
    for model in models:
        with _progress(quiet) as say:
            outcome, failure = _fold_one(model, _order(asked, verbose, say))
        entry: dict[str, Any] = {"model": str(model)} if outcome is None else outcome.to_dict()
        entry["error"] = None if failure is None else str(failure)
        outcomes.append(entry)
        if isinstance(failure, VerificationError) and failure.verdict is not None:
            entry["verification"] = failure.verdict.to_dict()
        if failure is not None:
            click.echo(f"bnfold: {failure}", err=True)
            code = max(code, failure.exit_code)
        elif outcome is not None:
            if asked["check"] and outcome.report.changed:
                code = max(code, 1)
            if not (quiet or as_json):
                _show(outcome, as_markdown, verbose)
    if as_json and not quiet:
        click.echo(json.dumps({"schema_version": SCHEMA_VERSION, "files": outcomes}, indent=1))
    sys.exit(code)


@cli.command(short_help="Show that two models are equal.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--inputs", type=click.Path(path_type=Path), help="A .npz with the inputs, by name.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Measure the noise floor too.")
def verify(a: Path, b: Path, inputs: Path | None, as_json: bool, verbose: bool) -> None:
    """Show that model B gives the outputs of model A; exit 1 if it does not, or nobody can tell."""
    from bnfold import verification
    from bnfold.render import printable

    verdict = verification.verify(a, b, inputs=inputs, noise=verbose)
    click.echo(json.dumps(verdict.to_dict(), indent=1) if as_json else printable(verdict.summary))
    sys.exit(0 if verdict.ok else 1)


@cli.command(short_help="Explain why a batch norm stays.")
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


@cli.command(short_help="List the operators bnfold knows.")
def rules() -> None:
    """List the operators whose algebra bnfold knows, and what it can do with each."""
    from bnfold.core.rule import registered

    for op_type, entry in sorted(registered().items()):
        versions = ", ".join(str(version) for version in sorted(entry.versions))
        click.echo(f"{op_type:<20} {', '.join(entry.verbs):<18} versions {versions}")


def main() -> None:
    """Run the command; every failure is one sentence on stderr and an exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.Abort:
        _fail("interrupted; nothing was changed.", 130)
    except click.exceptions.NoArgsIsHelpError:
        _fail("name a model, such as `bnfold model.onnx`; `bnfold --help` says more.", 2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except BnfoldError as error:
        _fail(str(error), error.exit_code)


def _fail(message: str, code: int) -> None:
    click.echo("bnfold: " + " ".join(message.split()), err=True)
    sys.exit(code)


def _refuse_contradictions(
    models: Sequence[Path], as_json: bool, as_markdown: bool, quiet: bool, asked: dict[str, Any]
) -> None:
    several = len(models) > 1
    contradictions = {
        "-o names one file, and there are several models.": several and asked["output"],
        "--map names one file, and there are several models.": several and asked["map_file"],
        "--inputs fits one model, and there are several.": several and asked["inputs"],
        "-o and --in-place contradict each other.": asked["output"] and asked["in_place"],
        "--json and --markdown contradict each other.": as_json and as_markdown,
        "--quiet leaves no report for --json or --markdown.": quiet and (as_json or as_markdown),
        "--inputs are for verification, which --no-verify leaves out.": asked["inputs"]
        and asked["no_verify"],
    }
    for sentence, holds in contradictions.items():
        if holds:
            raise click.UsageError(sentence)


def _order(asked: dict[str, Any], verbose: bool, say: Any) -> Order:
    from bnfold.folding import FoldPass
    from bnfold.job import Mode, Order

    options = {name: asked[name] for name in ("only", "skip", "freeze_initializers", "portable")}
    return Order(
        mode=Mode.CHECK if asked["check"] else Mode.DRY_RUN if asked["dry_run"] else Mode.WRITE,
        output=asked["output"],
        in_place=asked["in_place"],
        force=asked["force"],
        verify=not asked["no_verify"],
        inputs=asked["inputs"],
        noise=verbose,
        map_file=asked["map_file"],
        folding=lambda: FoldPass(**options),
        say=say,
    )


def _fold_one(model: Path, order: Order) -> tuple[Outcome | None, BnfoldError | None]:
    from bnfold import job

    try:
        return job.run(model, order), None
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
    if as_markdown:
        body = [render.markdown(table) for table in tables]
        click.echo("\n\n".join(["\n".join(f"{line}  " for line in lines), *body, *render.proof(outcome)]))
        return
    click.echo("\n".join(lines))
    render.on_terminal(tables)
    for line in render.proof(outcome):
        click.echo(line)


@contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    """A line on the terminal that says what is going on, for as long as it goes on."""
    if quiet or not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield status.update
