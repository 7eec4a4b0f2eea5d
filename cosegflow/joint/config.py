"""The settings of a training run: data, model, recipe. Every default is the recipe of docs/joint.md."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cosegflow.joint.model import ModelConfig

Task = Literal["joint", "match-only", "coseg-only"]

AUTO = Path("auto")

IDLE_LOSSES: dict[str, frozenset[str]] = {
    "joint": frozenset(),
    "match-only": frozenset(("foreground", "pasted", "rejection", "price", "area", "task", "contrast", "edges")),
    "coseg-only": frozenset(
        ("matching", "rejection", "price", "task", "cycle", "smoothness", "equivariance", "known_flow", "transitivity")
    ),
}
"""Losses that a task does not compute: match-only knows no mask, coseg-only no flow."""


@dataclass(frozen=True)
class LossWeights:
    """A weight for each loss; 0 leaves it out. docs/joint.md says how they were found."""

    matching: float = 2.0
    """foreground-guided matching"""
    rejection: float = 1.0
    """what is called background should not match (against collapse)"""
    price: float = 3.0
    """each foreground pixel costs (against collapse)"""
    cycle: float = 1.0
    """cycle consistency"""
    foreground: float = 10.0
    """the mask follows the pair's common foreground, found without training"""
    pasted: float = 3.0
    """the mask of an object that was cut out by its mask and pasted elsewhere"""
    task: float = 0.2
    """the mask of b, warped, agrees with the mask of a"""
    contrast: float = 0.05
    """perceptual contrast of foreground and background"""
    smoothness: float = 0.0
    """smoothness of the flow on the foreground"""
    edges: float = 0.5
    """mask edges lie on edges of the photograph"""
    area: float = 0.0
    """the mask is neither nothing nor everything (against collapse)"""
    equivariance: float = 1.0
    """descriptors follow a known warp"""
    known_flow: float = 2.0
    """the flow of a known warp"""
    transitivity: float = 0.0
    """a to b to c to a comes back; needs data.triplets"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}: need a weight of at least 0, got {value}")


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the `task` chooses what learns."""

    task: Task = "joint"
    """joint, match-only (no masks) or coseg-only (no flow, descriptors fixed)"""
    supervision: Literal["none", "exact"] = "none"
    """exact: the composer's flow and masks teach, of stamps only; what the lack of annotation costs"""
    weights: LossWeights = field(default_factory=LossWeights)
    steps: int = 400
    """optimiser steps in all"""
    epochs: float | None = None
    """passes over the photographs, instead of steps"""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    """sgd has no momentum and takes the same learning rates"""
    learning_rate: float = 2e-3
    """of the mask decoder"""
    adapter_learning_rate: float = 1e-3
    """of the adapter of the descriptors, and of the parametric matcher"""
    tail_learning_rate: float = 6e-4
    """of the backbone's last stage"""
    weight_decay: float = 1e-4
    """of adamw"""
    warmup: int = 10
    """steps of linear warm-up; at most a tenth of all"""
    rounds: int = 1
    """gated rounds in training"""
    contrast_size: int = 64
    """the masked images of the contrast loss are reduced to this square, a multiple of 16"""
    equivariance_beta: float = 20.0
    """inverse temperature of the loss equivariance"""
    rotation: float = 70.0
    """largest angle of the known warps, in degrees"""
    jitter: float = 1.0
    """strength of the change of colours of the warped photograph; 0 changes nothing"""
    level: float = 0.65
    """where between badly and well matched a match begins to pay"""
    score_gradient: float = 1.0
    """the part of the gradient of matching and rejection that goes on to the descriptors"""
    gradient_clip: float = 1.0
    """largest norm of the gradient; 0 does not clip"""
    precision: Literal["32", "bf16-mixed"] = "32"
    """float32, or bfloat16 where it is safe"""
    seed: int = 0
    """of everything random"""
    validate_every: int = 100
    """steps between validations"""
    patience: int | None = None
    """stop after so many validations without a better score; null never stops early"""
    checkpoint_every: int = 50
    """steps between checkpoints"""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes a GPU where there is one"""
    devices: int = 1
    """processes on this machine; under torchrun its --nproc-per-node decides"""
    strategy: str = "auto"
    """of Lightning; auto is DDP for several processes"""

    def __post_init__(self) -> None:
        if self.task not in ("joint", "match-only", "coseg-only"):
            raise ValueError(f"task: need 'joint', 'match-only' or 'coseg-only', got {self.task!r}")
        for name in ("steps", "validate_every", "checkpoint_every", "devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: need at least 1, got {getattr(self, name)}")
        if self.supervision == "exact" and self.task != "joint":
            raise ValueError(f"supervision: 'exact' trains both tasks; need task 'joint', got {self.task!r}")
        if self.contrast_size < 16 or self.contrast_size % 16:
            raise ValueError(f"contrast_size: need a multiple of 16, got {self.contrast_size}")
        used = [name for name in vars(self.weights) if name not in IDLE_LOSSES[self.task]]
        if not any(getattr(self.weights, name) > 0 for name in used):
            raise ValueError(f"weights: need one above 0 of those that task {self.task!r} uses: {', '.join(used)}")
        for name in ("epochs", "patience"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}: need a number above 0 or null, got {value}")
        rates = ("learning_rate", "adapter_learning_rate", "tail_learning_rate", "weight_decay")
        for name in (*rates, "warmup", "rounds", "gradient_clip", "score_gradient", "rotation", "jitter"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: need at least 0, got {getattr(self, name)}")
        if not 0 <= self.level <= 1:
            raise ValueError(f"level: need a number from 0 to 1, got {self.level}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: need a whole number from 0 to 4294967295, got {self.seed}")


@dataclass(frozen=True)
class DataConfig:
    """Where training samples come from; docs/data.md describes the data sets."""

    dataset: str = "stamps"
    """name of the data set; folder is a folder of photographs for each category"""
    root: Path | None = None
    """the data set's folder; null is allowed for stamps only, and looks for them"""
    photographs: Path | None = AUTO
    """folder with a folder of photographs for each category, for every other sample beside the stamps; auto is that of
    Caltech-101 where it lies beside them, null is none"""
    size: int = 240
    """side of the square training images in pixels, a multiple of 16"""
    triplets: bool = False
    """a third photograph in each sample, for the loss transitivity"""
    augment: bool = True
    """random crops, mirror images and colours"""
    batch: int = 4
    """samples per step and process"""
    workers: int = 2
    """processes that read photographs; 0 reads in the training process"""
    validation: int = 48
    """held-out samples in a validation; 0 does not validate"""

    def __post_init__(self) -> None:
        if self.dataset.strip().lower() != "stamps" and self.photographs not in (None, AUTO):
            raise ValueError(f"photographs: only stamps are mixed with them, got dataset {self.dataset!r}")
        if self.size < 16 or self.size % 16:
            raise ValueError(f"size: need a multiple of 16, got {self.size}")
        if self.batch < 1:
            raise ValueError(f"batch: need at least 1, got {self.batch}")
        for name in ("workers", "validation"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: need at least 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class FitConfig:
    """A whole run."""

    out: Path = Path("run")
    """folder of the run: configuration, checkpoints, logs, the trained model"""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.train.weights.transitivity > 0 and not self.data.triplets:
            raise ValueError("train.weights.transitivity: needs data.triplets true")
        if self.train.supervision == "exact" and (self.data.dataset != "stamps" or self.data.photographs is not None):
            raise ValueError("train.supervision: 'exact' needs data.dataset stamps and data.photographs null")
        if self.train.patience is not None and not self.data.validation:
            raise ValueError("train.patience: needs data.validation above 0")
        if self.model.square and self.data.size != self.model.image_size:
            raise ValueError(
                f"data.size: model.decoder 'paper' needs that of model.image_size, {self.model.image_size}, got"
                f" {self.data.size}"
            )
