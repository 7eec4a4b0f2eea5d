"""The one result file: what finished is kept and written at once, so that a later call goes on from there."""

import json
import os
import threading
from pathlib import Path
from typing import Any

from ..provenance import save

OUT_OF_TIME = "not run: out of time"
SECTIONS = ("self_check", "tests", "sanitize")
"""Steps by key; 'bench' has its steps in bench.steps and its rows in bench.rows."""
SAME = ("commit", "device_name", "torch", "build", "quick", "select")
"""Where these differ, what is in the file was measured on something else."""


class Result:
    """A JSON document. Every change is written beside and renamed."""

    def __init__(self, path: Path, identity: dict[str, Any], provenance: dict[str, Any], fresh: bool) -> None:
        """Opens the file, or starts it again where it is of another commit, build or device (the old one is kept).

        Args:
            identity: `SAME` and what else belongs to the run as a whole.

        Raises:
            OSError: the file cannot be written.
            ValueError: it is no result file.
        """
        self.path = path
        self.note = ""
        self._lock = threading.Lock()
        self.data: dict[str, Any] = {
            **identity, "provenance": provenance, **{s: {} for s in SECTIONS},
            "bench": {"ceilings": None, "steps": {}, "rows": []},
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        old = self._read() if path.exists() else None
        if old is not None and not fresh:
            differs = [k for k in SAME if old.get(k) != identity[k]]
            if differs:
                kept = path.with_name(path.name + ".old")
                os.replace(path, kept)
                self.note = f"{path.name} is of another {', '.join(differs)}: starting again (kept as {kept.name})"
            else:
                self.data = {**self.data, **old, "provenance": provenance}
                self.note = f"going on with {path.name}"
        self.save()

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text())
        except ValueError:
            found = None
        if not isinstance(found, dict) or not {"self_check", "tests", "sanitize", "bench"} <= set(found):
            raise ValueError(f"{self.path} is not a result of this command; choose another --out")
        return found

    def save(self) -> None:
        """Writes the file."""
        with self._lock:
            save(self.data, self.path)

    def steps(self, section: str) -> dict[str, Any]:
        """The steps of a section by key."""
        found: dict[str, Any] = self.data["bench"]["steps"] if section == "bench" else self.data[section]
        return found

    def finished(self, section: str, key: str) -> bool:
        """Whether this step has an outcome that stands."""
        row = self.steps(section).get(key)
        return row is not None and row["status"] != OUT_OF_TIME

    def put(self, section: str, key: str, row: dict[str, Any]) -> None:
        """One step's outcome."""
        with self._lock:
            self.steps(section)[key] = row
            save(self.data, self.path)

    def statuses(self) -> list[tuple[str, str, str]]:
        """(section, key, status) of every step."""
        sections = (*SECTIONS, "bench")
        return [(s, key, row["status"]) for s in sections for key, row in self.steps(s).items()]
