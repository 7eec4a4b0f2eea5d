"""What is evaluated: a trained model, or a pretrained backbone without training."""

import hashlib
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cosegflow.evaluate.errors import EvaluationError
from cosegflow.joint.backbones import make_backbone
from cosegflow.joint.checkpoint import load_checkpoint
from cosegflow.joint.model import JointModel
from cosegflow.joint.predict import Prediction, predict
from cosegflow.joint.zero_shot import IMAGE_SIZE, ZeroShotMatcher
from cosegflow.metrics import transfer_keypoints


class Predictor(Protocol):
    """Matches and segments one pair of photographs (3, H, W) in [0, 1] on the CPU, of any sizes."""

    device: torch.device
    """Where it computes."""

    def predict(self, image_a: Tensor, image_b: Tensor) -> Prediction:
        """A batch of one, at the photographs' sizes, on the CPU."""

    def transfer(self, image_a: Tensor, image_b: Tensor, points: Tensor) -> Tensor:
        """Key points (K, 2) of a to (K, 2) float32 pixels of b, on the CPU; NaN stays NaN."""

    def describe(self) -> dict[str, Any]:
        """For the JSON: what was evaluated."""


def make_device(name: str) -> torch.device:
    """The device; "auto" is CUDA where there is one.

    Raises:
        EvaluationError: unknown, or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise EvaluationError(f"--device: {name}: cannot be used ({reason})") from None
    return device


def _to_cpu(found: Prediction) -> Prediction:
    return Prediction(*(value.cpu() for value in found))


class ModelPredictor:
    """A model; key points move by its flow, interpolated bilinearly at the photographs' own sizes."""

    def __init__(self, model: JointModel, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.model = model.eval().to(self.device)

    def predict(self, image_a: Tensor, image_b: Tensor) -> Prediction:
        """See `Predictor.predict`."""
        return _to_cpu(predict(self.model, image_a[None].to(self.device), image_b[None].to(self.device)))

    def transfer(self, image_a: Tensor, image_b: Tensor, points: Tensor) -> Tensor:
        """See `Predictor.transfer`."""
        return transfer_keypoints(self.predict(image_a, image_b).flow_ab, points[None])[0]

    def describe(self) -> dict[str, Any]:
        """See `Predictor.describe`."""
        return {"method": "model", "backbone": self.model.config.backbone, "masks": "predicted"}


class CheckpointPredictor(ModelPredictor):
    """A trained model of a run or a file."""

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        """Raises:
        CheckpointError: the checkpoint cannot be used.
        """
        self.path = Path(path)
        super().__init__(load_checkpoint(path, "--checkpoint"), device)

    def describe(self) -> dict[str, Any]:
        """Method, backbone, what the masks are, path and SHA-256 of a checkpoint that is one file."""
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest() if self.path.is_file() else None
        return {
            "method": "checkpoint",
            "backbone": self.model.config.backbone,
            "masks": "predicted",
            "checkpoint": {"path": str(self.path), "sha256": digest, "config": self.model.config.to_dict()},
        }


class ZeroShotPredictor:
    """Cosine nearest neighbour of a pretrained backbone (`ZeroShotMatcher`); each mask is the whole photograph."""

    def __init__(
        self,
        backbone: str,
        device: torch.device | str = "cpu",
        *,
        weights: str | None = None,
        image_size: int = IMAGE_SIZE,
    ) -> None:
        """Raises:
        BackboneError: unknown backbone, or its weights are missing.
        """
        self.backbone, self.device = backbone, torch.device(device)
        self.matcher = ZeroShotMatcher(make_backbone(backbone, weights), image_size).to(self.device)

    def predict(self, image_a: Tensor, image_b: Tensor) -> Prediction:
        """See `Predictor.predict`."""
        return _to_cpu(self.matcher(image_a[None].to(self.device), image_b[None].to(self.device)))

    def transfer(self, image_a: Tensor, image_b: Tensor, points: Tensor) -> Tensor:
        """See `Predictor.transfer`."""
        return self.matcher.transfer(*(value.to(self.device) for value in (image_a, image_b, points))).cpu()

    def describe(self) -> dict[str, Any]:
        """Method, backbone, what the masks are, and the side of the squashed photographs."""
        return {
            "method": "zero-shot",
            "backbone": self.backbone,
            "image_size": self.matcher.image_size,
            "masks": "whole photographs",
            "checkpoint": None,
        }
