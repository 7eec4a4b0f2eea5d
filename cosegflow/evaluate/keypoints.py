"""PCK of key points: PF-WILLOW, PF-PASCAL, SPair-71k."""

from collections.abc import Sequence
from typing import Any

import torch

from cosegflow.data.pair import Pair
from cosegflow.evaluate.errors import EvaluationError
from cosegflow.evaluate.predictors import Predictor
from cosegflow.evaluate.values import by_alpha
from cosegflow.metrics import KeypointPCK, Threshold, reference_length, rescale_keypoints


class KeypointEvaluator:
    """Transfers a's key points to b and compares; with the threshold "scnet" b's points to a, at 224 x 224."""

    columns = ("pck", "pck_per_point")

    def __init__(self, categories: Sequence[str], threshold: Threshold, alphas: Sequence[float]) -> None:
        self.threshold, self.alphas = threshold, tuple(alphas)
        self.metric = KeypointPCK(alphas, categories)

    def update(self, pair: Pair, predictor: Predictor) -> dict[str, Any]:
        """Adds a pair; its PCK, null where a and b share no key point.

        Raises:
            EvaluationError: the pair has no key points, or no box that the threshold needs.
        """
        if pair.keypoints_a is None or pair.keypoints_b is None:
            raise EvaluationError(f"pair {pair.name}: has no key points; PCK needs them")
        if self.threshold == "bbox" and pair.box_b is None:
            raise EvaluationError(
                f"--threshold: 'bbox' needs annotated boxes, and pair {pair.name} has none; need bbox-kp, img or scnet"
            )
        common = (pair.keypoints_a.isfinite() & pair.keypoints_b.isfinite()).all(1, keepdim=True)
        images, points = [pair.image_a, pair.image_b], [pair.keypoints_a, pair.keypoints_b]
        if self.threshold == "scnet":
            images.reverse()
            points.reverse()
        size = (images[1].shape[1], images[1].shape[2])
        length = reference_length(
            self.threshold, points[1][None], size, None if pair.box_b is None else pair.box_b[None]
        )
        found = torch.full_like(points[0], torch.nan)
        if common.any():
            found = predictor.transfer(images[0], images[1], points[0])
        truth = torch.where(common, points[1], torch.nan)
        if self.threshold == "scnet":
            found, truth = rescale_keypoints(found, size), rescale_keypoints(truth, size)
        values = self.metric(found[None], truth[None], length, str(pair.category))
        return {"points": int(common.sum()), "pck": by_alpha(self.alphas, values.per_image)}

    def result(self) -> dict[str, Any]:
        """See docs/evaluation.md."""
        means = self.metric.compute()
        groups, shape = self.metric.categories, (len(self.metric.categories), len(self.alphas))
        images, points = means.per_image_by_category.reshape(shape), means.per_point_by_category.reshape(shape)
        numbers = means.points.reshape(-1).tolist()
        return {
            "threshold": self.threshold,
            "points": sum(numbers),
            "pck": by_alpha(self.alphas, means.per_image),
            "pck_per_point": by_alpha(self.alphas, means.per_point),
            "per_category": {
                name: {
                    "points": numbers[i],
                    "pck": by_alpha(self.alphas, images[i]),
                    "pck_per_point": by_alpha(self.alphas, points[i]),
                }
                for i, name in enumerate(groups)
            },
        }
