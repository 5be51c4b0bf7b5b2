"""Reports as people read them: a table on a terminal, Markdown in a pull request."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bnfold.job import Outcome
from bnfold.report import Refusal, Report, Row
from bnfold.wording import printable

if TYPE_CHECKING:
    from bnfold.verification import Verdict


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
    if report.constant_bytes > 0:
        lines.append(f"Shared or generated weights were written out: {_bytes(report.constant_bytes)} more.")
    if report.inlined:
        lines.append(f"Inlined because they hold maps that fold: {_list(tuple(report.inlined))}.")
    if report.converted:
        lines.append(
            f"{report.converted} nodes left training mode: batch norms use their stored statistics, as asked "
            "with --to-inference."
        )
    if report.training:
        lines.append(
            f"{report.training} stay because they are in training mode, normalizing by each batch; "
            "if their stored statistics are meant, pass --to-inference."
        )
    if report.overridable:
        lines.append(
            f"{report.overridable} stay because their constants are also graph inputs; "
            "if no caller replaces them, pass --freeze-initializers."
        )
    return lines


def tables(outcome: Outcome, verbose: bool) -> list[Table]:
    """One table of batch norms, one of operator counts, one of how far the outputs differ."""
    rows = [row for row in outcome.report.rows if verbose or row.is_batch_norm]
    made = [Table("Batch norms", ("node", "operator", "what became of it"), [_row(row) for row in rows])]
    before, after = outcome.report.nodes_before, outcome.report.nodes_after
    counts = [
        (printable(op), str(before.get(op, 0)), str(after.get(op, 0)))
        for op in sorted({*before, *after})
        if verbose or before.get(op, 0) != after.get(op, 0)
    ]
    made.append(Table("Nodes", ("operator", "before", "after"), counts))
    if outcome.verdict is not None:
        made.append(errors(outcome.verdict))
    return [table for table in made if table.rows]


def errors(verdict: Verdict) -> Table:
    """How far each output differs from the original's, against what rounding explains."""
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
        for each in verdict.outputs
    ]
    return Table(f"Outputs ({verdict.runtime})", header, rows)


def markdown(table: Table) -> str:
    """A table as GitHub shows it."""
    head = [" | ".join(table.header), " | ".join("---" for _ in table.header)]
    body = [" | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in row) for row in table.rows]
    return f"### {table.title}\n\n" + "\n".join(f"| {line} |" for line in (*head, *body))


def on_terminal(made: Iterable[Table]) -> None:
    """Print tables to stdout with rich; wide enough for no sentence to break where there is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False)
    for table in made:
        drawn = RichTable(title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
        for name in table.header:
            drawn.add_column(name, overflow="fold")
        for row in table.rows:
            drawn.add_row(*(Text(cell) for cell in row))
        console.print(drawn)


def _row(row: Row) -> tuple[str, str, str]:
    return printable(row.name), printable(row.op_type), printable_lines(_fate(row))


def printable_lines(lines: Iterable[str]) -> str:
    """Several lines of one cell."""
    return "\n".join(printable(line) for line in lines)


def _fate(row: Row) -> list[str]:
    if row.status == "kept":
        return ["kept", *(_refused(refusal) for refusal in row.refusals)]
    if row.status == "merged":
        return [f"merged into {_list(row.leaves)}"]
    into = f"into {_list(row.into)}" if row.into else "away: it changed nothing"
    through = f" through {_list(row.through)}" if row.through else ""
    leaves = f"; the shift stays as {_list(row.leaves)}" if row.leaves else ""
    copies = f"; other readers read a copy of {_list(row.copies)}" if row.copies else ""
    return [f"folded {row.direction} {into}{through}{leaves}{copies}"]


def _refused(refusal: Refusal) -> str:
    at = refusal.node or refusal.tensor
    place = f" at {at}" if at else ""
    reason = refusal.reason
    return f"{refusal.direction}: {reason.name}{place}. {reason.text} What would help: {reason.unblock}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)


def _count(report: Report) -> str:
    if not report.changed:
        return "nothing to fold"
    parts = [(report.folded, "folded"), (report.merged, "merged"), (report.kept, "kept")]
    return "batch norms " + ", ".join(f"{count} {word}" for count, word in parts if count)


def _nodes(report: Report) -> str:
    return f"nodes {sum(report.nodes_before.values())} → {sum(report.nodes_after.values())}"


def _bytes(count: int) -> str:
    size, units = float(count), ["bytes", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "bytes" else f"{size:.1f} {units[0]}"
