"""The demo's report: one folder with index.html and its pictures, written aside and renamed when complete."""

import html
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1180px; padding: 0 1em; color: #222; }
h1, h2, h3, p, li { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1em 0; } th, td { padding: .3em .8em; border-bottom: 1px solid #ddd; }
td { text-align: right; font-variant-numeric: tabular-nums; } td:first-child, th:first-child { text-align: left; }
.good { color: #08660b; } .bad { color: #b00020; font-weight: bold; }
.pair { display: grid; gap: 6px; margin-bottom: 1.4em; }
.pair { grid-template-columns: repeat(auto-fill, minmax(min(45%, 210px), 1fr)); }
.pair figure { break-inside: avoid; } .pair .double { grid-column: span 2; }
.pair img { width: 100%; } figure { margin: 0; } figcaption { font-size: 12px; color: #555; }
"""


class OutputError(ValueError):
    """An output folder that cannot be used; one line that names the argument."""


def check_output(folder: Path | str, argument: str) -> Path:
    """The folder, after checking, before any work, that it can be made and written to; leaves nothing behind.

    Raises:
        OutputError: it is a file, or it or its parent cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{argument}: {folder}: exists and is not a folder")
    base = folder.absolute()
    while not base.exists():
        base = base.parent
    try:
        if not base.is_dir():
            raise OutputError(f"{argument}: {folder}: {base} is not a folder")
        with tempfile.TemporaryFile(dir=base):
            pass
    except OSError as error:
        raise OutputError(f"{argument}: {folder}: cannot write to {base} ({error.strerror or error})") from None
    return folder


@contextmanager
def staged_folder(folder: Path | str, argument: str) -> Iterator[Path]:
    """A temporary folder beside `folder`; on success its files move into `folder` one by one, each by a rename.

    Files of other names that are already in `folder` stay. On an error `folder` is as it was.
    """
    folder = check_output(folder, argument)
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))
    except OSError as error:
        raise OutputError(f"{argument}: {folder}: cannot write ({error.strerror or error})") from None
    try:
        yield stage
        for path in sorted(stage.rglob("*"), key=lambda p: p.name == "index.html"):
            target = folder / path.relative_to(stage)
            if path.is_dir():
                target.mkdir(exist_ok=True)
        for path in sorted((p for p in stage.rglob("*") if p.is_file()), key=lambda p: p.name == "index.html"):
            os.replace(path, folder / path.relative_to(stage))
    except OSError as error:
        raise OutputError(f"{argument}: {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for path in missing:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def save_picture(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    """A JPEG (photographs) or PNG (all else) by the path's suffix."""
    if path.suffix == ".jpg":
        Image.fromarray(picture).save(path, quality=88)
    else:
        Image.fromarray(picture).save(path)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    pck: tuple[float, float, float]
    error: float
    iou: float | None
    """None: the method has no masks."""


@dataclass(frozen=True)
class Example:
    """A held-out pair: a title and (caption, picture) for each cell."""

    title: str
    cells: list[tuple[str, npt.NDArray[np.uint8]]]


def verdicts(before: Row, after: Row) -> list[tuple[str, bool]]:
    """One sentence per number, with whether it improved; a number that got worse is said so."""
    lines = []
    for name, old, new, up in (
        ("PCK@0.05", before.pck[0], after.pck[0], True),
        ("PCK@0.10", before.pck[1], after.pck[1], True),
        ("PCK@0.15", before.pck[2], after.pck[2], True),
        ("flow error", before.error, after.error, False),
        ("mask IoU", before.iou or 0.0, after.iou or 0.0, True),
    ):
        better = new > old if up else new < old
        word = "improved" if better else ("is unchanged" if new == old else "got WORSE")
        lines.append((f"{name} {word}: {old:.3f} before, {new:.3f} after", better))
    return lines


def format_table(rows: Sequence[Row]) -> str:
    """The table as plain text."""
    head = f"{'':44s} PCK@.05  PCK@.10  PCK@.15  error/px  mask IoU"
    body = [
        f"{r.name:44s} {r.pck[0]:7.3f}  {r.pck[1]:7.3f}  {r.pck[2]:7.3f}  {r.error:8.2f}  "
        + ("       -" if r.iou is None else f"{r.iou:8.3f}")
        for r in rows
    ]
    return "\n".join([head, *body])


def write_report(
    stage: Path,
    title: str,
    notes: Sequence[str],
    rows: Sequence[Row],
    compared: tuple[Row, Row],
    examples: list[Example],
) -> None:
    """Writes index.html and pictures/ into `stage`; refers to nothing outside that folder.

    Args:
        stage: an existing folder (see `staged_folder`).
        notes: paragraphs of plain text.
        rows: the table.
        compared: before and after, for the verdicts.
        examples: pictures of held-out pairs.
    """
    pictures = stage / "pictures"
    pictures.mkdir()
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(note)}</p>" for note in notes),
        "<h2>Held-out pairs, against the exact truth</h2><div class='wide'><table><tr><th></th>",
        *(f"<th>{name}</th>" for name in ("PCK@0.05", "PCK@0.10", "PCK@0.15", "flow error, pixels", "mask IoU")),
        "</tr>",
    ]
    for row in rows:
        values = [f"{v:.3f}" for v in row.pck] + [f"{row.error:.2f}", "–" if row.iou is None else f"{row.iou:.3f}"]
        parts.append(f"<tr><td>{html.escape(row.name)}</td>" + "".join(f"<td>{v}</td>" for v in values) + "</tr>")
    parts.append("</table></div><ul>")
    for sentence, better in verdicts(*compared):
        parts.append(f"<li class='{'good' if better else 'bad'}'>{html.escape(sentence)}</li>")
    parts.append("</ul><h2>Pictures</h2>")
    for number, example in enumerate(examples):
        parts.append(f"<h3>{html.escape(example.title)}</h3><div class='pair'>")
        narrow = min(picture.shape[1] for _, picture in example.cells)
        for cell, (caption, picture) in enumerate(example.cells):
            name = f"{number:02d}-{cell:02d}.jpg"
            save_picture(pictures / name, picture)
            text = html.escape(caption)
            double = " class='double'" if picture.shape[1] > 1.5 * narrow else ""
            image = f"<img src='pictures/{name}' alt='{text}'>"
            parts.append(f"<figure{double}>{image}<figcaption>{text}</figcaption></figure>")
        parts.append("</div>")
    parts.append("</html>\n")
    (stage / "index.html").write_text("\n".join(parts), encoding="utf-8")
