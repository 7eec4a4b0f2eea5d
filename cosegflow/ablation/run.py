"""Makes one run: trains, or goes on training, evaluates, and writes the measurements beside the model.

    python -m cosegflow.ablation.run OUT/runs/joint-0/job.json

`cosegflow ablate` starts it and holds its standard input open: the run ends when that does.
"""

import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch

from cosegflow._version import __version__
from cosegflow.ablation.composed import ComposedCache
from cosegflow.ablation.evaluate import Value, evaluate
from cosegflow.ablation.job import FINISHED_NAME, RESULT_NAME, Job, read_job
from cosegflow.ablation.subjects import Subject, TrainedSubject, ZeroShotSubject
from cosegflow.ablation.table import Measurement, write_table
from cosegflow.atomic_file import replaced
from cosegflow.benchmarks.provenance import provenance
from cosegflow.data.sources import load_library
from cosegflow.joint.checkpoint import find_training_state, load_checkpoint, load_training_state
from cosegflow.joint.fit import fit
from cosegflow.joint.model import JointModel, ModelConfig


def train(job: Job) -> dict[str, float]:
    """Trains into the job's folder, from its training state where there is one; steps and seconds.

    Where a run was resumed, its seconds are those since then, scaled to all steps; none where no step was left.
    """
    record = job.folder / FINISHED_NAME
    if record.is_file() and (job.folder / "model").is_dir():
        return {str(k): float(v) for k, v in json.loads(record.read_text(encoding="utf-8")).items()}
    resume = find_training_state(job.folder)
    first = 0 if resume is None else int(load_training_state(resume, "resume")["global_step"])
    start = time.monotonic()
    result = fit(job.config, resume)
    found = {"steps": float(result.step)}
    if result.step > first:
        found["step_seconds"] = (time.monotonic() - start) / (result.step - first)
        found["train_seconds"] = found["step_seconds"] * result.step
    with replaced(record) as temporary:
        temporary.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return found


def make_subject(job: Job) -> tuple[Subject, dict[str, float]]:
    """What is evaluated, and the values of the run itself."""
    config = job.config
    if job.row.method == "zero-shot":
        return ZeroShotSubject(config.model), {}
    if job.row.method == "untrained":
        torch.manual_seed(job.seed)
        return TrainedSubject(JointModel(config.model)), {}
    spent = train(job)
    return TrainedSubject(load_checkpoint(job.folder, "--out"), job.row.masks), spent


def measure(job: Job) -> list[Measurement]:
    """Trains and evaluates."""
    about = provenance(torch.device("cpu"))
    subject, spent = make_subject(job)
    library = load_library(job.data).split()[1]
    cache = ComposedCache(job.out / "cache", library, job.constants.size)
    constants = job.constants
    if job.row.method == "trained" and not job.row.main:
        constants = replace(constants, clutter=())  # a third of the time, for a question that the main rows answer
    named = [(job.row.name, value) for value in evaluate(subject, cache, constants, job.root)]
    named += [(job.row.name, Value("", name, "", value, 0)) for name, value in spent.items()]
    if job.row.lent is not None:
        assert isinstance(subject, TrainedSubject)
        model = subject.model
        model.config = replace(model.config, rounds=ModelConfig().rounds)
        lent = evaluate(TrainedSubject(model), cache, constants, job.root)
        named += [(job.row.lent, value) for value in lent]
    settings, digest = job.settings, job.digest
    return [
        Measurement(
            row=name,
            seed=job.seed,
            dataset=value.dataset,
            metric=value.metric,
            condition=value.condition,
            value=value.value,
            pairs=value.pairs if value.dataset else None,
            settings=settings,
            digest=digest,
            date=about["date"],
            commit=about["commit"],
            modified=about["modified"],
            version=__version__,
            torch=about["torch"],
            cpu=about["device_name"],
            threads=job.threads,
        )
        for name, value in named
    ]


def _end_with_parent() -> None:
    """Ends this process when its standard input does: the parent is gone, and two must not train in one folder."""

    def watch() -> None:
        while os.read(0, 64):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str]) -> int:
    """0; 2 with one line on stderr for what cannot be used or has diverged."""
    _end_with_parent()
    job = read_job(Path(arguments[0]))
    torch.set_num_threads(job.threads)
    try:
        write_table(job.folder / RESULT_NAME, measure(job))
    except ValueError as error:
        if type(error).__module__.partition(".")[0] != "cosegflow":
            raise
        print(f"cosegflow: error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
