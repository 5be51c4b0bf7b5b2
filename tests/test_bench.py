"""``bnfold bench``: what may be concluded from numbers, and what the command says."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import quantile_test

import bnfold
from bnfold.cli import main
from bnfold.latency import BenchError, statistics
from bnfold.latency.child.process import Job, child
from bnfold.latency.child.profile import operator_times
from bnfold.latency.environment import Environment
from bnfold.latency.models import _labels
from bnfold.latency.plan import Plan, plan
from bnfold.latency.report import BenchReport, Case
from bnfold.latency.samples import Samples
from bnfold.latency.show.plot import _name
from bnfold.latency.show.tables import three_digits
from bnfold.latency.statistics import Interval, Word, is_look, judge, median_ratio, pair_log_ratio, ranks
from bnfold.latency.verdict import Comparison, Finding
from bnfold.render import Table, on_terminal

MODELS = Path(__file__).parent.parent / "models"
CNN = MODELS / "digits_cnn.onnx"
QUIET = Interval(0.995, 1.0, 1.005, 30)

Draw = Callable[[np.random.Generator, int], statistics.Array]


class Done(NamedTuple):
    """What one run of the command returned."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["bnfold", "bench", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
        return Done(code, *capfd.readouterr())

    return call


def normal(random: np.random.Generator, count: int) -> statistics.Array:
    return random.normal(0, 0.02, count)


def spikes(random: np.random.Generator, count: int) -> statistics.Array:
    return random.standard_t(2, count) * 0.02


def relu(path: Path, shape: tuple[int | str, ...], name: str = "x") -> Path:
    """A model with nothing to fold."""
    ends = [helper.make_tensor_value_info(each, TensorProto.FLOAT, shape) for each in (name, "y")]
    graph = helper.make_graph([helper.make_node("Relu", [name], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


# Statistics


@pytest.mark.parametrize(("count", "fraction"), [(6, 0.5), (7, 0.5), (50, 0.5), (36, 0.9), (400, 0.99)])
def test_ranks_are_those_of_scipy(count: int, fraction: float) -> None:
    """The order statistics are those of scipy's quantile test."""
    ends = quantile_test(np.arange(count), p=fraction).confidence_interval(statistics.CONFIDENCE)
    assert ranks(count, fraction) == (ends.low, ends.high)


@pytest.mark.parametrize("draw", [normal, spikes])
@pytest.mark.parametrize("count", [6, 12, 41])
def test_intervals_cover(draw: Draw, count: int) -> None:
    """The interval covers the true median as often as it says, also where the mean has no variance."""
    random = np.random.default_rng(count)
    found = [median_ratio(draw(random, count)) for _ in range(2000)]
    covered = np.mean([each.low <= 1 <= each.high for each in found])
    assert covered >= statistics.CONFIDENCE - 0.012  # 2.5 standard errors


@pytest.mark.parametrize("draw", [normal, spikes])
def test_stopping_early_still_covers(draw: Draw) -> None:
    """Ending at the first look at which the interval is narrow costs at most 2 % of coverage."""
    random, covered, stopped = np.random.default_rng(5), [], []
    for _ in range(2000):
        logs = draw(random, 90)
        looks = (n for n in range(1, 91) if is_look(n) and median_ratio(logs[:n]).width <= 0.02)
        stopped.append(next(looks, 90))
        found = median_ratio(logs[: stopped[-1]])
        covered.append(found.low <= 1 <= found.high)
    assert np.mean(covered) >= statistics.CONFIDENCE - 0.02
    assert len(set(stopped)) > 3


def test_looks() -> None:
    """Widths are looked at seldom, each time after half as many pairs again."""
    assert [count for count in range(1, 100) if is_look(count)] == [12, 18, 27, 41, 61, 92]


def test_a_pair_is_one_observation() -> None:
    """Where every session has a speed of its own, pairs cover, and blocks counted one by one do not."""
    random, pairwise, blockwise = np.random.default_rng(7), [], []
    for _ in range(400):
        speed = random.normal(0, 0.02, (15, 1, 2))
        blocks = np.exp(speed + random.normal(0, 0.01, (15, 10, 2)))
        by_pair = median_ratio([pair_log_ratio(each, 1) for each in blocks])
        by_block = median_ratio(np.log(blocks[..., 1] / blocks[..., 0]).reshape(-1))
        pairwise.append(by_pair.low <= 1 <= by_pair.high)
        blockwise.append(by_block.low <= 1 <= by_block.high)
    assert np.mean(pairwise) >= 0.93
    assert np.mean(blockwise) <= 0.75


def test_a_disturbed_block_changes_nothing() -> None:
    """A pair's ratio is the median of its blocks' ratios, and a block counts with its median run."""
    samples = Samples()
    quiet, spike = [[200, 200, 200], [100, 100, 100]], [[200, 200, 200], [100, 100, 9000]]
    samples.add([10, 20], [quiet, spike, [[200] * 3, [7000] * 3]])
    assert samples.time(1).estimate == pytest.approx(0.5)
    assert samples.load(1).estimate == pytest.approx(2)
    assert len(samples.runs[0]) == 9


@pytest.mark.parametrize(
    ("ratio", "control", "word"),
    [
        (Interval(0.69, 0.71, 0.74, 30), QUIET, Word.FASTER),
        (Interval(1.02, 1.03, 1.04, 30), QUIET, Word.SLOWER),
        (Interval(0.98, 1.0, 1.01, 30), QUIET, Word.SAME),
        (Interval(0.996, 0.997, 0.999, 30), QUIET, Word.SAME),
        (Interval(0.90, 0.92, 0.94, 30), Interval(0.95, 1.0, 1.12, 30), Word.SAME),
        (Interval(0.88, 0.92, 0.94, 30), Interval(0.95, 1.0, 1.12, 30), Word.FASTER),
        (Interval(0.0, 0.5, math.inf, 5), Interval(0.0, 1.0, math.inf, 5), Word.SAME),
    ],
)
def test_judgement(ratio: Interval, control: Interval, word: Word) -> None:
    """A difference is one only if the interval excludes 1 and reaches beyond the noise floor."""
    assert judge(ratio, control) is word


def sentence(ratio: Interval, control: Interval = QUIET) -> str:
    finding = Finding(ratio, control)
    return Comparison("B", "A", finding, finding).sentence


def test_verdicts_in_words() -> None:
    """One sentence says what was found, and why nothing was."""
    assert sentence(Interval(0.69, 0.71, 0.74, 30)) == (
        "B is faster than A: 0.71× the time (95 % interval 0.69 to 0.74)"
    )
    assert sentence(Interval(1.02, 1.03, 1.04, 30)).startswith("B is slower than A: 1.03× the time (")
    assert sentence(Interval(0.98, 1.0, 1.01, 30)) == (
        "no measurable difference between B and A: 1.00× the time (95 % interval 0.98 to 1.01)"
    )
    assert sentence(Interval(0.97, 0.98, 0.99, 30), Interval(0.95, 1.0, 1.02, 30)).endswith(
        "; A against itself is no closer: 1.00× the time (95 % interval 0.95 to 1.02)"
    )
    assert sentence(median_ratio(np.zeros(5))).endswith(
        "no interval; 5 session pairs are too few, 6 are needed: give it more time"
    )
    loads = Comparison("B", "A", Finding(QUIET, QUIET), Finding(Interval(0.5, 0.6, 0.7, 9), QUIET))
    assert loads.load_sentence == "B loads faster than A: 0.60× the time (95 % interval 0.50 to 0.70)"


def test_digits_tell_the_ends_apart() -> None:
    """An interval that excludes 1 never reads as if it did not."""
    assert "0.9950 to 0.9997" in sentence(Interval(0.995, 0.998, 0.9997, 30), Interval(1.0, 1.0, 1.0, 30))


@pytest.mark.parametrize(("percentile", "fewest"), [(50, 6), (90, 36), (95, 72), (99, 368), (99.9, 3688)])
def test_percentiles_need_runs(percentile: float, fewest: int) -> None:
    """A percentile is shown from the number of runs on at which its own interval lies inside the sample."""
    runs = np.linspace(1, 2, fewest)
    assert statistics.percentiles(runs)[percentile] == pytest.approx(np.quantile(runs, percentile / 100))
    assert percentile not in statistics.percentiles(runs[:-1])


def test_plans() -> None:
    """Fast models run often in a block, slow ones once; a short budget leaves one block."""
    fast, slow = plan([0.003] * 3, [20e-6, 40e-6, 20e-6], 20.0), plan([0.2] * 3, [0.06] * 3, 20.0)
    assert fast.runs * 20e-6 == pytest.approx(2e-3)
    assert (fast.lead, fast.blocks) == (1, 10)
    assert (slow.runs, slow.lead) == (1, 0)
    assert 12 * 3 * (0.2 + 0.06 * (2 + slow.blocks)) <= 20.0
    assert plan([5.0] * 3, [1.0] * 3, 1.0).blocks == 1


def test_plans_on_a_busy_machine() -> None:
    """A first pair that took so long that there would be no interval makes for fewer blocks."""
    planned = Plan(runs=100, lead=1, blocks=10)
    assert planned.after(0.1) == planned
    assert planned.after(0.33).blocks == 2
    assert planned.after(5.0).blocks == 1


def test_labels() -> None:
    """A file name is enough for files that have it in common with none, or are one file given twice."""
    assert _labels(["a/x.onnx", "b/y.onnx", "a/x.onnx"]) == ["x.onnx", "y.onnx", "x.onnx (2)"]
    assert _labels(["a/x.onnx", "b/x.onnx", "y.onnx"]) == ["a/x.onnx", "b/x.onnx", "y.onnx"]


def test_three_digits() -> None:
    """Zeros that were measured are shown, and nothing is rounded to none."""
    shown = [three_digits(each) for each in (0.15, 12.0, 999.4, 999.6, 1234.5, 0.0000601, 0.0)]
    assert shown == ["0.150", "12.0", "999", "1000", "1234", "0.0000601", "0"]


def test_operator_times() -> None:
    """Time is summed over nodes, the median of a node's calls counts, and calls in a loop count each."""

    def event(name: str, operator: str, microseconds: float) -> dict[str, Any]:
        return {
            "cat": "Node",
            "name": f"{name}_kernel_time",
            "dur": microseconds,
            "args": {"op_name": operator},
        }

    events = [event("a", "Conv", each) for each in (900, 30, 30)]
    events += [event("b", "Conv", 10)] * 3 + [event("inside", "Add", 2)] * 6
    events += [{"cat": "Session", "name": "model_run", "dur": 50}]
    found = operator_times(events, 3)
    assert found["Conv"] == {"nodes": 2, "seconds": pytest.approx(40e-6)}
    assert found["Add"] == {"nodes": 1, "seconds": pytest.approx(4e-6)}


def test_warnings() -> None:
    """A noisy or busy machine is a warning, not a result."""
    samples, random = Samples(), np.random.default_rng(3)
    for pair in random.lognormal(0, 0.5, (12, 1, 3, 1)) * 1e6:
        samples.add([1, 1, 1], pair.tolist())
    planned = plan([0.1] * 3, [0.1] * 3, 1.0)
    cases = [
        Case(8, level, {}, True, ["A", "B"], planned, samples, "budget", [None, None], None)
        for level in ("all", "off")
    ]
    busy = Environment("cpu", 1, 2, 2.5, 3.0, "system", {})
    warned = BenchReport([None, None], cases, busy, {"threads": 2}).warnings  # type: ignore[list-item]
    first, _, second, third = warned
    assert first.startswith("This machine is too noisy to see a difference of a few percent at level all: A ")
    assert second.startswith("The load was 2.5 before this began, on a machine of 2 cores;")
    assert third == "2 threads share 1 core, so they wait for each other; use fewer."
    assert not Environment("cpu", 1, 8, 2.5, 3.0, "system", {}).overloaded


# The command


def test_json(run: Run, tmp_path: Path) -> None:
    """One file is measured against its fold; stdout is the report alone, with every result and its unit."""
    figure = tmp_path / "figure.svg"
    asked = ("--batch", "1,3", "--seconds", 0.6, "--profile", "--json", "--plot", figure, "--level", "basic")
    done = run(CNN, *asked)
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    assert report["schema_version"] == 1
    assert list(report) == ["schema_version", "models", "settings", "cases", "environment", "warnings"]
    assert report["settings"]["level"] == "basic"
    assert report["models"][0] == {
        "label": "digits_cnn.onnx",
        "path": str(CNN.resolve()),
        "bytes": CNN.stat().st_size,
    }
    assert report["models"][1]["path"] is None
    assert {"bnfold", "onnxruntime", "onnx", "numpy", "scipy", "python"} == set(
        report["environment"]["versions"]
    )
    assert all(case["io_binding"] for case in report["cases"])
    assert [case["inputs"] for case in report["cases"]] == [{"image": [1, 1, 8, 8]}, {"image": [3, 1, 8, 8]}]
    for case in report["cases"]:
        check_case(case)
    assert "against itself" in figure.read_text()


def check_case(case: dict[str, Any]) -> None:
    before, after = case["models"]
    assert before["operators"]["BatchNormalization"]["nodes"] == 1
    assert "BatchNormalization" not in after["operators"]
    for model in (before, after):
        assert 0 < model["run_seconds"]["p50"] <= model["run_seconds"]["p90"]
        assert model["load_seconds"] > 0
        assert sys.platform != "linux" or model["peak_bytes"] > 0
        assert model["runs"] == case["session_pairs"] * case["blocks_per_pair"] * case["runs_per_block"]
    (compared,) = case["comparisons"]
    assert (compared["model"], compared["against"]) == ("digits_cnn.onnx (folded)", "digits_cnn.onnx")
    words = {word.value for word in Word}
    assert {compared["time"]["verdict"], compared["load"]["verdict"]} <= words
    assert compared["time"]["sentence"]
    assert case["control"]["pairs"] == case["session_pairs"]
    assert case["stopped"] in ("width", "budget")


def test_table(run: Run, tmp_path: Path) -> None:
    """The verdicts stand on lines of their own, first, however long the names are."""
    long = tmp_path / f"{'long_' * 30}name.onnx"
    long.write_bytes(CNN.read_bytes())
    done = run(CNN, long, "--seconds", 0.3, "--inputs", inputs(tmp_path))
    assert (done.code, done.err) == (0, "")
    verdict, loading, *rest = done.out.splitlines()
    assert f"{long.name} " in verdict
    assert "× the time" in verdict
    assert "load" in loading
    text = "\n".join(rest)
    for part in ("One run (ms)", "session creation (ms)", "peak memory (MB)", "Noise floor: ", "1 thread, "):
        assert part in text
    assert "on image 2×1×8×8" in text


def inputs(folder: Path) -> Path:
    path = folder / "inputs.npz"
    np.savez(path, image=np.zeros((2, 1, 8, 8), np.float32))
    return path


def test_open_dimensions(run: Run, tmp_path: Path) -> None:
    """A model with nothing to fold is measured alone, on the sizes asked for; the batch is 1 otherwise."""
    path = relu(tmp_path / "relu.onnx", ("batch", "length", 3))
    done = run(path, "--dim", "length=5", "--seconds", 0.2, "--markdown")
    assert (done.code, done.err) == (0, "")
    assert "on x 1×5×3;" in done.out
    assert "| relu.onnx | " in done.out
    assert "relu.onnx has nothing to fold, so it was measured alone." in done.out


def test_levels(run: Run) -> None:
    """Each optimization level is a case of its own, and its verdict says which."""
    done = run(CNN, "--level", "all,off", "--seconds", 0.2)
    assert (done.code, done.err) == (0, "")
    deployed, _, plain, _ = done.out.splitlines()[:4]
    assert deployed.startswith("level all: ")
    assert plain.startswith("level off: ")
    assert "1 thread, optimization levels all, off, " in done.out


def test_outputs_of_other_shapes(run: Run, tmp_path: Path) -> None:
    """Outputs that are not of the declared shape are not bound, in none of the models."""
    wrong, right = relu(tmp_path / "wrong.onnx", ("n", 3)), relu(tmp_path / "right.onnx", ("n", 3))
    model = onnx.load(wrong)
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 640
    onnx.save(model, wrong)
    done = run(right, wrong, "--seconds", 0.2, "--batch", 2, "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["cases"][0]["io_binding"] is False


def test_python() -> None:
    """A model in memory, and the same names as the command's options."""
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    said: list[float] = []
    report = bnfold.bench(model, batch=4, seconds=0.2, progress=lambda done, text: said.append(done))
    assert isinstance(report, bnfold.BenchReport)
    assert [each.label for each in report.models] == ["model 1"]
    assert report.cases[0].shapes == {"x": [4, 3]}
    assert said == sorted(said)
    with pytest.raises(ValueError, match="level is one of all, extended, basic, off"):
        bnfold.bench(model, level="most")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["absent.onnx"], "does not exist"),
        ([CNN, "--batch", "1,0"], "is no list of sizes such as 1,8,64"),
        ([CNN, "--dim", "width"], "is not of the form name=size"),
        ([CNN, "--dim", "width=3"], "digits_cnn.onnx has no open dimension 'width'; it has 'batch'."),
        ([CNN, "--provider", "NoProvider"], "ONNX Runtime has no NoProvider here; it has "),
        ([CNN, "--inputs", "absent.npz"], "absent.npz does not exist"),
        ([CNN, "--inputs", "x.npz", "--batch", "2"], "--inputs have their sizes"),
        ([CNN, "--plot", "figure.pdf"], "figure.pdf is neither .png nor .svg"),
        ([CNN, "--json", "--markdown"], "contradict"),
        ([CNN, "--seconds", "0"], "is not in the range"),
        ([CNN, "--seconds", "nan"], "'nan' is no finite number."),
        ([CNN, "--width", "inf"], "'inf' is no finite number."),
        ([CNN, "--threads", "99999"], "too few for 99999 threads; use fewer."),
        ([CNN, "--batch", "2", "--dim", "batch=3"], "'batch' is the batch dimension of digits_cnn.onnx"),
        ([CNN, "--batch", "9" * 14], "do not fit into memory"),
        ([CNN, "--inputs", MODELS], "models is a directory; give an .npz"),
        ([CNN, "--inputs", CNN], "digits_cnn.onnx is no .npz; write it with numpy.savez"),
        ([CNN, "--plot", "/proc/figure.png"], "/proc cannot be written to ("),
        ([CNN, "--level", "all,most"], "'most' is not one of all, extended, basic, off."),
    ],
)
def test_bad_usage(run: Run, arguments: list[object], text: str) -> None:
    """What cannot be done is one sentence on stderr and exit code 2."""
    refused(run(*arguments), text)


def test_models_that_do_not_compare(run: Run, tmp_path: Path) -> None:
    """Other inputs, or a fixed batch size that is asked to change, are refused by name."""
    one, two = relu(tmp_path / "one.onnx", (1, 3)), relu(tmp_path / "two.onnx", (1, 3), "z")
    refused(run(one, two), "two.onnx takes the inputs 'z', and one.onnx takes 'x'")
    refused(run(one, "--batch", 8), "one.onnx has no open batch dimension (it is fixed at 1)")
    wide = relu(tmp_path / "wide.onnx", ("n", 4))
    refused(
        run(one, wide), "wide.onnx takes 'x' as n × 4 float32, and one.onnx runs on 1 × 3 float32; models"
    )
    (tmp_path / "figure.svg").mkdir()
    refused(run(one, "--plot", tmp_path / "figure.svg"), "figure.svg is a directory; name a file.")


def test_results_outlive_their_figure(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured is told also where the figure can no longer be written."""

    def fail(report: BenchReport, path: Path) -> None:
        raise bnfold.OutputError("the disk is full; make room.")

    monkeypatch.setattr(BenchReport, "plot", fail)
    path = relu(tmp_path / "relu.onnx", ("n", 3))
    done = run(path, "--seconds", 0.2, "--json", "--plot", tmp_path / "figure.svg", "--batch", "2,2")
    assert (done.code, done.err) == (2, "bnfold: the disk is full; make room.\n")
    assert len(json.loads(done.out)["cases"]) == 1


def test_closed_streams(tmp_path: Path) -> None:
    """Nobody listens on stdout or stderr: that is no defect, and the exit code tells."""
    path = relu(tmp_path / "relu.onnx", ("n", 3))
    command = f"{shlex.quote(sys.executable)} -m bnfold bench {shlex.quote(str(path))} --seconds 0.1"
    for closed in (">&-", "2>&-"):
        done = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [["bench", CNN, "--seconds", "0.1"], ["explain"]])
def test_full_disk(arguments: list[str]) -> None:
    """A report that cannot be written is one sentence, too."""
    command = [sys.executable, "-m", "bnfold", *map(str, arguments)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == ("bnfold: cannot write (No space left on device); make room, or write elsewhere.\n")


def test_inputs_that_few_values_fit(run: Run, tmp_path: Path) -> None:
    """Indices into a table of one row, and tensors declared empty, are made; so is a scalar."""
    table = numpy_helper.from_array(np.ones((1, 8), np.float32), "w")
    ends = [
        helper.make_tensor_value_info("i", TensorProto.INT64, ["n"]),
        helper.make_tensor_value_info("e", TensorProto.FLOAT, [0, 8]),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, []),
    ]
    nodes = [
        helper.make_node("Gather", ["w", "i"], ["g"]),
        helper.make_node("Concat", ["g", "e"], ["c"], axis=0),
        helper.make_node("Mul", ["c", "s"], ["y"]),
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])
    graph = helper.make_graph(nodes, "g", ends, [y], [table])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    done = run(path, "--seconds", 0.1, "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["cases"][0]["inputs"] == {"i": [1], "e": [0, 8], "s": []}


def test_a_dimension_of_several_axes_is_no_batch(run: Run, tmp_path: Path) -> None:
    """What also names another axis than the first is not what --batch sets."""
    sizes = {"x": ["n", "k"], "z": ["k", "m"], "y": ["n", "m"]}
    x, z, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, each) for name, each in sizes.items())
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "z"], ["y"])], "g", [x, z], [y])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    done = run(path, "--seconds", 0.1, "--json", "--batch", 4, "--dim", "k=5", "--dim", "m=2")
    assert json.loads(done.out)["cases"][0]["inputs"] == {"x": [4, 5], "z": [5, 2]}


def test_names_in_figures(tmp_path: Path) -> None:
    """A name is text whatever is in it, is in the legend, and does not fill the panel."""
    model = onnx.load(relu(tmp_path / "_a$b$.onnx", ("n", 3)))
    assert _name("a$b\n$") == r"a\$b\n\$"
    assert len(_name("long" * 30)) <= 35
    report = bnfold.bench(tmp_path / "_a$b$.onnx", model, seconds=0.1)
    report.plot(tmp_path / "figure.svg")
    # Beside the control's lane and in the legend.
    assert (tmp_path / "figure.svg").read_text().count("<!-- _a$b$.onnx -->") == 2


def test_numbers_stay_whole_on_narrow_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    """A narrow table breaks names, not numbers."""
    names = ("digits_cnn.onnx", "digits_cnn.onnx (folded)")
    rows = [(each, "0.0136", "0.0192", "12980") for each in names]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        patch.setenv("COLUMNS", "42")
        on_terminal([Table("One run (ms)", ("model", "median", "session creation (ms)", "runs"), rows)])
    shown = capsys.readouterr().out
    assert all(cell in shown for row in rows for cell in row[1:])


def refused(done: Done, text: str) -> None:
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("bnfold: ")
    assert done.err.count("\n") == 1
    assert text in done.err


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_a_crash_is_an_error(tmp_path: Path) -> None:
    """A runtime that takes its process down leaves a sentence behind."""
    job: Job = {
        "labels": ["a.onnx"],
        "paths": [str(CNN)],
        "folder": str(tmp_path),
        "threads": 1,
        "level": "all",
        "providers": ["CPUExecutionProvider"],
    }
    with child(job) as line:
        os.kill(line.pid, signal.SIGSEGV)
        with pytest.raises(BenchError, match=r"^ONNX Runtime crashed \(signal 11\) when "):
            line.ask("memory", model=0)
