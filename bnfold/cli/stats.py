"""``bnfold stats`` and ``bnfold merge-stats``: do the stored statistics fit the data?"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bnfold.wording import printable

if TYPE_CHECKING:
    from bnfold.render import Table
    from bnfold.statistics.result import Statistics

Command = TypeVar("Command", bound=Callable[..., Any])


def data_options(command: Command) -> Command:
    """The options that say what the data are, the same for every command that takes data."""
    options = (
        click.option(
            "--data",
            required=True,
            type=click.Path(path_type=Path),
            help="A .npz, or a folder of .npz, .npy or images.",
        ),
        click.option("--preprocess", metavar="STEPS", help="Such as 'resize 256; crop 224; divide 255'."),
        click.option(
            "--batch", type=click.IntRange(min=0), default=0, help="Samples a run, 0 for as many as fit."
        ),
        click.option(
            "--to-inference", is_flag=True, help="Let nodes in training mode use their stored statistics."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def report_options(command: Command) -> Command:
    """How the statistics are shown."""
    plot = click.option(
        "--plot", type=click.Path(path_type=Path), metavar="FOLDER", help="Draw a picture per layer."
    )
    return plot(click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")(command))


@click.command(short_help="Hold stored statistics against data.")
@click.argument("model", type=click.Path(path_type=Path))
@data_options
@click.option("--shard", metavar="i/n", help="Measure this part of the data only; needs -o.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Keep what was measured (.npz).")
@report_options
def stats(
    model: Path,
    data: Path,
    shard: str | None,
    output: Path | None,
    plot: Path | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Run data through MODEL and compare every batch norm's stored mean and variance with theirs.

    Exit code 0: the statistics fit. 1: a layer is named. 2: the data are of no use.

    A finished --shard that is already in its output file is not measured again.
    """
    if shard and output is None:
        raise click.UsageError("--shard measures a part; say with -o where to keep it.")
    if shard and (plot or as_json):
        raise click.UsageError("A shard is judged with the others; give --plot and --json to merge-stats.")
    if plot is not None:
        from bnfold.statistics.judge.plot import check

        check(plot)
    from bnfold.statistics.check import prepare, subject_of

    subject = subject_of(model, None, how.pop("to_inference"), remote=False)
    work = prepare(subject, data, shard=shard, **how)
    before = output is not None and output.exists()
    measured = work.here(output)
    if shard:
        what = "was finished before" if before else "measured"
        click.echo(f"Shard {shard} {what}: {measured.samples} samples in {output}.")
        return
    _show(measured, plot, as_json)


@click.command("merge-stats", short_help="Judge shards of stats together.")
@click.argument("parts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Keep the merged statistics (.npz).")
@click.option("--partial", is_flag=True, help="Judge although shards are missing.")
@report_options
def merge_stats(
    parts: Sequence[Path], output: Path | None, partial: bool, plot: Path | None, as_json: bool
) -> None:
    """Merge the PARTS that `bnfold stats --shard i/n -o PART` wrote, and judge them like one data set.

    The merged variance is that of all data, however they were sorted into shards. A shard that is
    counted twice, or missing, is an error.
    """
    from bnfold.statistics.result import Statistics, merge_all

    merged = merge_all(Statistics.load(part) for part in parts)
    missing = merged.missing()
    if missing and not partial:
        raise click.UsageError(f"shards {', '.join(missing)} are missing; --partial does without them.")
    if output is not None:
        merged.save(output)
    if plot is not None:
        from bnfold.statistics.judge.plot import check

        check(plot)
    _show(merged, plot, as_json)


def _show(measured: Statistics, plot: Path | None, as_json: bool) -> None:
    from bnfold import render

    if plot is not None:
        from bnfold.statistics.judge.plot import draw

        draw(measured, plot)
    if as_json:
        click.echo(json.dumps(measured.to_dict(), indent=1, allow_nan=False))
    else:
        render.on_terminal(_tables(measured))
        click.echo(f"Measured on {measured.samples} samples.")
        for line in measured.conclusions:
            click.echo(printable(line))
    sys.exit(0 if measured.fits else 1)


def _tables(measured: Statistics) -> list[Table]:
    from bnfold.render import Table

    rows = []
    for each in measured.comparisons:
        verdict = "; ".join(each.problems) or "fits"
        words = "\n".join((verdict, *each.notes))
        numbers = (f"{each.typical_shift:.2g}", f"{each.typical_ratio:.3g}", str(int(each.dead.sum())))
        rows.append((printable(each.layer.name), str(each.shift.size), *numbers, words))
    header = ("layer", "channels", "mean shift in σ", "variance ratio", "constant", "verdict")
    tables = [Table("Stored statistics against the data", header, rows)]
    if measured.left:
        left = [(printable(each.name), printable(each.why)) for each in measured.left]
        tables.append(Table("Not measured", ("node", "why"), left))
    return tables
