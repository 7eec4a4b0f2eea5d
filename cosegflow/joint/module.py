"""Training: a thin LightningModule over the model and the losses."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cosegflow
from cosegflow.data.pair import Pair
from cosegflow.joint import losses
from cosegflow.joint.matcher import match_gated
from cosegflow.joint.model import JointModel, JointOutput, ModelConfig, Round, to_grid

Task = Literal["joint", "match-only", "coseg-only"]


@dataclass(frozen=True)
class LossWeights:
    """A weight for each loss; 0 leaves it out. docs/joint.md says how they were found."""

    matching: float = 20.0
    rejection: float = 10.0
    price: float = 30.0
    cycle: float = 1.0
    task: float = 0.05
    contrast: float = 0.05
    smoothness: float = 0.1
    edges: float = 0.5
    area: float = 1.0
    equivariance: float = 0.5
    known_flow: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the `task` chooses what learns."""

    task: Task = "joint"
    weights: LossWeights = field(default_factory=LossWeights)
    learning_rate: float = 2e-3
    adapter_learning_rate: float = 2e-4
    tail_learning_rate: float = 3e-4
    warmup: int = 10
    steps: int = 200
    rounds: int = 1
    contrast_size: int = 64
    """The masked images of the contrast loss are reduced to this square."""
    equivariance_beta: float = 20.0
    level: float = 0.65
    """Where between badly and well matched a match begins to pay, see `losses.match_level`."""
    score_gradient: float = 0.1
    """The part of the gradient of `matching` and `rejection` that goes on to the descriptors."""

    def __post_init__(self) -> None:
        if self.task not in ("joint", "match-only", "coseg-only"):
            raise ValueError(f"task: need 'joint', 'match-only' or 'coseg-only', got {self.task!r}")


def random_flow(batch: int, size: tuple[int, int], device: torch.device, bend: float = 0.03) -> Tensor:
    """Random smooth warps of a photograph: rotation, scale, shear and shift, plus bends; flow (B, 2, *size), pixels.

    Rotation up to 45 degrees, scale 0.6 to 1.6; bend: standard deviation of the bends over the longer side.
    """
    height, width = size
    angle = (torch.rand(batch) * 2 - 1) * math.pi / 4
    scale = torch.exp((torch.rand(batch, 2) - 0.5) * 0.3 + (torch.rand(batch, 1) * 2 - 1) * 0.45)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack((cos, -sin, sin, cos), 1).reshape(batch, 2, 2)
    matrix = turn @ torch.diag_embed(scale) - torch.eye(2)
    ys, xs = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    grid = torch.stack((xs.expand(height, width), ys[:, None].expand(height, width))).float()
    linear = (matrix @ grid.flatten(1)).reshape(batch, 2, height, width)
    shift = (torch.rand(batch, 2, 1, 1) - 0.5) * 0.3 * min(size)
    bends = F.interpolate(torch.randn(batch, 2, 4, 4) * bend * max(size), size=size, mode="bicubic", align_corners=True)
    return (linear + shift + bends).to(device)


class JointModule(lightning.LightningModule):
    """Joint training of matching and co-segmentation from pairs that share a category; no annotation is read."""

    def __init__(
        self, model: ModelConfig | None = None, train: TrainConfig | None = None, backbone: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.model = JointModel(model, backbone)
        self.recipe = train or TrainConfig()
        self.model.adapter.requires_grad_(self.recipe.task != "coseg-only")
        self.model.tail.requires_grad_(self.recipe.task != "coseg-only")
        self.model.decoder.requires_grad_(self.recipe.task != "match-only")

    def forward(self, image_a: Tensor, image_b: Tensor) -> JointOutput:
        """See `JointModel.forward`."""
        return self.model(image_a, image_b)

    def configure_optimizers(self) -> Any:
        """AdamW; a short linear warm-up, then a cosine to zero over `TrainConfig.steps`."""
        recipe = self.recipe
        groups = [
            {"params": list(self.model.decoder.parameters()), "lr": recipe.learning_rate},
            {"params": list(self.model.adapter.parameters()), "lr": recipe.adapter_learning_rate},
            {"params": list(self.model.tail.parameters()), "lr": recipe.tail_learning_rate},
        ]
        optimiser = torch.optim.AdamW(groups, weight_decay=1e-4)

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / max(1, min(recipe.warmup, recipe.steps // 10)))
            return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, recipe.steps))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Pair, batch_idx: int) -> Tensor:
        """One batch of pairs; reads image_a and image_b only."""
        output = self.model(batch.image_a, batch.image_b, self.recipe.rounds)
        terms = self.loss_terms(batch.image_a, batch.image_b, output)
        weights = asdict(self.recipe.weights)
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        if self._trainer is not None:
            last = output.rounds[-1]
            gates = [g for g in (last.gate_a, last.gate_b) if g is not None]
            share = torch.stack([g.source.float().mean() for g in gates]).mean() if gates else torch.ones(())
            self.log("loss", total.detach(), prog_bar=True)
            self.log("foreground", share, prog_bar=True)
            self.log_dict({f"loss/{name}": value.detach() for name, value in terms.items()})
        return total

    def loss_terms(self, image_a: Tensor, image_b: Tensor, output: JointOutput) -> dict[str, Tensor]:
        """Every loss with a weight above 0 that the task uses, unweighted, averaged over directions and rounds."""
        weights, task = self.recipe.weights, self.recipe.task
        collected: dict[str, list[Tensor]] = {}

        def add(name: str, value: Tensor) -> None:
            if getattr(weights, name) > 0:
                collected.setdefault(name, []).append(value)

        fa, fb = output.features_a, output.features_b
        grid = fa.shape[-2:]
        unit = float(max(grid))
        for stage in output.rounds:
            soft_a, soft_b = torch.sigmoid(stage.logits_a), torch.sigmoid(stage.logits_b)
            mask_a, mask_b = to_grid(soft_a, grid), to_grid(soft_b, fb.shape[-2:])
            if task == "match-only":
                mask_a, mask_b = torch.ones_like(mask_a), torch.ones_like(mask_b)
            score_a = self._damped(losses.soft_inlier_score(fa, fb, stage.ab.flow))
            score_b = self._damped(losses.soft_inlier_score(fb, fa, stage.ba.flow))
            for score, other, mask in ((score_a, score_b, mask_a), (score_b, score_a, mask_b)):
                add("matching", losses.foreground_guided_matching(score, mask))
                add("rejection", losses.background_rejection(score, mask))
                add("price", losses.foreground_price(score, other, mask, self.recipe.level))
                add("area", losses.area_prior(mask))
            sides = ((stage.ab, stage.ba, mask_a, mask_b), (stage.ba, stage.ab, mask_b, mask_a))
            for near, far, mask, other in sides:
                weight = mask.detach()
                add("cycle", losses.cycle_consistency(near.flow, far.flow, weight, unit))
                add("smoothness", losses.flow_smoothness(near.flow, weight, unit))
                if task != "match-only":
                    add("task", losses.task_consistency(mask, other, near.flow))
            if task != "match-only":
                for image, soft in ((image_a, soft_a), (image_b, soft_b)):
                    small = F.interpolate(image, size=soft.shape[-2:], mode="area")
                    add("edges", losses.mask_edges(soft, small))
        if task != "coseg-only" and max(weights.equivariance, weights.known_flow) > 0:
            surprise, error = self._self_supervised(image_a, image_b, output.rounds[-1])
            add("equivariance", surprise)
            add("known_flow", error)
        if task != "match-only" and weights.contrast > 0:
            add("contrast", self._contrast(image_a, image_b, output.rounds[-1]))
        return {name: torch.stack(values).mean() for name, values in collected.items()}

    def _damped(self, score: Tensor) -> Tensor:
        share = self.recipe.score_gradient
        return share * score + (1 - share) * score.detach()

    def _self_supervised(self, image_a: Tensor, image_b: Tensor, stage: Round) -> tuple[Tensor, Tensor]:
        """(equivariance, known_flow) of one image of each pair.

        It is warped by a known map, and what its mask calls foreground is pasted onto another image.
        """
        odd = (
            torch.arange(image_a.shape[0]) % 2 == 1 if image_a.shape == image_b.shape else torch.zeros(len(image_a)) > 0
        )
        pick = odd.to(image_a.device)[:, None, None]
        image, other = image_a, image_b
        logits = stage.logits_a.detach()
        if bool(odd.any()):
            image, other = torch.where(pick[:, None], image_b, image_a), torch.where(pick[:, None], image_a, image_b)
            logits = torch.where(pick, stage.logits_b.detach(), logits)
        size = (image.shape[-2], image.shape[-1])
        mask = (torch.sigmoid(logits) >= 0.5).float() if self.recipe.task == "joint" else torch.ones_like(logits)
        flow = random_flow(image.shape[0], size, image.device)
        warped = cosegflow.warp(image, flow, padding="border")
        full = F.interpolate(mask.unsqueeze(1), size=size, mode="bilinear", align_corners=False)
        cover = cosegflow.warp(full, flow, padding="border")
        ground = F.interpolate(other.roll(1, 0), size=size, mode="bilinear", align_corners=False)
        pasted = cover * warped + (1 - cover) * ground
        features_warped, features = self.model.adapter(self.model.pyramid(pasted), self.model.pyramid(image))
        grid = (features.shape[-2], features.shape[-1])
        cells = F.interpolate(flow, size=grid, mode="area") * (grid[1] / size[1])
        weight = (to_grid(cover.squeeze(1), grid) > 0.5).float()
        surprise = losses.equivariance(features_warped, features, cells, self.recipe.equivariance_beta, weight)
        found = match_gated(features_warped, features, None, None, self.model.config.beta)
        return surprise, losses.known_flow(found.flow, cells, weight, grid)

    def _contrast(self, image_a: Tensor, image_b: Tensor, stage: Round) -> Tensor:
        size = (self.recipe.contrast_size, self.recipe.contrast_size)
        parts: list[Tensor] = []
        for image, logits in ((image_a, stage.logits_a), (image_b, stage.logits_b)):
            small = F.interpolate(image, size=size, mode="area")
            mask = F.interpolate(logits.unsqueeze(1), size=size, mode="bilinear", align_corners=False)
            parts += losses.split_by_mask(small, torch.sigmoid(mask.squeeze(1)))
        object_a, ground_a, object_b, ground_b = self.model.backbone.descriptor(torch.cat(parts)).chunk(4)
        return losses.perceptual_contrast(object_a, object_b, ground_a, ground_b)
