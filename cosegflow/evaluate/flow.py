"""Dense flow: TSS, and pairs that were composed with exact flow."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cosegflow.data.pair import Pair
from cosegflow.evaluate.errors import EvaluationError
from cosegflow.evaluate.predictors import Predictor
from cosegflow.evaluate.values import by_alpha, number
from cosegflow.metrics import PCK, CategoryMeans, EndPointError, FlowAccuracy, MaskIoU, box_length


class FlowEvaluator:
    """TSS: flow accuracy and mask IoU of directed pairs."""

    columns = ("flow_accuracy", "iou")

    def __init__(self, categories: Sequence[str], alphas: Sequence[float]) -> None:
        self.alphas = tuple(alphas)
        self.accuracy, self.ious = FlowAccuracy(alphas, categories), CategoryMeans(1, categories)

    def update(self, pair: Pair, predictor: Predictor) -> dict[str, Any]:
        """Adds a directed pair.

        Raises:
            EvaluationError: the pair has no true flow.
        """
        if pair.flow_ab is None:
            raise EvaluationError(f"pair {pair.name}: has no flow; flow accuracy needs it")
        found, category = predictor.predict(pair.image_a, pair.image_b), str(pair.category)
        valid = None if pair.valid_ab is None else pair.valid_ab[None]
        size_b = (pair.image_b.shape[1], pair.image_b.shape[2])
        accuracy = self.accuracy(found.flow_ab, pair.flow_ab[None], size_b, category, valid).overall.reshape(-1)
        iou = None
        if pair.mask_a is not None:
            iou = MaskIoU()(found.mask_a, pair.mask_a[None])
            self.ious.update(iou.reshape(1, 1), category)
        return {"flow_accuracy": number(accuracy[0]), "iou": number(iou)}

    def result(self) -> dict[str, Any]:
        """`flow_accuracy` is that of the first alpha. See docs/evaluation.md."""
        means, ious = self.accuracy.means(), self.ious.means()
        groups = self.accuracy.categories
        by_group = means.by_category.reshape(len(groups), len(self.alphas))
        shares = ious.by_category.reshape(-1)
        return {
            "alpha": self.alphas[0],
            "flow_accuracy": number(means.overall.reshape(-1)[0]),
            "flow_accuracy_by_alpha": by_alpha(self.alphas, means.overall),
            "iou": number(ious.overall),
            "mean_of_categories": {
                "flow_accuracy": number(by_group[:, 0].nanmean()),
                "iou": number(shares.nanmean()),
            },
            "per_category": {
                name: {
                    "flow_accuracy": number(by_group[i, 0]),
                    "flow_accuracy_by_alpha": by_alpha(self.alphas, by_group[i]),
                    "iou": number(shares[i]),
                }
                for i, name in enumerate(groups)
            },
        }


class ComposedEvaluator:
    """Composed pairs: dense PCK and end-point error where the flow is known, IoU of both masks."""

    columns = ("pck", "end_point_error", "iou")

    def __init__(self, categories: Sequence[str], alphas: Sequence[float]) -> None:
        self.alphas = tuple(alphas)
        self.means = CategoryMeans(len(self.alphas) + 2, categories)

    def update(self, pair: Pair, predictor: Predictor) -> dict[str, Any]:
        """Adds a pair.

        Raises:
            EvaluationError: the pair has no masks.
        """
        if pair.mask_a is None or pair.mask_b is None:
            raise EvaluationError(f"pair {pair.name}: has no masks; composed pairs need them")
        found = predictor.predict(pair.image_a, pair.image_b)
        values = torch.full((len(self.alphas) + 2,), torch.nan, dtype=torch.float64)
        if pair.flow_ab is not None and pair.valid_ab is not None:
            truth = pair.flow_ab[None], pair.valid_ab[None]
            values[:-2] = PCK(self.alphas)(found.flow_ab, *truth, box_length(pair.mask_b[None]))
            values[-2] = EndPointError()(found.flow_ab, *truth)
        both = ((found.mask_a, pair.mask_a), (found.mask_b, pair.mask_b))
        values[-1] = torch.stack([MaskIoU()(mask, truth[None]) for mask, truth in both]).mean()
        self.means.update(values[None], str(pair.category))
        return self._named(values)

    def _named(self, values: Tensor) -> dict[str, Any]:
        return {
            "pck": by_alpha(self.alphas, values[:-2]),
            "end_point_error": number(values[-2]),
            "iou": number(values[-1]),
        }

    def result(self) -> dict[str, Any]:
        """See docs/evaluation.md; the error is in pixels."""
        means = self.means.means()
        rows = zip(self.means.categories, means.by_category, strict=True)
        return {**self._named(means.overall), "per_category": {name: self._named(row) for name, row in rows}}
