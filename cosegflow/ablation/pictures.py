"""Pictures of pairs by the trained models: the best, the median and the worst, with every number beside them.

They are composed from those of scikit-image's photographs that are in the public domain, so that they can be
committed, and only from what the models were not trained on.

    cosegflow ablate --pictures OUT
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import cosegflow
from cosegflow import viz
from cosegflow.ablation import picture_list
from cosegflow.ablation.errors import AblationError
from cosegflow.ablation.picture_list import FOLDER, Picture, Pictures
from cosegflow.atomic_file import replaced
from cosegflow.benchmarks.provenance import built_from, output_of
from cosegflow.configuration import build, read_yaml
from cosegflow.data.composer import ComposedPairs
from cosegflow.data.pair import Pair
from cosegflow.data.sources import Library, load_library
from cosegflow.joint.checkpoint import load_checkpoint
from cosegflow.joint.config import FitConfig
from cosegflow.joint.model import JointModel
from cosegflow.joint.predict import Prediction, predict
from cosegflow.metrics import PCK, MaskIoU, box_length
from cosegflow.metrics.dense import flow_errors

SEED = 20
RANKED = 32
SHOWN = {"best": 3, "median": 2, "worst": 3}
WITH, ALONE = "joint-0", "coseg-only-0"
OBJECTS = ("astronaut", "shuttle", "helmet", "photographer", "cat", "coffee")
GROUNDS = ("brick.png", "grass.png", "gravel.png", "rocket.jpg", "retina.jpg")
"""Cut-outs and backgrounds of photographs that scikit-image's notes call CC0 or public domain."""
CELL, GAP, HEAD = 150, 4, 16
LARGEST = 60_000
"""Bytes of a strip."""


@dataclass(frozen=True)
class _Judged:
    """A pair with what both models find in it."""

    pair: Pair
    joint: Prediction
    alone: Prediction
    pck: float
    jaccard: float
    jaccard_alone: float

    @property
    def score(self) -> float:
        return (self.pck + self.jaccard) / 2


def free_library(trained: Library | None) -> Library:
    """The objects and backgrounds in the public domain that are not among `trained`.

    Raises:
        AblationError: nothing is left.
    """
    everything = load_library("none")
    seen = {s.name for s in trained.stamps} | {b.name for b in trained.backgrounds} if trained else set()
    stamps = tuple(s for s in everything.stamps if s.name in OBJECTS and s.name not in seen)
    grounds = tuple(b for b in everything.backgrounds if b.name in GROUNDS and b.name not in seen)
    if not stamps or not grounds:
        raise AblationError("--pictures: the models were trained on all objects or backgrounds that could be shown")
    return Library(stamps, grounds, everything.origin)


def _trained_on(config: FitConfig) -> Library | None:
    """The stamps and backgrounds that a run composed its samples of."""
    return load_library(config.data.root).split()[0] if config.data.dataset == "stamps" else None


def _iou(found: Prediction, pair: Pair) -> float:
    assert pair.mask_a is not None and pair.mask_b is not None
    metric = MaskIoU()
    metric.update(found.mask_a, pair.mask_a[None])
    metric.update(found.mask_b, pair.mask_b[None])
    return float(metric.compute())


def _errors(pair: Pair, found: Prediction) -> tuple[Tensor, Tensor]:
    """The end-point error (H, W) over the longer side of the object in b, and that side."""
    assert pair.flow_ab is not None and pair.mask_b is not None
    length = box_length(pair.mask_b[None])[0]
    known = pair.flow_ab[None]
    return flow_errors(found.flow_ab, known, torch.ones_like(known[:, 0], dtype=torch.bool))[0] / length, length


def _judge(pair: Pair, models: Sequence[JointModel]) -> _Judged:
    assert pair.flow_ab is not None and pair.valid_ab is not None
    joint, alone = (predict(model, pair.image_a[None], pair.image_b[None]) for model in models)
    pck = PCK(alphas=(0.1,))
    pck.update(joint.flow_ab, pair.flow_ab[None], pair.valid_ab[None], _errors(pair, joint)[1][None])
    return _Judged(pair, joint, alone, float(pck.compute()), _iou(joint, pair), _iou(alone, pair))


def _cells(judged: _Judged) -> list[viz.Pixels]:
    """The pictures of `picture_list.COLUMNS`."""
    pair, found = judged.pair, judged.joint
    assert pair.valid_ab is not None
    flow, outside = found.flow_ab[0], (found.mask_a[0] < 0.5).numpy()
    colour = viz.flow_to_colour(flow)
    moved = viz.to_pixels(cosegflow.warp(pair.image_b[None], flow[None])[0]).copy()
    for picture in (colour, moved):
        picture[outside] = 245
    wrong = viz.colour_map(_errors(pair, found)[0] / 0.15, "inferno").copy()
    wrong[~pair.valid_ab.numpy()] = 255
    return [
        viz.to_pixels(pair.image_a),
        viz.to_pixels(pair.image_b),
        viz.overlay(pair.image_a, found.mask_a[0]),
        viz.overlay(pair.image_b, found.mask_b[0]),
        viz.overlay(pair.image_a, judged.alone.mask_a[0]),
        colour,
        moved,
        wrong,
    ]


def strip(cells: Sequence[viz.Pixels], titles: Sequence[str]) -> bytes:
    """The cells side by side under their titles, as a JPEG of at most LARGEST bytes where its quality allows."""
    canvas = Image.new("RGB", (len(cells) * (CELL + GAP) - GAP, HEAD + CELL), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    for place, (cell, title) in enumerate(zip(cells, titles, strict=True)):
        left = place * (CELL + GAP)
        draw.text((left, 2), title, fill="black", font=font)
        canvas.paste(Image.fromarray(cell).resize((CELL, CELL), Image.Resampling.LANCZOS), (left, HEAD))
    content = b""
    for quality in range(88, 30, -6):
        buffer = io.BytesIO()
        canvas.save(buffer, "JPEG", quality=quality, optimize=True)
        content = buffer.getvalue()
        if len(content) <= LARGEST:
            break
    return content


def chosen(scores: Sequence[float]) -> list[tuple[str, int]]:
    """(kind, index) of the pairs that are shown, best first; `scores` may be fewer than are to be shown."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    middle = (len(order) - SHOWN["median"]) // 2
    parts = {
        "best": order[: SHOWN["best"]],
        "median": order[max(0, middle) : middle + SHOWN["median"]],
        "worst": order[-SHOWN["worst"] :],
    }
    kinds: dict[int, str] = {}
    for kind in ("worst", "median", "best"):
        kinds |= {index: kind for index in parts[kind] if index not in kinds}
    return [(kinds[index], index) for index in order if index in kinds]


def _commit() -> str:
    """The checkout's commit, or the one that the package was built from."""
    return output_of("git", "rev-parse", "HEAD") or built_from()


def publish_pictures(runs: Path, docs: Path, ranked: int = RANKED) -> list[Path]:
    """Writes the strips and their list; then `report.publish` puts them into the document.

    Args:
        runs: what --out of `cosegflow ablate` was, or its folder runs.
        docs: the folder of results.md.
        ranked: how many pairs are composed to choose from.

    Returns:
        The files below `docs`.

    Raises:
        AblationError: a run is missing, or trained on all that could be shown. CheckpointError: a run has no model.
    """
    base = runs / "runs" if (runs / "runs").is_dir() else runs
    for name in (WITH, ALONE):
        if not (base / name / "config.yaml").is_file():
            raise AblationError(f"--pictures: {runs}: need the runs {WITH} and {ALONE}, found no {base / name}")
    config = build(FitConfig, read_yaml(base / WITH / "config.yaml", FitConfig, "--pictures"))
    models = [load_checkpoint(base / name, "--pictures") for name in (WITH, ALONE)]
    side = config.data.size
    library = free_library(_trained_on(config))
    pairs = ComposedPairs(library, ranked, seed=SEED, size=(side, side), truth=True)
    judged = [_judge(pairs[i], models) for i in range(ranked)]
    order = sorted(range(ranked), key=lambda i: -judged[i].score)
    made: list[Picture] = []
    (docs / FOLDER).mkdir(parents=True, exist_ok=True)
    for kind, index in chosen([one.score for one in judged]):
        one, rank = judged[index], order.index(index) + 1
        content = strip(_cells(one), picture_list.COLUMNS)
        file = f"pair_{rank:02d}.jpg"
        with replaced(docs / FOLDER / file) as temporary:
            temporary.write_bytes(content)
        numbers = one.pck, one.jaccard, one.jaccard_alone
        made.append(Picture(file, picture_list.digest(content), kind, rank, str(one.pair.category), *numbers))
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    picture_list.write_list(docs, Pictures(tuple(made), ranked, config.train.steps, config.train.seed, _commit(), now))
    names = {one.file for one in made}
    for stale in (path for path in (docs / FOLDER).glob("pair_*.jpg") if path.name not in names):
        stale.unlink()
    return [*(FOLDER / one.file for one in made), picture_list.LIST]
