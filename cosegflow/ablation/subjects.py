"""What is evaluated: a trained model, its untrained self, or nearest neighbours, behind one interface."""

from typing import Protocol

import torch
from torch import Tensor

from cosegflow.evaluate import Predictor, ZeroShotPredictor
from cosegflow.evaluate.predictors import ModelPredictor
from cosegflow.joint.model import JointModel, ModelConfig
from cosegflow.joint.predict import Prediction, predict_rounds


class Subject(Predictor, Protocol):
    """A `Predictor` that also shows its rounds."""

    masks: bool
    """Whether it predicts masks."""
    used: int
    """How many gated rounds it is used with."""
    refines: bool
    """Whether more rounds than `used` mean anything."""

    def rounds(self, image_a: Tensor, image_b: Tensor, count: int) -> list[Prediction]:
        """For (B, 3, H, W): the predictions after 0 to `count` rounds; without rounds the one that it makes."""
        ...


class TrainedSubject(ModelPredictor):
    """A trained model."""

    def __init__(self, model: JointModel, masks: bool = True) -> None:
        super().__init__(model)
        self.masks, self.refines = masks, masks
        self.used = model.config.rounds if masks else 0

    def rounds(self, image_a: Tensor, image_b: Tensor, count: int) -> list[Prediction]:
        """See `Subject.rounds`."""
        return predict_rounds(self.model, image_a, image_b, count)


class ZeroShotSubject(ZeroShotPredictor):
    """Cosine nearest neighbours of the backbone's features, no masks."""

    masks, used, refines = False, 0, False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.backbone, weights=config.weights, image_size=config.image_size)

    def rounds(self, image_a: Tensor, image_b: Tensor, count: int) -> list[Prediction]:
        """One prediction."""
        single = [self.matcher(a[None], b[None]) for a, b in zip(image_a, image_b, strict=True)]
        return [Prediction(*(torch.cat(values) for values in zip(*single, strict=True)))]
