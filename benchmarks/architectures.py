"""Every family of networks with batch norms that timm and torchvision have, from every exporter of torch.

    python benchmarks/architectures.py [--only NAME] [--exporters NAMES] [--keep FOLDER]
    python benchmarks/architectures.py --page

For each family: the interpreter named by BNFOLD_TORCH_PYTHON writes one small network
(architecture_networks.py), and every file is folded and verified. A family that is known is written to
results/architectures.json at once and not tried again. ``--keep`` leaves the files and bnfold's reports in a
folder. ``--page`` writes docs/architectures.md from what is known.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any

import pages

import bnfold
from bnfold.verification import Status

HERE = Path(__file__).parent
DATA = HERE / "results" / "architectures.json"
EXPORTERS = ("torchscript", "torchscript-eval", "dynamo", "dynamo-raw")


def main() -> None:
    """Try what is not known yet, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="families, with commas; all without")
    parser.add_argument("--exporters", default=",".join(EXPORTERS), help="with commas; all without")
    parser.add_argument("--keep", type=Path, help="a folder for the files and the reports")
    parser.add_argument("--page", action="store_true", help="write docs/architectures.md and try nothing")
    asked = parser.parse_args()
    offered = {"versions": {}, "families": []} if asked.page else json.loads(python())
    names = asked.only.split(",") if asked.only else offered["families"]
    for name in names:
        missing = [each for each in asked.exporters.split(",") if each not in known().get(name, {})]
        if missing:
            with TemporaryDirectory(prefix="bnfold-architecture-") as folder:
                found = tried(name, missing, Path(folder), asked.keep and asked.keep / name)
            write(name, found, offered["versions"])
            print(name, *(f"{each}: {found[each]}" for each in found), sep="\n  ", flush=True)
    pages.write("architectures.md", "architectures", table(data()))


def data() -> dict[str, Any]:
    """Everything that is known: the versions used last, and what was found by family and exporter."""
    if not DATA.exists():
        return {"versions": {}, "families": {}}
    found: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return found


def known() -> dict[str, Any]:
    """What was found, by family and exporter."""
    families: dict[str, Any] = data()["families"]
    return families


def write(name: str, found: dict[str, Any], versions: dict[str, str]) -> None:
    """Keep what was found of a family."""
    families = known()
    families[name] = families.get(name, {}) | found
    lines = [f"  {json.dumps(key, ensure_ascii=False)}: {json.dumps(each)}" for key, each in families.items()]
    head = f'{{"versions": {json.dumps(versions)},\n "families": {{\n'
    DATA.write_text(head + ",\n".join(lines) + "\n }}\n", encoding="utf-8")


def python(*arguments: str | Path) -> str:
    """What architecture_networks.py prints."""
    interpreter = os.environ.get("BNFOLD_TORCH_PYTHON", sys.executable)
    command = [interpreter, HERE / "architecture_networks.py", *arguments]
    return subprocess.run(command, check=True, timeout=900, capture_output=True, text=True).stdout


def tried(name: str, exporters: list[str], folder: Path, keep: Path | None) -> dict[str, Any]:
    """What became of a family's exports."""
    try:
        python(name, folder, *exporters)
    except subprocess.CalledProcessError as failed:
        return {each: {"failure": brief(failed.stderr.strip().splitlines()[-1])} for each in exporters}
    except subprocess.TimeoutExpired as late:
        return {each: {"failure": f"stopped after {late.timeout:g} s"} for each in exporters}
    found = {}
    for exporter in exporters:
        path = folder / f"{exporter}.onnx"
        failed = path.with_suffix(".failed")
        found[exporter] = folded(path, keep) if path.exists() else {"failure": brief(failed.read_text())}
    return found


def folded(path: Path, keep: Path | None) -> dict[str, Any]:
    """Fold and verify one file."""
    try:
        result = bnfold.fold(path)
    except bnfold.BnfoldError as refused:
        return {"failure": brief(str(refused))}
    target = path.with_suffix(".folded.onnx")
    result.save(target)
    verdict = bnfold.verify(path, target, shared=True)
    if verdict.status is Status.NOT_VERIFIED:
        return {"failure": brief(verdict.reason)}
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        report = {**result.report.to_dict(), "verdict": verdict.to_dict()}
        (keep / f"{path.stem}.json").write_text(json.dumps(report))
        for each in (path, target):
            (keep / each.name).write_bytes(each.read_bytes())
    counts = result.report.nodes_before, result.report.nodes_after
    left = bnfold.fold(target).report
    return {
        "batch_norms": [count.get("BatchNormalization", 0) for count in counts],
        "maps": [maps(result.report), maps(left)],
        "stays": stays(left),
        "equal": verdict.ok,
        "seconds": round(result.report.seconds, 2),
    }


def brief(message: str) -> str:
    """The first line of an error, as far as a line of the page holds it."""
    return shorten(message.strip().splitlines()[0], 240, placeholder=" …")


def maps(report: bnfold.Report) -> int:
    """How many other nodes are per-channel maps: no bias, no scalar and no constant of a fused operator."""
    return sum(
        row.op_type != "BatchNormalization" and row.per_channel and row.is_batch_norm for row in report.rows
    )


def stays(report: bnfold.Report) -> dict[str, int]:
    """How many maps stay, by the reasons for it."""
    left = [row for row in report.rows if row.status == "kept" and row.is_batch_norm]
    reasons = (sorted({refusal.reason.name for refusal in row.refusals}) for row in left)
    return dict(Counter(", ".join(names) for names in reasons))


def table(data: dict[str, Any]) -> str:
    """Everything in Markdown: the sums, then one line for each family, then what could not be tried."""
    known = data["families"]
    entries = [each for found in known.values() for each in found.values() if "failure" not in each]
    before, after = (
        [sum(each[kind][place] for each in entries) for kind in ("batch_norms", "maps")] for place in (0, 1)
    )
    lines = [
        f"{len(known)} families, {len(entries)} exports: of {before[0]} batch norms {after[0]} are left, of "
        f"{before[1]} other affine nodes {after[1]}. Not proven equal: "
        f"{sum(not each['equal'] for each in entries)}. The slowest fold took "
        f"{max((each['seconds'] for each in entries), default=0.0):.1f} s.",
        "",
        f"| family | {' | '.join(EXPORTERS)} | stays | equal |",
        "|---|" + "---|" * (len(EXPORTERS) + 2),
        *(row(name, found) for name, found in known.items()),
    ]
    failed = [
        f"* {name}, {exporter}: {each['failure']}"
        for name, found in known.items()
        for exporter, each in found.items()
        if "failure" in each
    ]
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    return "\n".join(
        [
            *lines,
            *(
                ["", "Not exported, or exported as a model that ONNX Runtime does not run:", "", *failed]
                if failed
                else []
            ),
            "",
            f"{versions}.",
        ]
    )


def row(name: str, found: dict[str, Any]) -> str:
    """One family in Markdown; what stays is that of the exporter where most does."""
    made = [each for each in found.values() if "failure" not in each]
    left: dict[str, int] = {}
    for each in made:
        left |= {why: max(count, left.get(why, 0)) for why, count in each["stays"].items()}
    reasons = "; ".join(f"{count} × {why}" for why, count in sorted(left.items()))
    equal = "yes" if all(each["equal"] for each in made) else "**no**"
    cells = " | ".join(cell(found.get(exporter, {"failure": ""})) for exporter in EXPORTERS)
    return f"| {name} | {cells} | {reasons} | {equal if made else ''} |"


def cell(each: dict[str, Any]) -> str:
    """Batch norms and other affine nodes, before and after."""
    if "failure" in each:
        return "fails" if each["failure"] else ""
    before, after = zip(each["batch_norms"], each["maps"], strict=True)
    return f"{before[0]} + {before[1]} → {after[0]} + {after[1]}"


if __name__ == "__main__":
    main()
