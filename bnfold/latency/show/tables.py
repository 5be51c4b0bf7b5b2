"""A benchmark as people read it: verdicts on lines of their own first, then the numbers behind them."""

from __future__ import annotations

import math

from bnfold.render import Table, markdown
from bnfold.wording import printable

from ..report import BenchReport, Case
from ..verdict import counted, numbers

_STOPPED = {"width": "the target width was reached", "budget": "the time was up"}


def verdicts(report: BenchReport) -> list[str]:
    """What was found, one plain sentence a line."""
    lines = []
    for case in report.cases:
        lines += [f"{_where(report, case)}{each.sentence}" for each in case.comparisons]
        lines += [f"{_where(report, case)}{each.load_sentence}" for each in case.comparisons]
    return [printable(line) for line in lines]


def background(report: BenchReport) -> list[str]:
    """How, on what and where it was measured, one plain sentence a line; warnings first."""
    lines = [f"Warning: {each}" for each in report.warnings]
    for case in report.cases:
        lines += [_where(report, case) + each for each in (_noise(case), _effort(case))]
    lines += [_machine(report), _settings(report)]
    return [printable(line) for line in lines]


def tables(report: BenchReport) -> list[Table]:
    """Times of a run; loading, size and memory; and time by operator where a profile was made."""
    made = []
    for case in report.cases:
        where = report.where(case)
        title = where and f", {where}"
        made += [_runs(case, title), _resources(report, case, title)]
        if case.operators is not None:
            made.append(_operators(case, title))
    return made


def as_markdown(report: BenchReport) -> str:
    """Everything, as GitHub shows it."""
    found, where = ("\n".join(f"{line}  " for line in lines(report)) for lines in (verdicts, background))
    return "\n\n".join([*filter(None, [found]), *map(markdown, tables(report)), where])


def _runs(case: Case, title: str) -> Table:
    shown = sorted({each for found in case.percentiles for each in found})
    rows = [
        (
            printable(label),
            *(_ms(found[each]) if each in found else "–" for each in shown),
            str(len(case.samples.runs[role])),
        )
        for role, (label, found) in enumerate(zip(case.labels, case.percentiles, strict=True))
    ]
    header = ("model", *("median" if each == 50 else f"p{each:g}" for each in shown), "runs")
    return Table(f"One run (ms){title}", header, rows)


def _resources(report: BenchReport, case: Case, title: str) -> Table:
    data = case.to_dict()["models"]
    rows = [
        (
            printable(model.label),
            _ms(entry["load_seconds"]),
            three_digits(model.bytes / 1e6),
            "–" if entry["peak_bytes"] is None else f"{entry['peak_bytes'] / 1e6:.1f}",
        )
        for model, entry in zip(report.models, data, strict=True)
    ]
    header = ("model", "session creation (ms)", "size (MB)", "peak memory (MB)")
    return Table(f"Loading, size, memory{title}", header, rows)


def _operators(case: Case, title: str) -> Table:
    """Operators by their time, the longest first; a column of nodes and one of times for each model."""
    found = case.operators or []
    names = {
        name: max(each.get(name, {}).get("seconds", 0) for each in found) for each in found for name in each
    }
    rows = []
    for name in sorted(names, key=lambda each: -names[each]):
        cells = [_cells(each.get(name)) for each in found]
        rows.append((printable(name), *(cell for pair in cells for cell in pair)))
    total = [
        (sum(e["nodes"] for e in each.values()), sum(e["seconds"] for e in each.values())) for each in found
    ]
    rows.append(("all", *(cell for nodes, time in total for cell in (f"{nodes:.0f}", _ms(time)))))
    header = ("operator", *(cell for label in case.labels for cell in (f"nodes of {label}", "ms")))
    return Table(f"Time by operator, profiled{title}", [printable(each) for each in header], rows)


def _cells(entry: dict[str, float] | None) -> tuple[str, str]:
    return ("–", "–") if entry is None else (f"{entry['nodes']:.0f}", _ms(entry["seconds"]))


def _noise(case: Case) -> str:
    return f"Noise floor: {case.labels[0]} against itself is {numbers(case.control)}."


def _effort(case: Case) -> str:
    shapes = ", ".join(
        f"{name} {'×'.join(map(str, shape)) or 'scalar'}" for name, shape in case.shapes.items()
    )
    return (
        f"{counted(len(case.samples.blocks), 'session pair')} × {counted(case.plan.blocks, 'block')} × "
        f"{counted(case.plan.runs, 'run')} on {shapes or 'no input'}; {_STOPPED[case.stopped]}."
    )


def _machine(report: BenchReport) -> str:
    where = report.environment
    loads = (where.load_before, where.load_after)
    load = "unknown" if None in loads else f"{loads[0]} before, {loads[1]} after"
    versions = ", ".join(f"{name} {version}" for name, version in where.versions.items())
    cores = counted(where.machine_cores, "core")
    usable = cores if where.cores == where.machine_cores else f"{where.cores} of {cores}"
    return f"{where.cpu}, {usable}, load {load}; {where.system}; {versions}."


def _settings(report: BenchReport) -> str:
    chosen = report.settings
    levels = [chosen["level"]] if isinstance(chosen["level"], str) else chosen["level"]
    return (
        f"{counted(chosen['threads'], 'thread')}, "
        f"optimization {'level' if len(levels) == 1 else 'levels'} {', '.join(levels)}, "
        f"{' then '.join(chosen['provider'])}, seed {chosen['seed']}."
    )


def _where(report: BenchReport, case: Case) -> str:
    where = report.where(case)
    return where and f"{where}: "


def _ms(seconds: float) -> str:
    """Milliseconds with three digits."""
    return three_digits(seconds * 1000)


def three_digits(value: float) -> str:
    """A positive number with three digits, trailing zeros among them: "0.150", "12.0", "1234"."""
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{digits}f}"
