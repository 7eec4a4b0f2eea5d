"""Result rows: one flat CSV schema for every benchmark, with provenance in each row, never left half written."""

import csv
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

PROVENANCE = (
    "date", "command", "commit", "modified", "device", "device_name", "driver", "cuda", "torch", "cosegflow", "python",
    "threads",
)  # fmt: skip
CASE = ("work", "direction", "batch", "channels", "a", "b", "dtype", "foreground", "layout", "beta", "flow", "radius")
CONTESTANT = ("peer", "peer_version", "status", "reason")
MEASURED = ("p20_ms", "median_ms", "p80_ms", "repeats", "error_max", "error_rel", "memory_mb")
LIMIT = ("bytes", "flops", "exps", "copy_gb_s", "matrix_tflop_s", "exp_g_s", "limit_ms", "limit_by", "limit_fraction")
COLUMNS = (*CASE, *CONTESTANT, *MEASURED, *LIMIT, *PROVENANCE)
"""The header. Units are in the names; empty: not measured.

status: 'ok', 'missing' (not installed), 'unsupported' (cannot do this), 'out of memory', 'failed', 'out of time'.
error_max: the largest |x - x64| of the output (forward) or of any gradient (backward, both); NaN stays NaN.
error_rel: ||x - x64|| / ||x64|| of the same, the worst tensor.
memory_mb: peak beyond inputs, outputs and input gradients, in 10^6 bytes.
limit_ms: the time that the limiting unit alone needs; limit_by: 'copy', 'matrix' or 'exp'; limit_fraction: limit_ms
over median_ms.
"""

NUMBERS = {*MEASURED, *LIMIT, "batch", "channels", "foreground", "beta", "radius", "threads"} - {"limit_by"}


def write(rows: Iterable[Row], path: Path) -> None:
    """The whole file, written beside and renamed: an interrupted run leaves the last whole file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if v is None else v for k, v in row.items()})
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text.getvalue())
    os.replace(temporary, path)


def _number(text: str) -> float | int | None:
    if text == "":
        return None
    value = float(text)
    return int(value) if value.is_integer() and "." not in text and "e" not in text else value


def read(path: Path) -> list[Row]:
    """Rows of a CSV, or of the 'bench' list of a gpu-check JSON; numbers as numbers, empty cells as None.

    Raises:
        ValueError: the file has other columns.
    """
    if path.suffix == ".json":
        found: list[Row] = json.loads(path.read_text()).get("bench", {}).get("rows", [])
        return found
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: not a result file of these benchmarks (its columns differ)")
        return [{k: _number(v) if k in NUMBERS else (v or None) for k, v in row.items()} for row in reader]
