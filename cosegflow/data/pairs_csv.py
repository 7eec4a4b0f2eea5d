"""Lists of pairs in CSV form, as the proposal-flow data sets and weakalign's Caltech-101 list have them.

The header is ``source_image,target_image[,class][,flip]`` (or ``imageA,imageB``), then the coordinates in one of two
forms: columns ``XA,YA,XB,YB`` of numbers joined by ``;``, or a column for each number, ``XA1 .. XA10 YA1 .. YB10``.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cosegflow.data.annotations import first_line, need_file
from cosegflow.data.errors import DatasetError

SOURCE = ("source_image", "imagea", "source")
TARGET = ("target_image", "imageb", "target")
AXES = ("xa", "ya", "xb", "yb")

Points = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PairRow:
    """A row of a list of pairs."""

    number: int
    """From 1 on, without the header."""
    source: str
    target: str
    label: str
    """The class as it is written; empty where there is no such column."""
    flip: bool
    points_a: Points | None
    """(K, 2) x, y in the source; None where the list has no coordinates."""
    points_b: Points | None


def read_table(path: Path, dataset: str) -> list[tuple[int, dict[str, str]]]:
    """The line and the columns, by their names in small letters, of each row; empty rows are skipped.

    Raises:
        DatasetError: missing, not text, no header, a column that comes twice, or a row of another length.
    """
    need_file(path, dataset)
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, skipinitialspace=True)
            header = [name.strip().lower() for name in next(reader, [])]
            twice = next((name for i, name in enumerate(header) if name and name in header[:i]), None)
            if twice is not None:
                raise DatasetError(f"{dataset}: {path}: the column {twice} comes twice")
            for values in reader:
                if not any(value.strip() for value in values):
                    continue
                if len(values) != len(header):
                    raise DatasetError(
                        f"{dataset}: {path}: line {reader.line_num}: need {len(header)} columns, got {len(values)}"
                    )
                rows.append((reader.line_num, {k: v.strip() for k, v in zip(header, values, strict=True)}))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{dataset}: {path}: not a CSV file that can be read ({first_line(error)})") from None
    if not header:
        raise DatasetError(f"{dataset}: {path}: empty; need a header and rows")
    return rows


def header_of(path: Path) -> list[str]:
    """The column names in small letters; none where it is no CSV file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [name.strip().lower() for name in next(csv.reader(file, skipinitialspace=True), [])]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def is_pairs_csv(path: Path) -> bool:
    """Whether the header names a source and a target image (and no file of flow, as TSS's list does)."""
    header = header_of(path)
    return any(n in header for n in SOURCE) and any(n in header for n in TARGET) and "flow_dir" not in header


def first_source(path: Path) -> str:
    """The source image of the first row of a list of pairs; empty where there is none."""
    if not is_pairs_csv(path):
        return ""
    try:
        rows = read_table(path, "")
    except DatasetError:
        return ""
    return next((rows[0][1][name] for name in SOURCE if rows and name in rows[0][1]), "")


def list_csv(root: Path) -> list[Path]:
    """The CSV files that lie directly in a folder, by name."""
    try:
        return sorted(
            p for p in root.iterdir() if p.suffix.lower() == ".csv" and not p.name.startswith(".") and p.is_file()
        )
    except OSError:
        return []


def list_pairs_csv(root: Path) -> list[Path]:
    """The lists of pairs that lie directly in a folder, by name."""
    return [path for path in list_csv(root) if is_pairs_csv(path)]


def find_pairs_csv(root: Path, dataset: str) -> Path:
    """The one list of pairs in `root`.

    Raises:
        DatasetError: there is none, or there are several.
    """
    found = list_pairs_csv(root)
    if len(found) != 1:
        others = [p.name for p in list_csv(root)[:5]]
        got = f"none ({', '.join(others)}: not in UTF-8, or without these columns)" if others else "none"
        if found:
            got = f"{len(found)}: {', '.join(p.name for p in found[:5])}"
        raise DatasetError(
            f"{dataset}: {root}: need one *.csv of pairs (source_image,target_image,...) there, got {got}; "
            "name the list (pairs)"
        )
    return found[0]


def read_pairs_csv(path: Path, dataset: str, *, outlines: bool = False) -> list[PairRow]:
    """The rows of a list of pairs.

    Coordinates stay as written; an empty or NaN number makes its point NaN, that is absent.

    Args:
        path: the CSV file.
        dataset: for messages.
        outlines: the coordinates are polygons, so that source and target may have different numbers of points.

    Raises:
        DatasetError: one line with the file and the line: a column is missing, a number cannot be read, or x and y (or
            source and target) differ in number; or there is no row.
    """
    table = read_table(path, dataset)
    header = set(header_of(path))
    source = next((name for name in SOURCE if name in header), None)
    target = next((name for name in TARGET if name in header), None)
    if source is None or target is None:
        raise DatasetError(f"{dataset}: {path}: need the columns source_image and target_image, got {sorted(header)}")
    columns = {axis: _columns(axis, header) for axis in AXES}
    with_points = all(columns.values())
    if any(columns.values()) and not with_points:
        lacking = ", ".join(axis.upper() for axis in AXES if not columns[axis])
        raise DatasetError(f"{dataset}: {path}: coordinates need the columns XA, YA, XB and YB; missing: {lacking}")
    if not table:
        raise DatasetError(f"{dataset}: {path}: has no row")
    rows = []
    for number, (line, values) in enumerate(table, 1):
        where = f"{dataset}: {path}: line {line}"
        if not values[source] or not values[target]:
            raise DatasetError(f"{where}: need a source and a target image")
        a = b = None
        if with_points:
            a, b = (_points(columns[f"x{side}"], columns[f"y{side}"], values, where) for side in "ab")
            if len(a) != len(b) and not outlines:
                raise DatasetError(f"{where}: {len(a)} points in the source and {len(b)} in the target; need as many")
        flip = values.get("flip", "0")
        if flip not in ("", "0", "1"):
            raise DatasetError(f"{where}: flip: need 0 or 1, got {flip!r}")
        rows.append(PairRow(number, values[source], values[target], values.get("class", ""), flip == "1", a, b))
    return rows


def row_name(row: PairRow) -> str:
    """A name that is unique in the list: pairs may come twice."""
    return f"{row.number:05d} {Path(row.source).stem}-{Path(row.target).stem}"


def _columns(axis: str, header: set[str]) -> list[str]:
    """The columns of an axis in order: XA alone, or XA1, XA2, ..."""
    if axis in header:
        return [axis]
    numbered = [name for name in header if re.fullmatch(rf"{axis}\d+", name)]
    return sorted(numbered, key=lambda name: int(name[len(axis) :]))


def _points(xs: list[str], ys: list[str], values: dict[str, str], where: str) -> Points:
    x, y = _numbers(xs, values, where), _numbers(ys, values, where)
    if len(x) != len(y):
        raise DatasetError(f"{where}: {len(x)} numbers in {xs[0].upper()} and {len(y)} in {ys[0].upper()}")
    points = np.stack((x, y), 1)
    points[np.isnan(points).any(1)] = np.nan
    return points


def _numbers(columns: list[str], values: dict[str, str], where: str) -> Points:
    if len(columns) == 1 and not columns[0][-1].isdigit():
        text = values[columns[0]]
        words = text.removesuffix(";").split(";") if text else []
    else:
        words = [values[column] for column in columns]
    try:
        numbers = np.array([float(word) if word.strip() else np.nan for word in words], dtype=np.float64)
    except ValueError:
        numbers = np.array([np.inf])
    if np.isinf(numbers).any():
        raise DatasetError(f"{where}: {columns[0].upper()}: need numbers, got {';'.join(words)[:60]!r}")
    return numbers
