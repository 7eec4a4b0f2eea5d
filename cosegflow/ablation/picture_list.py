"""The list beside the pictures of pairs (docs/images/results/pictures.json), and the block made of it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cosegflow.ablation.errors import AblationError
from cosegflow.atomic_file import replaced

FOLDER = Path("images", "results")
LIST = FOLDER / "pictures.json"
COLUMNS = (
    "a", "b", "object in a (joint)", "object in b (joint)", "object in a (coseg-only)", "flow (joint)",
    "b warped onto a", "error of the flow",
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """One pair."""

    file: str
    sha256: str
    kind: str
    """"best", "median" or "worst"."""
    rank: int
    """1 is the best."""
    category: str
    pck: float
    """PCK@0.1 of joint."""
    jaccard: float
    """Mean of both masks' IoU, joint."""
    alone: float
    """The same of coseg-only."""


@dataclass(frozen=True)
class Pictures:
    """All of them, and how they were made."""

    pictures: tuple[Picture, ...]
    ranked: int
    """So many pairs were composed and ranked."""
    steps: int
    """Steps of training of joint."""
    seed: int
    commit: str
    date: str


def digest(content: bytes) -> str:
    """SHA-256."""
    return hashlib.sha256(content).hexdigest()


def write_list(docs: Path, made: Pictures) -> None:
    """Writes the list."""
    with replaced(docs / LIST) as temporary:
        temporary.write_text(json.dumps(asdict(made), indent=1) + "\n", encoding="utf-8")


def read_list(docs: Path) -> Pictures | None:
    """The list; None where there is none.

    Raises:
        AblationError: it is damaged.
    """
    path = docs / LIST
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Pictures(**{**content, "pictures": tuple(Picture(**one) for one in content["pictures"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise AblationError(f"{path}: is no list of pictures ({error})") from None


def markdown(docs: Path) -> str:
    """The block: what is shown, then each strip with its numbers."""
    made = read_list(docs)
    if made is None:
        return "No pictures yet."
    commit = made.commit[:9] or "unknown"
    parts = [
        f"Of {made.ranked} pairs, ranked by the mean of PCK@.1 and Jaccard of joint (seed {made.seed}, {made.steps} "
        f"steps; made on {made.date[:10]} at commit {commit}). Columns: {'; '.join(COLUMNS)}. Error: dark is 0, bright "
        "is 0.15 of the object's longer side in b and more, white where no match is visible. Objects and "
        "backgrounds come from scikit-image's photographs in the public domain; the training saw none of them."
    ]
    for one in made.pictures:
        title = f"{one.kind.capitalize()}: rank {one.rank} of {made.ranked}, {one.category}"
        if one.kind == "worst":
            title = f"Failure: rank {one.rank} of {made.ranked}, {one.category}"
        parts.append(
            f"{title}. PCK@.1 {100 * one.pck:.0f}, Jaccard {100 * one.jaccard:.0f} (coseg-only {100 * one.alone:.0f})."
            f"\n\n![{title}]({(FOLDER / one.file).as_posix()})"
        )
    return "\n\n".join(parts)


def problems(docs: Path) -> list[str]:
    """Where the files and the list disagree, as lines to print."""
    made = read_list(docs)
    listed = {one.file: one.sha256 for one in made.pictures} if made else {}
    lines = []
    for name, known in listed.items():
        path = docs / FOLDER / name
        if not path.is_file():
            lines.append(f"{FOLDER / name}: missing")
        elif digest(path.read_bytes()) != known:
            lines.append(f"{FOLDER / name}: is not the picture of the list")
    extra = (path.name for path in sorted((docs / FOLDER).glob("*.jpg")) if path.name not in listed)
    return lines + [f"{FOLDER / name}: not in the list" for name in extra]
