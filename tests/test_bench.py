"""The benchmark harness: sizes, honest timing, memory, limits, rows, and the command."""

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import benchmarks.runner as runner
from benchmarks import rows
from benchmarks.case import DIRECTIONS, Case, parse, squares
from benchmarks.measure import ceilings, job, memory, timing
from benchmarks.measure.ceilings import Ceilings
from benchmarks.peers import PEERS
from benchmarks.peers.base import Peer, Unavailable
from benchmarks.runner import Step, measure, plan
from benchmarks.works import WORKS
from benchmarks.works.base import Cost
from cosegflow import cli

CPU = torch.device("cpu")
LIMITS = Ceilings(copy=1e10, matrix={"float32": 1e11}, exp=1e9)
SMALL = squares((8, 6))[0]


pytestmark = pytest.mark.usefixtures("one_thread")


def bench(*options: object) -> int:
    return cli.main(["bench", *map(str, options)])


# sizes


@pytest.mark.parametrize("work", WORKS)
def test_every_set_of_sizes_can_be_written_and_read(work):
    for cases in WORKS[work].cases.values():
        for case in cases:
            assert parse(str(case)) == case
    assert {"quick", "cpu", "gpu", "sweep"} == set(WORKS[work].cases)


def test_a_size_in_any_order():
    want = Case(batch=2, channels=3, a=(4, 5), b=(6, 7), dtype="bfloat16", foreground=0.5, layout="channels_last")
    assert parse("b=6x7,foreground=0.5,N=4x5,bfloat16,channels_last,C=3,B=2") == want


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("C=0", "above 0"),
        ("N=64", "HxW"),
        ("N=0x4", "HxW"),
        ("foreground=1.5", r"\(0, 1\]"),
        ("dtype=int8", "float32, bfloat16"),
        ("flow=fast", "smooth, random"),
        ("Z=3", "B, C, N"),
        ("C=", "whole number"),
    ],
)
def test_bad_sizes_say_what_is_valid(text, word):
    with pytest.raises(ValueError, match=word):
        parse(text)


# works


@pytest.mark.parametrize("work", WORKS)
def test_inputs_are_random_and_of_the_case(work):
    case = replace(WORKS[work].cases["quick"][0], foreground=0.3, layout="channels_last")
    first, again, other = (WORKS[work].inputs(case, CPU, seed) for seed in (0, 0, 1))
    assert list(first) == list(again)
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]) and not torch.equal(tensor, other[name])
        if name.startswith("mask"):
            assert abs(tensor.mean().item() - 0.3) <= 1 / tensor[0].numel()
        if name in ("fa", "x"):
            assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("work", WORKS)
def test_a_row_is_labelled_with_what_the_work_uses(work):
    case = WORKS[work].own(Case(dtype="bfloat16", foreground=0.3, layout="channels_last", flow="random", radius=7))
    default = Case()
    for name in ("dtype", "foreground", "layout", "flow", "radius"):
        assert (getattr(case, name) == getattr(default, name)) == (name not in WORKS[work].uses)
    for cases in WORKS[work].cases.values():
        assert all(WORKS[work].own(case) == case for case in cases)


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("foreground", [1.0, 0.4])
def test_costs_are_positive_and_add_up(work, foreground):
    case = replace(WORKS[work].cases["quick"][0], foreground=foreground)
    forward, backward, both = (WORKS[work].cost(case, d) for d in DIRECTIONS)
    assert forward.bytes > 0 and both == tuple(f + b for f, b in zip(forward, backward, strict=True))


def test_cost_of_match_by_hand():
    cost = WORKS["match"].cost(Case(batch=2, channels=8, a=(3, 4), b=(5, 6), dtype="bfloat16"), "forward")
    assert cost == Cost(bytes=2 * 8 * (12 + 30) * 2 + 2 * 12 * 16, flops=2 * 2 * 8 * 12 * 30, exps=2 * 12 * 30)


@pytest.mark.parametrize("work", ["match", "match_both", "transfer"])
@pytest.mark.parametrize("foreground", [1.0, 0.4])
def test_the_truth_in_pieces_is_the_truth(work, foreground, monkeypatch):
    from benchmarks.works import streamed

    case = replace(SMALL, foreground=foreground, a=(7, 5), b=(6, 4))
    inputs = WORKS[work].inputs(case, CPU, 0)
    whole = WORKS[work].exact(case, inputs, True)
    monkeypatch.setattr(streamed, "SCORES", {"cpu": 250})
    pieces = WORKS[work].exact(case, inputs, True)
    assert whole.rows is None and whole.output.dtype == torch.float64
    torch.testing.assert_close(pieces.output, whole.output, atol=1e-12, rtol=1e-12)
    assert set(pieces.gradients) == {k for k, v in inputs.items() if v.requires_grad}
    for name, gradient in whole.gradients.items():
        torch.testing.assert_close(pieces.gradients[name], gradient, atol=1e-11, rtol=1e-11)
    if work == "match":
        monkeypatch.setattr(streamed, "WORTH", {"cpu": 0})
        sample = WORKS[work].exact(case, inputs, True)
        assert sample.rows is not None and not sample.gradients
        torch.testing.assert_close(sample.output, whole.output[:, :, sample.rows], atol=1e-12, rtol=1e-12)


def test_inputs_that_do_not_fit_are_rows(monkeypatch):
    monkeypatch.setattr(runner, "_inputs", lambda *a: (_ for _ in ()).throw(MemoryError("DefaultCPUAllocator")))
    assert measured(monkeypatch)["cosegflow"]["status"] == "out of memory"


# limits


def test_the_limit_is_the_busiest_unit():
    assert LIMITS.limit(Cost(1e10, 0, 0), "float32") == (1.0, "copy")
    assert LIMITS.limit(Cost(1e9, 1e12, 1e8), "float32") == (10.0, "matrix")
    assert LIMITS.limit(Cost(1e9, 1e9, 1e10), "float32") == (10.0, "exp")
    assert LIMITS.limit(Cost(1e10, 1e15, 0), "float16") == (1.0, "copy")  # a rate that was not measured limits nothing


def test_ceilings_are_measured():
    found = ceilings.measure(CPU, {"float32"}, 0.02)
    assert 1e8 < found.copy < 1e13 and 1e8 < found.matrix["float32"] < 1e15 and found.exp is not None
    assert 1e6 < found.exp < 1e13


# contestants that misbehave


def flow_of(scale: float = 1.0, wait_s: float = 0.0, **more):
    """A contestant for `match`, right up to a factor."""

    def make(case, device):
        ours = PEERS["cosegflow"].works["match"](case, device)

        def function(inputs):
            time.sleep(wait_s)
            return ours(inputs) * scale

        return function

    return Peer("fake", "", {"match": make}, lambda: "1", **more)


def measured(monkeypatch, direction="forward", case=SMALL, budget=0.02, **peers):
    peers = {name: replace(peer, name=name) for name, peer in peers.items()}
    monkeypatch.setattr(runner, "PEERS", {**PEERS, **peers})
    step = Step("match", case, direction, ("cosegflow", *peers))
    found = measure(step, CPU, {"date": "d"}, LIMITS, budget, 50, False)
    return {row["peer"]: row for row in found}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_row_holds_everything(monkeypatch, direction):
    row = measured(monkeypatch, direction)["cosegflow"]
    assert set(row) <= set(rows.COLUMNS)
    assert row["status"] == "ok" and row["date"] == "d" and row["repeats"] >= 1
    assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
    assert row["error_max"] <= 1e-3 and row["error_rel"] <= 1e-3
    assert row["limit_fraction"] == pytest.approx(row["limit_ms"] / row["median_ms"], rel=1e-2)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_wrong_answer_shows(monkeypatch, direction):
    found = measured(monkeypatch, direction, wrong=flow_of(1.5), nothing=flow_of(math.nan))
    assert found["wrong"]["error_rel"] == pytest.approx(0.5, abs=1e-3)
    assert math.isnan(found["nothing"]["error_max"]) and math.isnan(found["nothing"]["error_rel"])


def test_times_are_those_of_the_contestant(monkeypatch):
    found = measured(monkeypatch, slow=flow_of(wait_s=0.02))
    assert found["slow"]["median_ms"] >= 20
    assert found["cosegflow"]["median_ms"] <= found["slow"]["median_ms"] - 10


def raises(failure):
    def make(case, device):
        raise failure

    return make


def test_who_cannot_is_a_row_with_the_reason(monkeypatch):
    def later(case, device):
        calls = []

        def function(inputs):
            calls.append(1)
            if len(calls) > 1:
                raise RuntimeError("broke\nafter a while")
            return PEERS["cosegflow"].works["match"](case, device)(inputs)

        return function

    def peer(make, version="1", **more):
        return Peer("", "", {"match": make}, lambda: version, **more)

    found = measured(
        monkeypatch,
        absent=peer(raises(Unavailable("not installed: pip install it")), version=""),
        narrow=peer(raises(Unavailable("needs C <= 4"))),
        hungry=peer(raises(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))),
        broken=peer(raises(TypeError("no such thing"))),
        later=peer(later),
    )
    assert [found[n]["status"] for n in ("absent", "narrow", "hungry", "broken", "later")] == [
        "missing", "unsupported", "out of memory", "failed", "failed",
    ]  # fmt: skip
    assert found["broken"]["reason"] == "TypeError: no such thing" and found["later"]["reason"].endswith("broke")
    assert found["cosegflow"]["status"] == "ok"
    both = measured(monkeypatch, "both", one=flow_of(directions=("forward",)))
    assert both["one"]["status"] == "unsupported" and both["one"]["reason"] == "no backward"


# turns


def test_contestants_take_turns(monkeypatch):
    order: list[str] = []

    class Spy(job.Job):
        def prepare(self, index):
            order.append(self.name)
            return super().prepare(index)

    inputs = [WORKS["match"].inputs(SMALL, CPU, seed) for seed in range(2)]
    function = PEERS["cosegflow"].works["match"](SMALL, CPU)
    found = timing.in_turn([Spy(n, function, "forward", inputs) for n in "AB"], CPU, 1.0, 10**6)
    assert len(order) >= 4 and order == ["A", "B"] * (len(order) // 2)
    assert all(len(r.seconds) >= 2 for r in found.values())
    order.clear()
    timing.in_turn([Spy(n, function, "forward", inputs) for n in "AB"], CPU, 2.0, 1)
    assert order == ["A", "B"] * timing.TURNS["cpu"]  # also where the first turn has readings enough


def test_quantiles():
    assert timing.Readings([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]).timing() == (2.0, 3.0, 5.0, 6)
    assert timing.Readings([7.0]).timing() == (7.0, 7.0, 7.0, 1)


# memory


def test_peak_memory_of_a_volume():
    """Eager stores at least scores and probabilities; ours does not."""
    case = squares((8, 48))[0]
    volume = 48**4 * 4
    assert volume <= memory.peak_cpu("match", case, "forward", "eager") <= 5 * volume
    assert memory.peak_cpu("match", case, "forward", "cosegflow") <= volume / 2


def test_out_of_memory_stays_in_the_child(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 40e6)
    with pytest.raises(memory.OutOfMemory, match=r"0\.0 GB"):
        memory.peak_cpu("match", squares((8, 96))[0], "forward", "eager")
    with pytest.raises(Unavailable, match="no mask"):  # the child's reasons arrive as they are
        memory.peak_cpu("soft_argmax", squares((1, 8), foreground=0.5)[0], "forward", "kornia")
    with pytest.raises(RuntimeError, match="unknown"):
        memory.peak_cpu("match", replace(SMALL, dtype="unknown"), "forward", "eager")


# files


def test_rows_survive_a_file(tmp_path):
    row = {"work": "match", "direction": "both", "batch": 2, "median_ms": 1.25, "error_max": math.nan, "reason": None}
    row |= {"bytes": 1e9, "peer": 'a, "b"\nc', "status": "ok"}
    rows.write([row], tmp_path / "r.csv")
    (back,) = rows.read(tmp_path / "r.csv")
    assert math.isnan(back.pop("error_max")) and row.pop("error_max")
    assert {k: v for k, v in back.items() if v is not None} == {k: v for k, v in row.items() if v is not None}
    assert isinstance(back["batch"], int) and list(tmp_path.iterdir()) == [tmp_path / "r.csv"]
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="columns differ"):
        rows.read(tmp_path / "x.csv")


# the command


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--works", "mach"), "--works: unknown mach; valid: all, match, warp"),
        (("--peers", "eagre"), "--peers: unknown peer eagre; valid: all, default, cosegflow, two-calls, eager"),
        (("--peers", "kornia", "--works", "match"), "--peers: none of kornia does any of match"),
        (("--sizes", "huge"), "--sizes: a size has the keys"),
        (("--directions", "up"), "--directions: unknown up; valid: all, forward, backward, both"),
        (("--device", "tpu"), "--device: need one of cpu"),
        (("--dtype", "int8"), "--dtype: need one of float32"),
        (("--budget", "0"), "--budget: need a number above 0"),
    ],
)
def test_bad_options_are_one_line(options, words, capsys, tmp_path):
    assert bench("--quick", "--out", tmp_path, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("cosegflow: error: ") and words in error and error.count("\n") == 1


def test_an_unwritable_folder_is_found_before_the_first_measurement(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("cosegflow.benchmarks.measure.ceilings.measure", lambda *a: pytest.fail("measured"))
    assert bench("--quick", "--csv", tmp_path, "--out", tmp_path) == 2
    assert "--csv: need a file" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    for option in ("--out", "--csv"):
        more = ("--out", tmp_path) if option == "--csv" else ()
        where = tmp_path / "file" / "x.csv" if option == "--csv" else tmp_path / "file"
        assert bench("--quick", option, where, *more) == 2
        assert option in capsys.readouterr().err


def test_list_names_all(capsys):
    assert bench("--list") == 0
    text = capsys.readouterr().out
    for name in (*WORKS, *PEERS):
        assert name in text


def test_quick_run_writes_rows_report_and_table(tmp_path, capsys):
    """Under a minute on two idle cores; here other tests may run beside it."""
    started = time.monotonic()
    assert bench("--quick", "--out", tmp_path, "--device", "cpu") == 0
    assert time.monotonic() - started <= 120
    (csv,) = tmp_path.glob("bench_cpu_*.csv")
    found = rows.read(csv)
    assert {(r["work"], r["direction"]) for r in found} == {(w, d) for w in WORKS for d in DIRECTIONS}
    ours = [r for r in found if r["peer"] == "cosegflow"]
    assert len(ours) == 3 * len(WORKS)
    for row in ours:
        assert row["status"] == "ok" and row["error_rel"] <= 1e-3 and row["threads"] == torch.get_num_threads()
        assert row["torch"] == torch.__version__ and row["device_name"]
    assert {"eager", "chunked"} <= {r["peer"] for r in found}
    assert "cosegflow" in (tmp_path / "report.html").read_text()
    assert "match" in capsys.readouterr().out


def test_ctrl_c_keeps_what_was_measured(tmp_path):
    command = [sys.executable, "-m", "cosegflow", "bench", "--works", "warp", "--peers", "cosegflow", "--no-memory"]
    # 36 rows of 3 seconds: more than ten signals take, since Python drops those that fall into a callback.
    command += [f"--sizes=C={channels},N=32x32" for channels in range(3, 15)]
    command += ["--budget", "3", "--repeats", "1000000", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 90
        while not list(tmp_path.glob("*.csv")) and time.monotonic() < deadline:
            time.sleep(0.1)
        for _ in range(10):
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                out, error = process.communicate(timeout=6)
                break
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == 130 and "kept" in error
    (csv,) = tmp_path.glob("*.csv")
    found = rows.read(csv)
    assert 1 <= len(found) < 36 and all(r["status"] == "ok" for r in found)
    assert re.search(rf"{len(found)} rows", out)
    assert not list(Path(tmp_path).glob("*.tmp"))


def test_plan_leaves_out_who_does_not_do_the_work():
    steps = plan(["warp"], "quick", ["forward"], "all")
    assert len(steps) == 1 and "grid_sample" not in steps[0].peers and "sdpa" not in steps[0].peers
    assert {"cosegflow", "eager", "kornia"} <= set(steps[0].peers)


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_a_volume_that_may_not_fit_is_tried_in_a_child_first(direction, monkeypatch):
    tried = []

    def refuse(work: str, case: Case, graph: str, peer: str) -> float:
        tried.append((peer, graph))
        raise memory.OutOfMemory("more than there is")

    monkeypatch.setattr(memory, "available", lambda: 100)
    monkeypatch.setattr(memory, "peak_cpu", refuse)
    found = measure(Step("match", SMALL, direction, ("cosegflow", "eager")), CPU, {}, LIMITS, 0.01, 1, False)
    assert {row["peer"]: row["status"] for row in found} == dict.fromkeys(("cosegflow", "eager"), "out of memory")
    assert {graph for _, graph in tried} == {"forward" if direction == "forward" else "both"}
