"""``bnfold bench``: measure models against each other, and say so when there is nothing to tell."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bnfold.latency import BenchReport

    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType  # generic from click 8.3 on only


_LEVELS = ("all", "extended", "basic", "off")


class _Sizes(_Type):
    """Positive whole numbers, separated by commas."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        sizes = [_size(each) for each in value.split(",")]
        if None in sizes:
            self.fail(f"{value!r} is no list of sizes such as 1,8,64", param, ctx)
        return [size for size in sizes if size is not None]


class _Levels(_Type):
    """Optimization levels, separated by commas."""

    name = "levels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        levels = value if isinstance(value, list) else value.split(",")
        for each in levels:
            if each not in _LEVELS:
                self.fail(f"{each!r} is not one of {', '.join(_LEVELS)}.", param, ctx)
        return levels


class _Finite(click.FloatRange):
    """A number that is one: ``nan`` and ``inf`` are outside of every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number.", param, ctx)
        return number


class _Dimension(_Type):
    """``NAME=SIZE``."""

    name = "dimension"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        name, _, text = value.rpartition("=")
        size = _size(text)
        if not name or size is None:
            self.fail(f"{value!r} is not of the form name=size, such as width=224", param, ctx)
        return name, size


@click.command(short_help="Measure models against each other.")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--inputs", type=click.Path(path_type=Path), help="A .npz to run on, by input name.")
@click.option("--batch", type=_Sizes(), metavar="N[,N…]", help="Batch sizes, each measured on its own.")
@click.option(
    "--dim", type=_Dimension(), multiple=True, metavar="NAME=SIZE", help="Size of an open dimension."
)
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads a session."
)
@click.option(
    "--provider", multiple=True, metavar="NAME", help="Execution provider, the CPU if none is named."
)
@click.option(
    "--level",
    type=_Levels(),
    default="all",
    metavar="LEVEL[,LEVEL…]",
    help="Optimizations of ONNX Runtime: all (as deployed, the default), extended, basic, off; "
    "each measured on its own.",
)
@click.option(
    "--seconds",
    type=_Finite(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="Time budget for each batch size.",
)
@click.option(
    "--width",
    type=_Finite(min=0),
    default=0.02,
    show_default=True,
    help="Stop earlier when every interval is relatively this narrow.",
)
@click.option("--profile", is_flag=True, help="Say which operators take the time, from runs of their own.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random inputs and random order.")
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the distributions (.png, .svg)."
)
@click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Report as Markdown on stdout.")
def bench(models: Sequence[Path], plot: Path | None, as_json: bool, as_markdown: bool, **asked: Any) -> None:
    """Measure how long MODELS take in ONNX Runtime, each against the first; a single one against its fold.

    Sessions of all models run in alternating blocks in random order, and the first model runs against itself
    as well: a difference that is no larger than that is no difference. Slower is a result, not an error.
    """
    if as_json and as_markdown:
        raise click.UsageError("--json and --markdown contradict each other.")
    if asked["inputs"] and (asked["batch"] or asked["dim"]):
        raise click.UsageError("--inputs have their sizes, so --batch and --dim have nothing to set.")
    from bnfold import latency

    if plot is not None:
        from bnfold.latency.show.plot import check

        check(plot)
    with _progress() as progress:
        report = latency.bench(
            *models,
            **asked | {"dim": dict(asked["dim"]), "provider": asked["provider"] or "CPUExecutionProvider"},
            progress=progress,
        )
    try:
        if plot is not None:
            report.plot(plot)
    finally:  # what was measured is told, also where it cannot be drawn
        _show(report, as_json, as_markdown)


def _show(report: BenchReport, as_json: bool, as_markdown: bool) -> None:
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=1, allow_nan=False))
        return
    if as_markdown:
        click.echo(report.markdown())
        return
    from bnfold import render
    from bnfold.latency.show import tables

    for line in tables.verdicts(report):
        click.echo(line)
    render.on_terminal(tables.tables(report))
    for line in tables.background(report):
        click.echo(line)


def _size(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() and int(text) > 0 else None


@contextmanager
def _progress() -> Iterator[Callable[[float, str], None]]:
    """A bar on the terminal, redrawn only while nothing is measured."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda done, text: None
        return
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns()[:3], TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", total=1.0)

        def show(done: float, text: str) -> None:
            bar.update(task, completed=done, description=text, refresh=True)

        yield show
