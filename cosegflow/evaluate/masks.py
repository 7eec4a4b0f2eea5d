"""Masks: co-segmentation (Internet, Weizmann horses, folders with masks) and label transfer (Caltech-101)."""

from collections.abc import Sequence
from typing import Any

from cosegflow.data.pair import Pair
from cosegflow.evaluate.errors import EvaluationError
from cosegflow.evaluate.predictors import Predictor
from cosegflow.evaluate.values import number
from cosegflow.metrics import LabelTransfer, Means, PrecisionJaccard


def _named(names: Sequence[str], means: Means, categories: Sequence[str]) -> dict[str, Any]:
    """The overall means under their names, and per category under its name."""
    by_category = means.by_category.reshape(len(categories), len(names))
    return {
        **{name: number(value) for name, value in zip(names, means.overall.reshape(-1), strict=True)},
        "per_category": {
            category: {name: number(value) for name, value in zip(names, by_category[i], strict=True)}
            for i, category in enumerate(categories)
        },
    }


class SegmentationEvaluator:
    """Precision and Jaccard index of a's mask; the data sets have each photograph once as a."""

    columns = ("precision", "jaccard")

    def __init__(self, categories: Sequence[str]) -> None:
        self.metric = PrecisionJaccard(categories=categories)

    def update(self, pair: Pair, predictor: Predictor) -> dict[str, Any]:
        """Adds the mask of a.

        Raises:
            EvaluationError: the photograph has no true mask.
        """
        if pair.mask_a is None:
            raise EvaluationError(f"pair {pair.name}: its first photograph has no mask; co-segmentation needs one")
        found = predictor.predict(pair.image_a, pair.image_b)
        values = self.metric(found.mask_a, pair.mask_a[None], str(pair.category)).overall
        return {name: number(value) for name, value in zip(self.columns, values, strict=True)}

    def result(self) -> dict[str, Any]:
        """See docs/evaluation.md."""
        return _named(self.columns, self.metric.means(), self.metric.categories)


class TransferEvaluator:
    """Caltech-101: a's outline is carried to b by the flow from b to a, and compared with b's outline.

    Precision and Jaccard index of b's predicted mask too.
    """

    columns = ("lt_acc", "iou", "loc_err")

    def __init__(self, categories: Sequence[str]) -> None:
        self.metric = LabelTransfer(categories)
        self.segmentation = PrecisionJaccard(categories=categories)

    def update(self, pair: Pair, predictor: Predictor) -> dict[str, Any]:
        """Adds a pair.

        Raises:
            EvaluationError: an outline is missing.
        """
        if pair.mask_a is None or pair.mask_b is None:
            raise EvaluationError(f"pair {pair.name}: has no outlines; label transfer needs both")
        category = str(pair.category)
        found = predictor.predict(pair.image_b, pair.image_a)
        values = self.metric(found.flow_ab, pair.mask_b[None], pair.mask_a[None], category).overall
        self.segmentation.update(found.mask_a, pair.mask_b[None], category)
        return {name: number(value) for name, value in zip(self.columns, values, strict=True)}

    def result(self) -> dict[str, Any]:
        """See docs/evaluation.md."""
        values = self.segmentation.means().overall
        names = SegmentationEvaluator.columns
        segmented = {name: number(value) for name, value in zip(names, values, strict=True)}
        return {**_named(self.columns, self.metric.means(), self.metric.categories), "segmentation": segmented}
