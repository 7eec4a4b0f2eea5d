"""Training: a thin LightningModule over the model and the losses."""

import math
from dataclasses import asdict
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

import cosegflow
from cosegflow.data.pair import Pair
from cosegflow.data.training import TrainingSample
from cosegflow.joint import losses
from cosegflow.joint.config import IDLE_LOSSES, LossWeights, Task, TrainConfig
from cosegflow.joint.matcher import Frozen, Matching, spatial_size
from cosegflow.joint.model import JointModel, JointOutput, ModelConfig, Round, to_grid
from cosegflow.joint.predict import predict
from cosegflow.joint.self_supervision import random_colours, random_flow
from cosegflow.metrics import PCK, MaskIoU, box_length

SCORE = "val/score"
"""The validation score: larger is better; see `JointModule.on_validation_epoch_end`."""

SELF_SUPERVISED = frozenset(("equivariance", "known_flow", "pasted"))

MASK_WEIGHT = 5.0
"""Of the masks' cross-entropy under exact supervision, beside the weights of known_flow and equivariance."""


class JointModule(lightning.LightningModule):
    """Joint training of matching and co-segmentation from pairs that share a category; no annotation is read.

    Everything random is a function of (recipe.seed, sample number), and every loss is a mean over samples of one value
    per sample: how the samples are spread over batches and processes changes a step by rounding only.
    """

    def __init__(
        self, model: ModelConfig | None = None, train: TrainConfig | None = None, backbone: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.model = JointModel(model, backbone)
        self.recipe = train or TrainConfig()
        for name, parameter in self.model.named_parameters():
            part = name.partition(".")[0]
            idle = "coseg-only" if part != "decoder" else "match-only"
            parameter.requires_grad_(part != "backbone" and self.recipe.task != idle)
        self.pck, self.iou, self.mean_loss = PCK((0.1,)), MaskIoU(), MeanMetric()
        self._exact = False

    def forward(self, image_a: Tensor, image_b: Tensor) -> JointOutput:
        """See `JointModel.forward`."""
        return self.model(image_a, image_b)

    def configure_optimizers(self) -> Any:
        """AdamW (or SGD); a short linear warm-up, then a cosine to zero over `TrainConfig.steps`."""
        recipe = self.recipe
        parts: dict[str, list[nn.Parameter]] = {"decoder": [], "adapter": [], "tail": []}
        for name, parameter in self.model.named_parameters():
            part = name.partition(".")[0]
            if part != "backbone":
                parts["adapter" if part == "matcher" else part].append(parameter)
        groups = [{"params": params, "lr": rate} for params, rate in zip(parts.values(), self._rates(), strict=True)]
        optimiser: torch.optim.Optimizer
        if recipe.optimiser == "sgd":
            optimiser = torch.optim.SGD(groups)
        else:
            optimiser = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / max(1, min(recipe.warmup, recipe.steps // 10)))
            return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, recipe.steps))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rates(self) -> tuple[float, float, float]:
        recipe = self.recipe
        return recipe.learning_rate, recipe.adapter_learning_rate, recipe.tail_learning_rate

    def on_train_start(self) -> None:
        """A resumed optimiser brings the rates of the run it was stored by; those of this run's settings count."""
        schedule: Any = self.lr_schedulers()
        schedule.base_lrs = list(self._rates())
        for group, rate, factor in zip(
            schedule.optimizer.param_groups, self._rates(), schedule.lr_lambdas, strict=True
        ):
            group["initial_lr"], group["lr"] = rate, rate * factor(schedule.last_epoch)
            if self.recipe.optimiser == "adamw":
                group["weight_decay"] = self.recipe.weight_decay

    @property
    def _rounds(self) -> int:
        """Gated rounds in training; a task alone has nothing to refine with."""
        return self.recipe.rounds if self.recipe.task == "joint" else 0

    def training_step(self, batch: TrainingSample, batch_idx: int) -> Tensor:
        """One batch of samples."""
        output = self.model(batch.image_a, batch.image_b, self._rounds)
        exact = self.recipe.supervision == "exact"
        terms = self.exact_terms(batch, output) if exact else self.loss_terms(batch, output)
        total = self._total(terms)
        if self._trainer is not None:
            last = output.rounds[-1]
            gates = [g for g in (last.gate_a, last.gate_b) if g is not None]
            share = torch.stack([g.source.float().mean() for g in gates]).mean() if gates else torch.ones(())
            self.log("loss", total.detach(), prog_bar=True)
            self.log("foreground", share, prog_bar=True)
            self.log_dict({f"loss/{name}": value.detach() for name, value in terms.items()})
            self.log("step", float(self.global_step + 1))  # the loggers' axis; their own count is off after a resume
        return total

    def _total(self, terms: dict[str, Tensor]) -> Tensor:
        weights = asdict(self.recipe.weights) | {"masks": MASK_WEIGHT}
        return torch.stack([weights[name] * value for name, value in terms.items()]).sum()

    def loss_terms(self, batch: TrainingSample, output: JointOutput) -> dict[str, Tensor]:
        """Every loss with a weight above 0 that the task uses, unweighted, averaged over directions and rounds."""
        weights, task = self.recipe.weights, self.recipe.task
        collected: dict[str, list[Tensor]] = {}

        def add(name: str, value: Tensor) -> None:
            if getattr(weights, name) > 0 and name not in IDLE_LOSSES[task]:
                collected.setdefault(name, []).append(value)

        fa, fb = output.features_a.float(), output.features_b.float()
        grid = fa.shape[-2:]
        unit = float(max(grid))
        for stage in output.rounds:
            soft_a, soft_b = torch.sigmoid(stage.logits_a.float()), torch.sigmoid(stage.logits_b.float())
            mask_a, mask_b = to_grid(soft_a, grid), to_grid(soft_b, fb.shape[-2:])
            if task == "match-only":
                mask_a, mask_b = torch.ones_like(mask_a), torch.ones_like(mask_b)
            score_a = self._damped(losses.soft_inlier_score(fa, fb, stage.ab.flow))
            score_b = self._damped(losses.soft_inlier_score(fb, fa, stage.ba.flow))
            for affine, near, far, mask in (
                (stage.ab.affine_flow, fa, fb, mask_a),
                (stage.ba.affine_flow, fb, fa, mask_b),
            ):
                if affine is not None:  # the paper's L_match counts the parametric matcher's first stage alone as well
                    score = self._damped(losses.soft_inlier_score(near, far, affine))
                    add("matching", losses.foreground_guided_matching(score, mask))
            for score, other, mask in ((score_a, score_b, mask_a), (score_b, score_a, mask_b)):
                add("matching", losses.foreground_guided_matching(score, mask))
                add("rejection", losses.background_rejection(score, mask))
                add("price", losses.foreground_price(score, other, mask, self.recipe.level))
                add("area", losses.area_prior(mask))
            for logits, found in zip((stage.logits_a, stage.logits_b), stage.foreground, strict=True):
                coarse = to_grid(logits.float(), spatial_size(found.soft))
                add("foreground", losses.mask_supervision(coarse, found.soft))
            sides = (
                (stage.ab.flow, stage.ba.flow, stage.flow_ab, mask_a, mask_b),
                (stage.ba.flow, stage.ab.flow, stage.flow_ba, mask_b, mask_a),
            )
            for flow, back, smooth, mask, other in sides:
                weight = mask.detach()
                add("cycle", losses.cycle_consistency(flow, back, weight, unit))
                add("smoothness", losses.flow_smoothness(flow, weight, unit))
                add("task", losses.task_consistency(mask, other, smooth))
            if task != "match-only":
                for image, soft in ((batch.image_a, soft_a), (batch.image_b, soft_b)):
                    small = F.interpolate(image, size=soft.shape[-2:], mode="area")
                    add("edges", losses.mask_edges(soft, small))
        last = output.rounds[-1]
        if any(getattr(weights, name) > 0 for name in SELF_SUPERVISED - IDLE_LOSSES[task]):
            for name, value in self._self_supervised(batch, output, last).items():
                add(name, value)
        if task != "coseg-only" and weights.transitivity > 0 and batch.image_c is not None:
            add("transitivity", self._transitivity(batch, last))
        if task != "match-only" and weights.contrast > 0:
            add("contrast", self._contrast(batch.image_a, batch.image_b, last))
        return {name: torch.stack(values).mean() for name, values in collected.items()}

    def exact_terms(self, batch: TrainingSample, output: JointOutput) -> dict[str, Tensor]:
        """The losses of supervised training, unweighted: `known_flow`, `equivariance` and `masks` with the exact truth.

        Raises:
            ValueError: the batch has no truth.
        """
        truth = batch.truth
        if truth is None:
            raise ValueError("batch.truth: exact supervision needs samples with truth, got none")
        fa, fb = output.features_a.float(), output.features_b.float()
        grid, grid_b = spatial_size(fa), spatial_size(fb)
        known = to_grid(truth.valid_ab.float(), grid)
        cells = F.adaptive_avg_pool2d(truth.flow_ab, grid) / known.clamp(min=1e-6).unsqueeze(1)
        cells = cells * (grid[1] / truth.flow_ab.shape[-1])
        weight = (known > 0.5).float()
        flows, masks = [], []
        for stage in output.rounds:
            flows.append(losses.known_flow(stage.ab.flow, cells, weight, grid_b))
            for logits, mask in ((stage.logits_a, truth.mask_a), (stage.logits_b, truth.mask_b)):
                masks.append(losses.mask_supervision(logits.float(), to_grid(mask.float(), logits.shape[-2:])))
        return {
            "known_flow": torch.stack(flows).mean(),
            "equivariance": losses.equivariance(fa, fb, cells, self.recipe.equivariance_beta, weight),
            "masks": torch.stack(masks).mean(),
        }

    def _damped(self, score: Tensor) -> Tensor:
        share = self.recipe.score_gradient
        return share * score + (1 - share) * score.detach()

    def _self_supervised(self, batch: TrainingSample, output: JointOutput, stage: Round) -> dict[str, Tensor]:
        """The losses `SELF_SUPERVISED` from one image of each pair, a or b.

        It is warped by a known map, its colours change, and what its mask calls foreground is pasted onto the sample's
        `ground`. Then matching and mask of this new photograph are known. In half of the samples the whole photograph
        is pasted: more positions to match, no mask.
        """
        assert isinstance(batch.number, Tensor)
        # By the number's second and third bit: the first one tells stamps from photographs where both are mixed.
        odd = (batch.number // 2 % 2 == 1)[:, None, None]
        whole = (batch.number // 4 % 2 == 1) | (self.recipe.task == "match-only")
        image = torch.where(odd[:, None], batch.image_b, batch.image_a)
        logits = torch.where(odd, stage.logits_b, stage.logits_a).detach().float()
        size = (image.shape[-2], image.shape[-1])
        mask = (torch.sigmoid(logits) >= 0.5).float()
        if self.recipe.task != "coseg-only":  # which learns from masks only
            mask = torch.where(whole[:, None, None], 1.0, mask)
        seed = self.recipe.seed
        flow = random_flow(batch.number, size, seed=seed, rotation=self.recipe.rotation).to(image.device)
        warped = cosegflow.warp(image, flow, padding="border")
        warped = random_colours(warped, batch.number, seed=seed, strength=self.recipe.jitter)
        full = F.interpolate(mask.unsqueeze(1), size=size, mode="bilinear", align_corners=False)
        cover = cosegflow.warp(full, flow)
        pasted = cover * warped + (1 - cover) * batch.ground
        known = output.encoded  # the photograph was encoded with its pair
        levels = zip((*known.pyramid_a, *known.frozen_a), (*known.pyramid_b, *known.frozen_b), strict=True)
        fine, middle, coarse, detail, last = (torch.where(odd[:, None], b, a) for a, b in levels)
        pair = self.model.encode_beside(pasted, image, (fine, middle, coarse), Frozen(detail, last))
        found = self.model.refine(pair, 0)
        features_warped, features = found.features_a.float(), found.features_b.float()
        grid = spatial_size(features)
        cells = F.interpolate(flow, size=grid, mode="area") * (grid[1] / size[1])
        weight = (to_grid(cover.squeeze(1), grid) > 0.5).float()
        logits = found.rounds[0].logits_a.float()
        shown = torch.ones_like(whole) if self.recipe.task == "coseg-only" else ~whole
        return {
            "equivariance": losses.equivariance(
                features_warped, features, cells, self.recipe.equivariance_beta, weight
            ),
            "known_flow": losses.known_flow(found.rounds[0].ab.flow, cells, weight, grid),
            "pasted": losses.mask_supervision(logits, to_grid(cover.squeeze(1), spatial_size(logits)), shown),
        }

    def _transitivity(self, batch: TrainingSample, stage: Round) -> Tensor:
        """The loss over the six orders of a triplet; the third image is matched with both others."""
        assert batch.image_c is not None
        bc = self.model(batch.image_b, batch.image_c, self._rounds).rounds[-1]
        ca = self.model(batch.image_c, batch.image_a, self._rounds).rounds[-1]
        flows: dict[str, Matching] = {
            "ab": stage.ab,
            "ba": stage.ba,
            "bc": bc.ab,
            "cb": bc.ba,
            "ca": ca.ab,
            "ac": ca.ba,
        }
        logits = {"a": stage.logits_a, "b": stage.logits_b, "c": bc.logits_b}
        values = []
        for x, y, z in ("abc", "bca", "cab", "acb", "cba", "bac"):
            near = flows[x + y].flow
            grid = near.shape[-2:]
            weight = to_grid(torch.sigmoid(logits[x].detach().float()), grid)
            if self.recipe.task == "match-only":
                weight = torch.ones_like(weight)
            values.append(losses.transitivity(near, flows[y + z].flow, flows[z + x].flow, weight, float(max(grid))))
        return torch.stack(values).mean()

    def _contrast(self, image_a: Tensor, image_b: Tensor, stage: Round) -> Tensor:
        size = (self.recipe.contrast_size, self.recipe.contrast_size)
        parts: list[Tensor] = []
        for image, logits in ((image_a, stage.logits_a), (image_b, stage.logits_b)):
            small = F.interpolate(image, size=size, mode="area")
            mask = F.interpolate(logits.float().unsqueeze(1), size=size, mode="bilinear", align_corners=False)
            parts += losses.split_by_mask(small, torch.sigmoid(mask.squeeze(1)))
        object_a, ground_a, object_b, ground_b = self.model.backbone.descriptor(torch.cat(parts)).float().chunk(4)
        return losses.perceptual_contrast(object_a, object_b, ground_a, ground_b)

    def validation_step(self, batch: TrainingSample | Pair, batch_idx: int) -> None:
        """Held-out pairs with exact truth give PCK and IoU, those without it the training loss."""
        self._exact = isinstance(batch, Pair)
        if isinstance(batch, Pair):
            assert batch.flow_ab is not None and batch.valid_ab is not None
            assert batch.mask_a is not None and batch.mask_b is not None
            found = predict(self.model, batch.image_a, batch.image_b)
            self.pck.update(found.flow_ab, batch.flow_ab, batch.valid_ab, box_length(batch.mask_b))
            self.iou.update(found.mask_a, batch.mask_a)
            self.iou.update(found.mask_b, batch.mask_b)
        else:
            terms = self.loss_terms(batch, self.model(batch.image_a, batch.image_b, self._rounds))
            self.mean_loss.update(self._total(terms), len(batch.image_a))

    def on_validation_epoch_end(self) -> None:
        """Logs the score: with truth the mean of PCK@0.1 and IoU (or the one that is trained), else minus the loss."""
        if not self._exact:
            loss = self.mean_loss.compute()
            self.mean_loss.reset()
            self.log_dict({"val/loss": loss, SCORE: -loss, "step": float(self.global_step)})
            return
        pck, iou = self.pck.compute(), self.iou.compute()
        self.pck.reset()
        self.iou.reset()
        wanted = {"joint": [pck, iou], "match-only": [pck], "coseg-only": [iou]}[self.recipe.task]
        score = torch.stack([value.float() for value in wanted]).mean()
        step = float(self.global_step)
        self.log_dict({"val/pck@0.1": pck.float(), "val/iou": iou.float(), SCORE: score, "step": step})
        self.log("score", score, prog_bar=True, logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The frozen backbone is not stored."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("model.backbone.")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts the backbone that is here in place of the one that was not stored."""
        here = {k: v for k, v in self.state_dict().items() if k.startswith("model.backbone.")}
        checkpoint["state_dict"] = {**here, **checkpoint["state_dict"]}


__all__ = ["SCORE", "JointModule", "LossWeights", "Task", "TrainConfig"]
