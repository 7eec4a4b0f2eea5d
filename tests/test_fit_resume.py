"""kill -9 and two processes: the same run as an uninterrupted one, and as one process with the doubled batch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the joint extra is not installed")

from fit_runs import draw_folder, fit_options

from cosegflow import cli
from cosegflow.joint.checkpoint import LAST_NAME, load_checkpoint, load_training_state
from cosegflow.joint.nested import pack

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("data") / "photos")


@pytest.mark.timeout(240)
def test_kill_9_and_resume_gives_the_same_weights(tmp_path: Path, photographs: Path):
    """Bit-equal weights, optimiser and scores. A pass has 5 steps, a checkpoint every 3: it resumes within a pass."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    options = (
        "--train.steps", 18, "--train.checkpoint_every", 3, "--train.validate_every", 4, "--data.validation", 3,
        "--train.patience", 100, "--train.seed", 5,
    )  # fmt: skip
    command = [sys.executable, "-m", "cosegflow", *fit_options(photographs, killed, *options, "--data.workers", 1)]
    process = subprocess.Popen(command, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (killed / LAST_NAME).is_file():
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    stopped_at = load_training_state(killed / LAST_NAME, "last")["global_step"]
    assert 3 <= stopped_at < 18 and stopped_at % 5, f"killed in the middle of a pass, got step {stopped_at}"

    assert cli.main(["fit", "--out", str(killed), "--resume", "--data.workers", "0"]) == 0
    assert cli.main(fit_options(photographs, whole, *options)) == 0
    states = [load_training_state(folder / LAST_NAME, "last") for folder in (killed, whole)]
    for state in states:
        assert state["global_step"] == 18
        state.pop("cosegflow")  # the folder's name and the number of workers
    left, right = (pack({k: state[k] for k in ("state_dict", "optimizer_states", "lr_schedulers")}) for state in states)
    assert left[1] == right[1] and left[0].keys() == right[0].keys()
    assert all(torch.equal(left[0][name], right[0][name]) for name in left[0])
    scores = [[str(v) for k, v in s["callbacks"].items() if k.startswith(("Keep", "EarlyStopping"))] for s in states]
    assert len(scores[0]) == 2 and scores[0] == scores[1]
    (early,) = [v for k, v in states[0]["callbacks"].items() if k.startswith("EarlyStopping")]
    (kept,) = [v for k, v in states[0]["callbacks"].items() if k.startswith("KeepCheckpoints")]
    assert float(early["best_score"]) == pytest.approx(kept["best_score"]), "both take the largest score"
    models = [load_checkpoint(folder).state_dict() for folder in (killed, whole)]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    assert not list(killed.glob(".unfinished-*"))


@pytest.mark.timeout(240)
def test_two_processes_are_one_with_the_doubled_batch(tmp_path: Path, photographs: Path):
    """torchrun on gloo; plain SGD, so that a difference of the gradients shows as one of the parameters.

    With beta 10: at 100 many matches of these drawings fall exactly on a pixel, where bilinear sampling has a kink and
    the gradient has two values; rounding then decides between them.
    """
    rates = [f"--train.{name}=0.05" for name in ("learning_rate", "adapter_learning_rate", "tail_learning_rate")]
    options = (
        "--train.steps", 4, "--train.optimiser", "sgd", "--train.warmup", 0, "--model.beta", 10, *rates,
        "--data.validation", 3, "--train.validate_every", 2,
    )  # fmt: skip
    two = fit_options(photographs, tmp_path / "two", *options)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cosegflow", *two,
    ]  # fmt: skip
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("model: ") == 1, "only the first process reports"
    assert cli.main([*fit_options(photographs, tmp_path / "one", *options), "--data.batch", "4"]) == 0
    (single, single_score), (double, double_score) = (_last(tmp_path / name) for name in ("one", "two"))
    start = fit_options(photographs, tmp_path / "start", "--train.steps", 1, *[r.replace("0.05", "0") for r in rates])
    assert cli.main([*start, "--train.optimiser", "sgd"]) == 0
    (before, _) = _last(tmp_path / "start")
    moved = max(float((single[name] - before[name]).abs().max()) for name in single)
    apart = max(float((single[name] - double[name]).abs().max()) for name in single)
    assert moved >= 1e-3, "it has learnt something to compare"
    assert apart <= 1e-5 * moved
    assert double_score == pytest.approx(single_score, rel=1e-5)


def _last(folder: Path) -> tuple[dict[str, torch.Tensor], float | None]:
    state = load_training_state(folder / LAST_NAME, "last")
    (kept,) = [v for k, v in state["callbacks"].items() if k.startswith("KeepCheckpoints")]
    return state["state_dict"], kept["best_score"]
