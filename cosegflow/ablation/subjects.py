"""What is evaluated: a trained model, its untrained self, or nearest neighbours, behind one interface."""

from typing import Any, Protocol

import torch
from torch import Tensor

from cosegflow.evaluate import Predictor, ZeroShotPredictor
from cosegflow.joint.model import JointModel, ModelConfig
from cosegflow.joint.predict import Prediction, predict, predict_rounds
from cosegflow.metrics import transfer_keypoints


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


class TrainedSubject:
    """A trained model."""

    def __init__(self, model: JointModel, masks: bool = True) -> None:
        self.model, self.masks, self.refines = model.eval(), masks, masks
        self.used = model.config.rounds if masks else 0
        self.device = torch.device("cpu")

    def rounds(self, image_a: Tensor, image_b: Tensor, count: int) -> list[Prediction]:
        """See `Subject.rounds`."""
        return predict_rounds(self.model, image_a, image_b, count)

    def predict(self, image_a: Tensor, image_b: Tensor) -> Prediction:
        """See `Predictor.predict`."""
        return predict(self.model, image_a[None], image_b[None])

    def transfer(self, image_a: Tensor, image_b: Tensor, points: Tensor) -> Tensor:
        """See `Predictor.transfer`."""
        return transfer_keypoints(self.predict(image_a, image_b).flow_ab, points[None])[0]

    def describe(self) -> dict[str, Any]:
        """See `Predictor.describe`."""
        return {"method": "trained", "backbone": self.model.config.backbone}


class ZeroShotSubject(ZeroShotPredictor):
    """Cosine nearest neighbours of the backbone's features, no masks."""

    masks, used, refines = False, 0, False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.backbone, weights=config.weights, image_size=config.image_size)

    def rounds(self, image_a: Tensor, image_b: Tensor, count: int) -> list[Prediction]:
        """One prediction."""
        single = [self.matcher(a[None], b[None]) for a, b in zip(image_a, image_b, strict=True)]
        return [Prediction(*(torch.cat(values) for values in zip(*single, strict=True)))]
