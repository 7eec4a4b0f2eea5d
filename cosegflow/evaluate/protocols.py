"""Which protocol belongs to which data set."""

from collections.abc import Sequence
from typing import Any, Protocol

from cosegflow.data.pair import Pair
from cosegflow.evaluate.errors import EvaluationError
from cosegflow.evaluate.flow import ComposedEvaluator, FlowEvaluator
from cosegflow.evaluate.keypoints import KeypointEvaluator
from cosegflow.evaluate.masks import SegmentationEvaluator, TransferEvaluator
from cosegflow.evaluate.predictors import Predictor
from cosegflow.metrics import THRESHOLDS, Threshold

PCK_ALPHAS = (0.05, 0.1, 0.15)
FLOW_ALPHAS = (0.05,)
KEYPOINT_THRESHOLDS: dict[str, Threshold] = {"pf-willow": "bbox-kp", "pf-pascal": "img", "spair-71k": "bbox"}
"""Data sets with key points, and the threshold of each that is customary."""
WITH_ALPHAS = (*KEYPOINT_THRESHOLDS, "tss", "stamps")


class Evaluator(Protocol):
    """One protocol: adds pairs, then gives the numbers."""

    @property
    def columns(self) -> Sequence[str]:
        """The keys of `result` and of each category that make the table."""

    def update(self, pair: Pair, predictor: Predictor) -> dict[str, Any]:
        """Evaluates one pair and adds it; returns its own values."""

    def result(self) -> dict[str, Any]:
        """The numbers over all pairs so far, and under "per_category" those of each category."""


def make_evaluator(
    dataset: str, categories: Sequence[str], threshold: Threshold | None = None, alphas: Sequence[float] | None = None
) -> Evaluator:
    """The evaluator of a data set.

    Args:
        dataset: its canonical name.
        categories: all categories that occur.
        threshold: what PCK's L is; None: the customary one.
        alphas: None: 0.05, 0.1, 0.15; for TSS 0.05.

    Raises:
        EvaluationError: an option that the data set has no use for.
    """
    if threshold is not None and dataset not in KEYPOINT_THRESHOLDS:
        raise EvaluationError(f"--threshold: {dataset} has no key points; it is for {', '.join(KEYPOINT_THRESHOLDS)}")
    if threshold is not None and threshold not in THRESHOLDS:
        raise EvaluationError(f"--threshold: need one of {', '.join(THRESHOLDS)}, got {threshold!r}")
    if alphas is not None and dataset not in WITH_ALPHAS:
        raise EvaluationError(f"--alphas: {dataset} has no thresholds; it is for {', '.join(WITH_ALPHAS)}")
    if dataset in KEYPOINT_THRESHOLDS:
        return KeypointEvaluator(categories, threshold or KEYPOINT_THRESHOLDS[dataset], alphas or PCK_ALPHAS)
    if dataset == "tss":
        return FlowEvaluator(categories, alphas or FLOW_ALPHAS)
    if dataset == "caltech-101":
        return TransferEvaluator(categories)
    if dataset == "stamps":
        return ComposedEvaluator(categories, alphas or PCK_ALPHAS)
    return SegmentationEvaluator(categories)
