"""Evaluates one model on everything: composed pairs with exact truth, and photographs by the rules of `cosegflow eval`.

Composed pairs are small and many, so their values are computed here, for all rounds from one pass.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

import cosegflow
from cosegflow.ablation.composed import ComposedCache
from cosegflow.ablation.subjects import Subject
from cosegflow.data.errors import DatasetError
from cosegflow.data.pair import Pair, collate_pairs
from cosegflow.data.registry import open_dataset
from cosegflow.evaluate import evaluate_pairs, make_evaluator
from cosegflow.evaluate.protocols import PCK_ALPHAS
from cosegflow.joint.predict import Prediction
from cosegflow.metrics import PCK, EndPointError, MaskIoU, box_length
from cosegflow.metrics.means import MeanOverPairs

FOLDERS = {"caltech-101": "Caltech-101", "weizmann-horse": "Weizmann-horse", "tss": "TSS", "pf-willow": "PF-WILLOW"}
"""Data sets of photographs and their folders below --data."""


@dataclass(frozen=True)
class Constants:
    """How is evaluated; part of the digest of each measurement."""

    size: int = 240
    """side of composed images in pixels"""
    pairs: int = 96
    """composed pairs as they are in `cosegflow eval`"""
    clutter: tuple[int, ...] = (0, 2, 4, 6, 8)
    """exact numbers of distractors"""
    clutter_pairs: int = 48
    """composed pairs for each of them"""
    rounds: int = 4
    """quality after 0 to so many rounds"""
    limit: int | None = None
    """only so many pairs of each data set of photographs"""
    datasets: tuple[str, ...] = ()
    """those of `FOLDERS` that are there"""
    version: int = 1
    """goes up when a metric changes its meaning"""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


QUICK = Constants(pairs=4, clutter=(0, 4), clutter_pairs=2, limit=2)


class Value(NamedTuple):
    """A mean over pairs; the columns of the table that evaluation knows."""

    dataset: str
    metric: str
    condition: str
    value: float
    pairs: int


def datasets_here(root: Path | None) -> tuple[str, ...]:
    """The data sets of `FOLDERS` whose folder is below `root`."""
    return () if root is None else tuple(name for name, folder in FOLDERS.items() if (root / folder).is_dir())


def mask_agreement(found: Prediction, flow: Tensor, valid: Tensor) -> Tensor:
    """(B,) float64: how consistent the masks of a and b are, by the exact flow; NaN where no match is visible.

    Over the pixels of a whose match is visible in b: the share for which mask a at the pixel and mask b at its match
    (bilinear) are both at least 0.5 or both less.

    Args:
        found: masks (B, H, W).
        flow, valid: the truth, (B, 2, H, W) pixels and (B, H, W) bool.
    """
    there = cosegflow.warp(found.mask_b.float().unsqueeze(1), flow, padding="border").squeeze(1)
    agree = (found.mask_a >= 0.5) == (there >= 0.5)
    return (agree & valid).sum((1, 2)).double() / valid.sum((1, 2))


class _Agreement(MeanOverPairs):
    def update(self, found: Prediction, flow: Tensor, valid: Tensor) -> None:
        self._add(mask_agreement(found, flow, valid)[:, None])


class ComposedScore:
    """Means over composed pairs of PCK, end-point error, mean IoU of both masks, and consistency."""

    def __init__(self) -> None:
        self.pck, self.error, self.iou, self.agreement = PCK(PCK_ALPHAS), EndPointError(), MaskIoU(), _Agreement()
        self.pairs = 0

    def update(self, batch: Pair, found: Prediction, masks: bool) -> None:
        """Adds a batch of one; `masks`: whether the prediction has any."""
        assert batch.flow_ab is not None and batch.valid_ab is not None
        assert batch.mask_a is not None and batch.mask_b is not None
        known = batch.valid_ab[0]
        # Only what counts: the pixels with a truth as a picture of one row.
        flow, truth = (value[:, :, known].unsqueeze(2) for value in (found.flow_ab, batch.flow_ab))
        valid = known.new_ones(1, *flow.shape[2:])
        self.pck.update(flow, truth, valid, box_length(batch.mask_b))
        self.error.update(flow, truth, valid)
        if masks:
            self.iou.update(found.mask_a, batch.mask_a)
            self.iou.update(found.mask_b, batch.mask_b)
            self.agreement.update(found, batch.flow_ab, batch.valid_ab)
        self.pairs += 1

    def values(self, masks: bool) -> dict[str, float]:
        """By the names of the table's metrics."""
        found = {f"pck@{a:g}": float(v) for a, v in zip(PCK_ALPHAS, self.pck.compute(), strict=True)}
        found["end_point_error"] = float(self.error.compute())
        if masks:
            found |= {"jaccard": float(self.iou.compute()), "consistency": float(self.agreement.compute())}
        return found


def _scores(subject: Subject, pairs: Iterable[Pair], rounds: int) -> list[ComposedScore]:
    """A score for each number of rounds. Pairs go one by one: on a CPU, that is faster than in batches."""
    scores: list[ComposedScore] = []
    for pair in pairs:
        batch = collate_pairs([pair])
        predictions = subject.rounds(batch.image_a, batch.image_b, rounds)
        scores = scores or [ComposedScore() for _ in predictions]
        for score, found in zip(scores, predictions, strict=True):
            score.update(batch, found, subject.masks)
    return scores


def evaluate_composed(subject: Subject, cache: ComposedCache, constants: Constants) -> list[Value]:
    """The values of stamps: as used, after each number of rounds, and against clutter."""
    values: list[Value] = []

    def add(score: ComposedScore, condition: str) -> None:
        named = score.values(subject.masks).items()
        values.extend(Value("stamps", metric, condition, value, score.pairs) for metric, value in named)

    most = max(constants.rounds, subject.used) if subject.refines else 0
    scores = _scores(subject, cache.load(constants.pairs, None), most)
    add(scores[subject.used], "")
    if subject.refines:
        for k in range(constants.rounds + 1):
            add(scores[k], f"rounds={k}")
    for clutter in constants.clutter:
        scores = _scores(subject, cache.load(constants.clutter_pairs, clutter), subject.used)
        if subject.masks:
            add(scores[subject.used], f"clutter={clutter},masks=1")
        if subject.refines or not subject.masks:
            add(scores[0], f"clutter={clutter},masks=0")
    return values


def _named(dataset: str, result: dict[str, Any], masks: bool) -> dict[str, float | None]:
    """What of `cosegflow eval`'s result goes into the table; the masks' numbers only where there are masks."""
    if dataset == "caltech-101":
        found = {name: result[name] for name in ("lt_acc", "iou", "loc_err")}
        return {**found, **result["segmentation"]} if masks else found
    if dataset == "weizmann-horse":
        return {name: result[name] for name in ("precision", "jaccard")} if masks else {}
    if dataset == "tss":
        return {name: result[name] for name in (("flow_accuracy", "iou") if masks else ("flow_accuracy",))}
    return {f"pck@{alpha}": value for alpha, value in result["pck"].items()}


def evaluate_photographs(subject: Subject, dataset: str, folder: Path, limit: int | None) -> list[Value]:
    """The values of a data set of photographs, as `cosegflow eval` gives them.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    if dataset == "weizmann-horse" and not subject.masks:
        return []
    held = open_dataset(dataset, folder)
    count = min(len(held), limit or len(held))
    if not count:
        raise DatasetError(f"{dataset}: {folder}: has no pairs")
    evaluator = make_evaluator(dataset, sorted(set(held.categories[:count])))
    result = evaluate_pairs((held[i] for i in range(count)), subject, evaluator)
    named = _named(dataset, result, subject.masks)
    return [Value(dataset, k, "", math.nan if v is None else v, count) for k, v in named.items()]


def evaluate(subject: Subject, cache: ComposedCache, constants: Constants, root: Path | None) -> list[Value]:
    """All values of a model; what a metric says nothing about (no masks) is left out.

    Args:
        subject: what is evaluated.
        cache: the composed pairs.
        constants: how many pairs, and of which data sets.
        root: the folder of `FOLDERS`.
    """
    values = evaluate_composed(subject, cache, constants)
    for dataset in constants.datasets:
        assert root is not None
        values += evaluate_photographs(subject, dataset, root / FOLDERS[dataset], constants.limit)
    return values
