"""The tidy CSV of the ablation: one line per measured value."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cosegflow.ablation.errors import AblationError
from cosegflow.atomic_file import replaced


@dataclass(frozen=True)
class Measurement:
    """One line; the fields are the columns, in their order."""

    row: str
    """name of the configuration, such as "joint" or "zero-shot" """
    seed: int
    """0 for what is not trained"""
    dataset: str
    """"" for a value of the run itself"""
    metric: str
    """such as "pck@0.1"; of the run: "train_seconds", "step_seconds", "steps" """
    condition: str
    """"" as the model is used; "rounds=2"; "clutter=4,masks=0" """
    value: float
    """may be NaN where a mean is over nothing"""
    pairs: int | None
    """how many pairs the mean is over; None for a value of the run"""
    settings: dict[str, Any]
    """the settings that differ from the defaults, by dotted names"""
    digest: str
    """of the complete settings and of how it was evaluated: results with the same digest belong together"""
    date: str
    """UTC, ISO 8601"""
    commit: str
    modified: bool | None
    """whether the checkout differed from the commit; None where there is no checkout"""
    version: str
    torch: str
    cpu: str
    threads: int


COLUMNS = tuple(field.name for field in fields(Measurement))


def _parse(line: dict[str, str]) -> Measurement:
    settings = json.loads(line["settings"])
    if not isinstance(settings, dict):
        raise ValueError("settings")
    return Measurement(
        row=line["row"],
        seed=int(line["seed"]),
        dataset=line["dataset"],
        metric=line["metric"],
        condition=line["condition"],
        value=float(line["value"]),
        pairs=int(line["pairs"]) if line["pairs"] else None,
        settings=settings,
        digest=line["digest"],
        date=line["date"],
        commit=line["commit"],
        modified={"": None, "true": True, "false": False}[line["modified"]],
        version=line["version"],
        torch=line["torch"],
        cpu=line["cpu"],
        threads=int(line["threads"]),
    )


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    return repr(value) if isinstance(value, float) else str(value)


def read_table(path: Path) -> list[Measurement]:
    """The measurements of a CSV file.

    Raises:
        AblationError: no such file, other columns, or a line that is not a measurement; names the file and the line.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise AblationError(f"{path}: is no table of the ablation; need the columns {','.join(COLUMNS)}")
            found = []
            for line in reader:
                try:
                    found.append(_parse(line))
                except (ValueError, TypeError, KeyError, AttributeError):
                    raise AblationError(f"{path}, line {reader.line_num}: is not a measurement") from None
            return found
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AblationError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def write_table(path: Path, rows: Sequence[Measurement]) -> None:
    """Writes a CSV file; the old one stays whole until the new one is complete.

    Raises:
        AblationError: it cannot be written, or an infinite value, which no metric here can be.
    """
    for row in rows:
        if math.isinf(row.value):
            raise AblationError(f"{row.row}: {row.metric} is {row.value}; need a finite number")
    try:
        with replaced(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows([_text(getattr(row, name)) for name in COLUMNS] for row in rows)
    except OSError as error:
        raise AblationError(f"{path}: cannot be written ({error.strerror})") from None
