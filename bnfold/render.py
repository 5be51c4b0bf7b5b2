"""Reports as people read them: a table on a terminal, Markdown in a pull request."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from bnfold.job import Outcome
from bnfold.report import Branches, Channels, Refusal, Report, Row
from bnfold.wording import printable

if TYPE_CHECKING:
    from bnfold.verification import Deviation, Verdict

_NUMBER = re.compile(r"[\d.]+|–")
_ROOM = 16  # columns for a name where the terminal is narrow


@dataclass(frozen=True)
class Table:
    """Rows of text under a title."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def summary(outcome: Outcome) -> list[str]:
    """What happened to one file, one plain sentence a line."""
    report = outcome.report
    lines = [f"{printable(str(outcome.model))}: {_count(report)}, {_nodes(report)}."]
    if outcome.output is not None:
        sizes = f"{_bytes(outcome.bytes_before)} → {_bytes(outcome.bytes_after)}"
        lines.append(f"Wrote {printable(str(outcome.output))} ({sizes}, {outcome.seconds:.2f} s).")
    if report.pruned and report.work_before:
        before, after = report.work_before, report.work_after
        lines.append(f"Dead channels took {1 - after / before:.1%} of {before:,} multiplications.")
    if outcome.deviations:
        largest = max(each.max_rel for each in outcome.deviations)
        lines.append(
            f"Taking small γ for 0 changes the outputs by up to {largest:.2g} of their largest value."
        )
        lines.append("That nothing else changes them is shown against the model with these γ at 0.")
    elif any(each.approximate for each in report.channels):
        lines.append("Small γ count as 0; by how much that changes the outputs is measured on writing.")
    if report.constant_bytes > 0:
        lines.append(f"Shared or generated weights were written out: {_bytes(report.constant_bytes)} more.")
    if report.bias_rounding:
        lines.append(
            f"int32 biases are whole steps of their scales: rounded by {report.bias_rounding:.2g} at most."
        )
    if report.inlined:
        lines.append(f"Inlined because they hold maps that fold: {_list(tuple(report.inlined))}.")
    if report.converted:
        lines.append(
            f"{report.converted} nodes left training mode: batch norms use their stored statistics, as asked "
            "with --to-inference."
        )
    if report.training:
        lines.append(
            "Nodes that stay because they are in training mode, normalizing by each batch: "
            f"{report.training}; if their stored statistics are meant, pass --to-inference."
        )
    if report.overridable:
        lines.append(
            f"Nodes that stay because their constants are also graph inputs: {report.overridable}; "
            "if no caller replaces them, pass --freeze-initializers."
        )
    return lines


def tables(outcome: Outcome, verbose: bool) -> list[Table]:
    """One table of batch norms, one of operator counts, one of how far the outputs differ."""
    rows = [row for row in outcome.report.rows if verbose or row.is_batch_norm]
    title = _kind(rows).capitalize()
    made = [Table(title, ("node", "operator", "what became of it"), [_row(row) for row in rows])]
    before, after = outcome.report.nodes_before, outcome.report.nodes_after
    counts = [
        (printable(op), str(before.get(op, 0)), str(after.get(op, 0)))
        for op in sorted({*before, *after})
        if verbose or before.get(op, 0) != after.get(op, 0)
    ]
    made.append(Table("Nodes", ("operator", "before", "after"), counts))
    made.append(branches(outcome.report, verbose))
    made.append(channels(outcome.report))
    made.append(reasons([*rows, *_told(outcome.report, verbose), *outcome.report.channels]))
    if outcome.verdict is not None:
        made.append(errors(outcome.verdict))
    if outcome.deviations:
        made.append(deviations(outcome.deviations, "What --prune-below changes"))
    return [table for table in made if table.rows]


def branches(report: Report, verbose: bool) -> Table:
    """Layers that became one; with ``verbose`` also those that stay, and why."""
    rows = [
        (printable(each.name), printable(each.op_type), printable_lines(_union(each)))
        for each in _told(report, verbose)
    ]
    return Table("Branches", ("sum or layer", "operator", "what became of it"), rows)


def _told(report: Report, verbose: bool) -> list[Branches]:
    return [each for each in report.branches if each.into or verbose]


def channels(report: Report) -> Table:
    """Layers whose channels hold one value: how many are gone, and why others are not.

    A batch norm that only loses the channels of its layer is not listed beside it.
    """
    rows = [
        (
            printable(each.name),
            printable(each.op_type),
            f"{each.channels} → {each.channels - len(each.removed)}",
            printable_lines([_numbers(each), *(_refused(refusal) for refusal in each.refusals)]),
        )
        for each in report.channels
        if each.refusals or each.approximate or (each.removed and each.op_type != "BatchNormalization")
    ]
    return Table("Dead channels", ("layer", "operator", "channels", "what became of them"), rows)


def reasons(told: Sequence[Row | Branches | Channels]) -> Table:
    """What each reason means that the other tables name, and what would help."""
    named = {refusal.reason for each in told for refusal in each.refusals}
    rows = [(each.name, each.text, each.unblock) for each in sorted(named, key=lambda reason: reason.name)]
    return Table("Reasons", ("reason", "what it means", "what would help"), rows)


def errors(verdict: Verdict) -> Table:
    """How far each output differs from the original's, against what rounding explains."""
    return deviations(verdict.outputs, f"Outputs ({verdict.runtime})")


def deviations(outputs: Sequence[Deviation], title: str) -> Table:
    """How far each output differs."""
    header = ("output", "max abs", "max rel", "ulp", "bound", "noise floor", "note")
    rows = [
        (
            printable(each.name),
            f"{each.max_abs:.2g}",
            f"{each.max_rel:.2g}",
            f"{each.ulp:.2g}",
            f"{each.bound:.2g}",
            "not measured" if each.noise is None else f"{each.noise:.2g}",
            printable(each.note),
        )
        for each in outputs
    ]
    return Table(title, header, rows)


def markdown(table: Table) -> str:
    """A table as GitHub shows it."""
    head = [" | ".join(table.header), " | ".join("---" for _ in table.header)]
    body = [" | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in row) for row in table.rows]
    return f"### {table.title}\n\n" + "\n".join(f"| {line} |" for line in (*head, *body))


def on_terminal(made: Iterable[Table]) -> None:
    """Print tables to stdout with rich; wide enough for no sentence to break where there is no terminal."""
    if sys.stdout is None:  # closed by the caller, who wants the exit code
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    terminal = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False)
    for table in made:
        narrow = _least(table) > terminal.width
        wide = max(terminal.width, _least(table, broken=True) if narrow else 0)
        drawn = RichTable(title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
        for name, *cells in _columns(table):
            shown = name.replace(" ", "\n") if narrow and _are_numbers(cells) else name
            drawn.add_column(shown, overflow="fold", no_wrap=_are_numbers(cells))
        for row in table.rows:
            drawn.add_row(*(Text(cell) for cell in row))
        Console(file=sys.stdout, width=wide, highlight=False).print(drawn)


def _least(table: Table, broken: bool = False) -> int:
    """The width of a table whose numbers are whole and whose names have some room, headers broken or not."""
    widths = [
        max(map(len, [*cells, *(name.split() if broken else [name])]))
        if _are_numbers(cells)
        else min(_ROOM, max(map(len, [name, *cells])))
        for name, *cells in _columns(table)
    ]
    return sum(widths) + 3 * len(widths) + 1


def _columns(table: Table) -> list[tuple[str, ...]]:
    return list(zip(table.header, *table.rows, strict=True))


def _are_numbers(cells: Sequence[str]) -> bool:
    """Whether a column must not break: half a number on a line of its own would be another number."""
    return all(_NUMBER.fullmatch(cell) for cell in cells)


def _row(row: Row) -> tuple[str, str, str]:
    return printable(row.name), printable(row.op_type), printable_lines(_fate(row))


def printable_lines(lines: Iterable[str]) -> str:
    """Several lines of one cell."""
    return "\n".join(printable(line) for line in lines)


def _fate(row: Row) -> list[str]:
    if row.status != "folded":
        what = "kept" if row.status == "kept" else f"merged into {_list(row.leaves)}"
        return [what, *(_refused(refusal) for refusal in row.refusals)]
    into = f"into {_list(row.into)}" if row.into else "away: it changed nothing"
    through = f" through {_list(row.through)}" if row.through else ""
    leaves = f"; the shift stays as {_list(row.leaves)}" if row.leaves else ""
    copies = f"; other readers read a copy of {_list(row.copies)}" if row.copies else ""
    return [f"folded {row.direction} {into}{through}{leaves}{copies}"]


def _union(each: Branches) -> list[str]:
    stays = [_refused(refusal) for refusal in each.refusals]
    if not each.into:
        return ["stays", *stays]
    what = "across" if each.kind == "across" else "in a row"
    work = f"{each.work_before:,.0f} → {each.work_after:,.0f} multiplications and additions for each position"
    return [f"merged {what} into {_list(each.into)}: {work}", *stays]


def _numbers(each: Channels) -> str:
    """Which channels are gone, and which stay though they hold one value."""
    parts = [(each.removed, "removed"), (each.kept, "kept")]
    said = "; ".join(f"{word} {_list(_runs(numbers))}" for numbers, word in parts if numbers)
    return f"{said} (by --prune-below: {len(each.approximate)})" if each.approximate else said


def _runs(numbers: Sequence[int]) -> list[str]:
    """Ascending numbers, those in a row as "first–last"."""
    steps = enumerate(numbers)
    runs = [[n for _, n in run] for _, run in groupby(steps, lambda step: step[1] - step[0])]
    return [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]


def _refused(refusal: Refusal) -> str:
    at = refusal.node or refusal.tensor
    place = f" at {at}" if at else ""
    return f"{refusal.direction}: {refusal.reason.name}{place}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)


def _count(report: Report) -> str:
    if not report.changed:
        return "nothing to fold"
    parts = [(report.folded, "folded"), (report.merged, "merged"), (report.kept, "kept")]
    said = ", ".join(f"{count} {word}" for count, word in parts if count)
    more = [("layers merged into one", report.joined), ("layers freed of dead channels", report.pruned)]
    kind = _kind([row for row in report.rows if row.is_batch_norm])
    whole = [f"{kind} {said}" if said else "", *(f"{what} {count}" for what, count in more if count)]
    return ", ".join(filter(None, whole)) or "functions inlined"


def _kind(rows: Sequence[Row]) -> str:
    """What to call the nodes in question: some exporters write a batch norm as several."""
    plain = all(row.op_type == "BatchNormalization" for row in rows)
    return "batch norms" if plain else "affine nodes"


def _nodes(report: Report) -> str:
    return f"nodes {sum(report.nodes_before.values())} → {sum(report.nodes_after.values())}"


def _bytes(count: int) -> str:
    size, units = float(count), ["bytes", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "bytes" else f"{size:.1f} {units[0]}"
