"""``bnfold recalibrate`` and ``bnfold unfold``: new statistics from data, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold.cli.stats import data_options
from bnfold.errors import InputsError, OutputError
from bnfold.wording import printable

if TYPE_CHECKING:
    from bnfold.render import Table
    from bnfold.statistics.recalibration import Recalibration


@click.command(short_help="Estimate statistics anew from data.")
@click.argument("model", type=click.Path(path_type=Path))
@data_options
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write.")
@click.option("-f", "--force", is_flag=True, help="Replace an existing output.")
@click.option(
    "--passes",
    type=click.IntRange(min=1),
    metavar="K",
    help="Measure all layers K times, instead of one wave of layers after the other.",
)
@click.option(
    "--momentum",
    type=click.FloatRange(0, 1),
    metavar="M",
    help="Update the stored statistics in training mode, keeping this share of the old value per batch.",
)
@click.option("--unbiased", is_flag=True, help="With --momentum: m - 1 in the variance, as torch has it.")
@click.option("--fold", is_flag=True, help="Fold the batch norms afterwards.")
@click.option("--no-verify", is_flag=True, help="With --fold: without proof that no output changed.")
@click.option(
    "--map", "map_file", type=click.Path(path_type=Path), help="Keep the old statistics, for unfold (JSON)."
)
@click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
def recalibrate(
    model: Path,
    data: Path,
    output: Path | None,
    force: bool,
    momentum: float | None,
    unbiased: bool,
    no_verify: bool,
    map_file: Path | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Estimate the moving mean and variance of every batch norm of MODEL anew, and write the model.

    Layers are measured in waves, each behind layers whose statistics are final. The momentum is that
    of ONNX and Keras: 0.9 here is 0.1 in torch.
    """
    if unbiased and momentum is None:
        raise click.UsageError("--unbiased belongs to --momentum.")
    if momentum is not None and how["passes"]:
        raise click.UsageError("--momentum is one pass; leave --passes out.")
    target = _target(model, output, "recalibrated", force)
    from bnfold.files import staged
    from bnfold.job import check_map
    from bnfold.statistics.recalibration import recalibrate as estimate
    from bnfold.training import MovingAverage

    moving = None if momentum is None else MovingAverage(momentum, unbiased)
    check_map(map_file, force, model, target)
    made = estimate(model, data, moving=moving, verify=not no_verify, **how)
    if map_file is not None:
        with staged(map_file) as part:
            part.write_text(json.dumps(made.map()) + "\n")
    made.save(target)
    if as_json:
        click.echo(json.dumps({**made.to_dict(), "output": str(target)}, indent=1))
    else:
        _show(made, target)


@click.command(short_help="Undo a fold or a recalibration.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--map",
    "map_file",
    required=True,
    type=click.Path(path_type=Path),
    help="The file that --map wrote with the model.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write.")
@click.option("-f", "--force", is_flag=True, help="Replace an existing output.")
def unfold(model: Path, map_file: Path, output: Path | None, force: bool) -> None:
    """Restore the model that MODEL was folded or recalibrated from, bit for bit."""
    target = _target(model, output, "unfolded", force)
    from bnfold import files
    from bnfold.statistics.recalibration import unfold as restore

    files.save(restore(model, _read(map_file)), target)
    click.echo(f"Wrote {target}.")


def _read(path: Path) -> dict[str, Any]:
    try:
        made = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputsError(f"{path} cannot be read as a map ({error}); name the file of --map.") from error
    if not isinstance(made, dict):
        raise InputsError(f"{path} is no map; name the file that --map wrote.")
    return made


def _target(model: Path, output: Path | None, kind: str, force: bool) -> Path:
    """Where the result goes, if it may go there."""
    target = output or model.with_name(f"{model.name.removesuffix('.onnx')}.{kind}.onnx")
    if target.is_dir():
        raise OutputError(f"{target} is a directory; name a file with -o.")
    if target.exists() and model.exists() and target.samefile(model):
        raise OutputError(f"{target} is the input itself; choose another name with -o.")
    if target.exists() and not force:
        raise OutputError(f"{target} exists; pass -f to replace it or choose another name with -o.")
    return target


def _show(made: Recalibration, target: Path) -> None:
    from bnfold import render

    render.on_terminal(_tables(made))
    click.echo(printable(made.estimated.method))
    if made.report is not None:
        click.echo(f"Folded {made.report.folded} affine nodes afterwards; {made.report.kept} stay.")
    click.echo(f"Wrote {printable(str(target))}.")


def _numbers(each: dict[str, Any]) -> tuple[str, str]:
    return f"{each['shift']:.3g}", f"{each['ratio']:.3g}"


def _tables(made: Recalibration) -> list[Table]:
    from bnfold.render import Table

    told = made.to_dict()
    rows = [
        (printable(each["name"]), str(each["wave"]), *_numbers(each), each["note"]) for each in told["layers"]
    ]
    header = ("layer", "wave", "mean moved by σ", "variance times", "note")
    left = [(printable(each["name"]), printable(each["why"])) for each in told["not_estimated"]]
    tables = [Table("New statistics", header, rows), Table("Left as they were", ("node", "why"), left)]
    return [table for table in tables if table.rows]
