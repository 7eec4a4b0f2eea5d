"""One run of the ablation: a row with a seed, as a file that the process that makes the run reads."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cosegflow.ablation.errors import AblationError
from cosegflow.ablation.evaluate import FOLDERS, Constants
from cosegflow.ablation.rows import Row, changed_settings, choose_rows, configuration, plain_settings
from cosegflow.ablation.table import Measurement
from cosegflow.atomic_file import replaced
from cosegflow.joint.config import FitConfig
from cosegflow.joint.fit_data import find_photographs

JOB_NAME, RESULT_NAME, FINISHED_NAME, LOG_NAME = "job.json", "result.csv", "finished.json", "log.txt"


@dataclass(frozen=True)
class Job:
    """What a run needs to know."""

    row: Row
    seed: int
    out: Path
    """The ablation's folder."""
    overrides: dict[str, Any]
    """Of --set and --steps."""
    data: str | None
    """--data: a folder, "none", or None for the usual places."""
    root: Path | None
    """Where the data sets of photographs are."""
    constants: Constants
    library: str
    """The digest of all stamps and backgrounds."""
    threads: int = 1

    @property
    def name(self) -> str:
        """For people and for the folder."""
        return f"{self.row.slug}-{self.seed}"

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.out / "runs" / self.name

    @property
    def config(self) -> FitConfig:
        """All settings.

        Raises:
            AblationError, ConfigurationError: a setting that is unknown or cannot be used.
        """
        config = configuration(self.row, self.overrides, self.data, self.folder, self.seed)
        name, root = config.data.dataset, self.root
        if "data.root" in self.overrides or root is None or name == "stamps":
            return config
        return replace(config, data=replace(config.data, root=root / FOLDERS.get(name, "")))

    def _plain(self) -> dict[str, Any]:
        config = self.config
        plain = plain_settings(config)
        if "data.root" in self.overrides:
            plain["data.root"] = str(config.data.root)
        photographs = find_photographs(config.data)
        if photographs is not None:  # where they lie does not matter, which they are does
            found = sorted(f"{path.parent.name}/{path.name}" for path in photographs.glob("*/*"))
            listed = hashlib.sha256("\n".join(found).encode()).hexdigest()[:12]
            plain["data.photographs"] = f"{photographs.name}, {len(found)} files, {listed}"
        else:
            plain["data.photographs"] = None
        if self.row.method != "trained":
            plain = {name: value for name, value in plain.items() if name.startswith("model.")}
        return {**plain, "method": self.row.method}

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that differ from the defaults and matter here."""
        plain = self._plain()
        return {name: value for name, value in changed_settings(self.config).items() if name in plain}

    @property
    def training_digest(self) -> str:
        """Of what decides the weights, apart from the seed."""
        return _digest([self._plain(), self.library])

    @property
    def digest(self) -> str:
        """The table's column: of what decides the weights, apart from the seed, and how they are evaluated."""
        return _digest([self._plain(), self.constants.plain(), self.library])

    def write(self) -> Path:
        """Writes the file into the run's folder; a folder of other settings is moved to OUT/old first.

        Raises:
            AblationError: it cannot be written.
        """
        path = self.folder / JOB_NAME
        content = {
            "row": self.row.slug,
            "seed": self.seed,
            "out": str(self.out),
            "overrides": self.overrides,
            "data": self.data,
            "root": None if self.root is None else str(self.root),
            "constants": self.constants.plain(),
            "library": self.library,
            "threads": self.threads,
            "training_digest": self.training_digest,
        }
        try:
            if self.folder.is_dir() and _stored_digest(path) != self.training_digest:
                move_aside(self.folder, self.out)
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / RESULT_NAME).unlink(missing_ok=True)
            with replaced(path) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise AblationError(f"--out: {self.folder}: cannot write ({error.strerror or error})") from None
        return path


def read_job(path: Path) -> Job:
    """The job that `Job.write` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    constants: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in content["constants"].items()
    }
    return Job(
        row=choose_rows(content["row"])[0],
        seed=content["seed"],
        out=Path(content["out"]),
        overrides=content["overrides"],
        data=content["data"],
        root=None if content["root"] is None else Path(content["root"]),
        constants=Constants(**constants),
        library=content["library"],
        threads=content["threads"],
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _stored_digest(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["training_digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def move_aside(path: Path, out: Path) -> Path:
    """Moves a file or folder to OUT/old, with the time in its name, and returns where it is now; may raise OSError."""
    now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S-%f")
    target = out / "old" / f"{path.stem}-{now}{path.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, target)
    return target


def finished(job: Job, measured: list[Measurement]) -> bool:
    """Whether the table has the job's measurements."""
    key = (job.row.name, job.seed, job.digest)
    return any((m.row, m.seed, m.digest) == key for m in measured)


def threads_for(jobs: int) -> int:
    """torch's threads for each of `jobs` processes, so that they share this process's cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)
