"""The training module by itself: what its self-supervision shows the model, damped gradients, what checkpoints hold."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the joint extra is not installed")

import cosegflow
from cosegflow.data.pair import Pair
from cosegflow.data.training import TrainingSample
from cosegflow.joint import module as module_file
from cosegflow.joint.callbacks import KeepCheckpoints
from cosegflow.joint.config import IDLE_LOSSES, LossWeights, Task, TrainConfig
from cosegflow.joint.model import ModelConfig
from cosegflow.joint.module import SCORE, JointModule
from cosegflow.joint.self_supervision import random_colours, random_flow

MODEL = ModelConfig(backbone="tiny", image_size=64)
NONE = dict.fromkeys(vars(LossWeights()), 0.0)


def make(task: Task = "joint", seed: int = 0, **weights: float) -> JointModule:
    chosen = LossWeights(**{**NONE, **weights})
    return JointModule(MODEL, TrainConfig(task=task, weights=chosen, contrast_size=32, seed=seed))


def batch(first: int = 0, count: int = 2) -> TrainingSample:
    a, b, ground = torch.rand(3, count, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return TrainingSample(a, b, None, ground, ("x",) * count, 2 * torch.arange(first, first + count))


def pasted(module: JointModule, samples: TrainingSample, logit: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The two photographs of the self-supervision where all mask logits are `logit`: the pasted and the plain one."""
    output = module.model(samples.image_a, samples.image_b, 0)
    stage = output.rounds[-1]._replace(logits_a=torch.full((2, 16, 16), logit), logits_b=torch.full((2, 16, 16), logit))
    seen: list[Any] = []
    encode = module.model.encode_beside
    module.model.encode_beside = lambda *given: seen.append(given) or encode(*given)  # type: ignore[assignment]
    module._self_supervised(samples, output, stage)
    return seen[0][0], seen[0][1]


@torch.no_grad()
def test_self_supervision_pastes_the_warped_foreground_onto_ground():
    samples = batch()
    known = random_flow(samples.number, (64, 64), seed=3, rotation=TrainConfig().rotation)
    chosen = torch.stack((samples.image_a[0], samples.image_b[1]))  # a of samples 0 and 1 in 4, b of 2 and 3
    warped = random_colours(cosegflow.warp(chosen, known, padding="border"), samples.number, seed=3)
    inside = cosegflow.warp(torch.ones(2, 1, 64, 64), known)
    everything = inside * warped + (1 - inside) * samples.ground
    for task, logit, expected in (
        ("joint", 9.0, everything),
        ("joint", -9.0, samples.ground),
        ("match-only", -9.0, everything),  # it has no masks
    ):
        shown, plain = pasted(make(task, seed=3, equivariance=1.0), samples, logit)
        assert torch.equal(plain, chosen)
        torch.testing.assert_close(shown, expected, rtol=0, atol=1e-6, msg=f"{task} {logit}")


@torch.no_grad()
def test_of_every_other_four_samples_the_whole_photograph_is_pasted():
    """Samples 4 to 7 of 8, whatever the mask says; coseg-only, which learns masks only, always pastes by the mask."""
    samples = batch()._replace(number=torch.tensor([4, 6]))
    known = random_flow(samples.number, (64, 64), seed=3, rotation=TrainConfig().rotation)
    chosen = torch.stack((samples.image_a[0], samples.image_b[1]))
    warped = random_colours(cosegflow.warp(chosen, known, padding="border"), samples.number, seed=3)
    inside = cosegflow.warp(torch.ones(2, 1, 64, 64), known)
    for task, expected in (("joint", inside * warped + (1 - inside) * samples.ground), ("coseg-only", samples.ground)):
        module = make(task, seed=3, **{"pasted": 1.0})
        shown, _ = pasted(module, samples, -9.0)
        torch.testing.assert_close(shown, expected, rtol=0, atol=1e-6, msg=task)
    module = make("joint", seed=3, pasted=1.0)
    output = module.model(samples.image_a, samples.image_b, 0)
    assert float(module._self_supervised(samples, output, output.rounds[0])["pasted"]) == 0.0  # its mask is not known


@torch.no_grad()
def test_an_exact_matching_of_the_known_warp_costs_nothing(monkeypatch):
    """`known_flow` compares on the descriptors' grid: a shift of 16 pixels is one of two cells."""
    shift = torch.tensor([16.0, -8.0]).reshape(1, 2, 1, 1).expand(2, 2, 64, 64)
    monkeypatch.setattr(module_file, "random_flow", lambda *_, **__: shift)
    module, samples = make("match-only", known_flow=1.0), batch()
    exact = torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1).expand(2, 2, 8, 8)
    for flow, cost in ((exact, 0.0), (exact + 1, (2 + 0.25) ** 0.5 - 0.5)):
        output = module.model(samples.image_a, samples.image_b, 0)
        free = output.rounds[0].ab._replace(flow=flow), output.rounds[0].ba
        with monkeypatch.context() as patch:
            patch.setattr(module.model, "match", lambda *_, free=free: free)
            terms = module.loss_terms(samples, output)
        assert float(terms["known_flow"]) == pytest.approx(cost, abs=1e-6)


@torch.no_grad()
def test_pasting_teaches_the_mask_of_the_pasted_photograph(monkeypatch: pytest.MonkeyPatch):
    """`pasted` compares with the warped mask of the foreground: all of it here, and nothing where there is none."""
    monkeypatch.setattr(module_file, "random_flow", lambda *_, **__: torch.zeros(2, 2, 64, 64))  # stays in the image
    module, samples = make(pasted=1.0), batch()
    output = module.model(samples.image_a, samples.image_b, 0)
    for seen in (9.0, -9.0):
        logits = torch.full((2, 16, 16), seen)
        stage = output.rounds[-1]._replace(logits_a=logits, logits_b=logits)
        for said in (9.0, -9.0):
            guess = output._replace(rounds=(output.rounds[0]._replace(logits_a=torch.full((2, 16, 16), said)),))
            with monkeypatch.context() as patch:
                patch.setattr(module.model, "refine", lambda *_, guess=guess: guess)
                value = float(module._self_supervised(samples, output, stage)["pasted"])
            assert value == pytest.approx(0.0 if seen == said else 9.0, abs=1e-3)


@torch.no_grad()
def test_what_a_task_does_not_know_changes_none_of_its_losses():
    """coseg-only: the flow of the matching; match-only: the masks."""
    samples = batch()
    for task in ("joint", "coseg-only", "match-only"):
        weights = LossWeights(**dict.fromkeys(NONE, 1.0))
        module = JointModule(MODEL, TrainConfig(task=task, weights=weights, contrast_size=32))  # type: ignore[arg-type]
        output = module.model(samples.image_a, samples.image_b, 0)
        stage = output.rounds[0]
        ab, ba = (m._replace(flow=m.flow + 1.0, confidence=1 - m.confidence) for m in (stage.ab, stage.ba))
        smooth = {"flow_ab": stage.flow_ab + 1.0, "flow_ba": stage.flow_ba + 1.0}
        plain, moved, masked = (
            module.loss_terms(samples, output._replace(rounds=(s,)))
            for s in (
                stage,
                stage._replace(ab=ab, ba=ba, **smooth),
                stage._replace(logits_a=-stage.logits_a, logits_b=-stage.logits_b),
            )
        )
        wanted = set(NONE) - IDLE_LOSSES[task] - {"transitivity"}  # there is no third photograph
        assert set(plain) == set(moved) == set(masked) == wanted
        assert (plain == moved) == (task == "coseg-only")
        assert (plain == masked) == (task == "match-only")


def test_descriptors_get_a_tenth_of_the_score_gradient():
    """And the mask all of its own: its gradient does not depend on the share."""

    def gradients(share: float) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = make(matching=1.0)
        module.recipe = replace(module.recipe, score_gradient=share, rounds=0)
        score = torch.full((1, 2, 2), 0.7, requires_grad=True)
        mask = torch.full((1, 2, 2), 0.5, requires_grad=True)
        module_file.losses.foreground_guided_matching(module._damped(score), mask).backward()
        assert score.grad is not None and mask.grad is not None
        return {"score": score.grad, "mask": mask.grad}

    whole, tenth = gradients(1.0), gradients(0.1)
    torch.testing.assert_close(tenth["score"], 0.1 * whole["score"])
    torch.testing.assert_close(tenth["mask"], whole["mask"])
    assert float(whole["score"].abs().min()) > 0


def test_weights_of_averages_get_no_gradient():
    """Else a mask would learn to leave out what is badly matched; of `cycle` and `smoothness` the flow learns."""
    module, samples = make(cycle=1.0, smoothness=1.0), batch()
    output = module.model(samples.image_a, samples.image_b, 0)
    sum(module.loss_terms(samples, output).values()).backward()  # type: ignore[union-attr]
    grads = {name: p.grad for name, p in module.model.named_parameters() if p.grad is not None}
    assert any(name.startswith("adapter") for name in grads)
    assert not any(name.startswith("decoder") for name in grads)


@torch.no_grad()
def test_transitivity_walks_round_the_triplet(monkeypatch):
    """Translations that add up to 0 along a, b, c cost nothing, in any order; a longer one its square."""
    steps = {"ab": (1.0, 0.0), "bc": (0.0, 1.0), "ca": (-1.0, -1.0)}

    def matching(name: str, extra: float = 0.0) -> SimpleNamespace:
        turned = name[::-1]
        x, y = steps[name] if name in steps else [-v for v in steps[turned]]
        return SimpleNamespace(flow=torch.tensor([x + extra, y]).reshape(1, 2, 1, 1).expand(2, 2, 8, 8))

    for extra in (0.0, 0.8):
        module, samples = make("match-only", transitivity=1.0), batch()
        samples = samples._replace(image_c=samples.ground)
        images = {samples.image_a.data_ptr(): "a", samples.image_b.data_ptr(): "b", samples.ground.data_ptr(): "c"}
        logits = torch.zeros(2, 16, 16)

        def model(x: torch.Tensor, y: torch.Tensor, rounds: int, images=images, logits=logits) -> SimpleNamespace:
            a, b = images[x.data_ptr()], images[y.data_ptr()]
            stage = SimpleNamespace(ab=matching(a + b), ba=matching(b + a), logits_a=logits, logits_b=logits)
            return SimpleNamespace(rounds=[stage])

        stage = SimpleNamespace(ab=matching("ab", extra), ba=matching("ba"), logits_a=logits, logits_b=logits)
        monkeypatch.setattr(module.model, "forward", model)
        value = float(module._transitivity(samples, stage))  # type: ignore[arg-type]
        assert value == pytest.approx((extra / 8) ** 2 / 2, abs=1e-6), "three of the six orders go from a to b"


def test_checkpoints_hold_no_backbone():
    module = make(matching=1.0)
    stored: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(stored)
    names = {name.split(".")[1] for name in stored["state_dict"] if name.startswith("model.")}
    assert names == {"tail", "adapter", "decoder"}
    module.on_load_checkpoint(stored)
    module.load_state_dict(stored["state_dict"])


def test_a_score_that_is_not_finite_is_never_the_best(tmp_path):
    saved: list[object] = []
    trainer: Any = SimpleNamespace(
        callback_metrics={SCORE: torch.tensor(torch.nan)}, global_step=1, lightning_module=make(matching=1.0),
        save_checkpoint=saved.append,
    )  # fmt: skip
    keep = KeepCheckpoints(tmp_path, 1, {})
    keep.on_validation_end(trainer, None)
    assert saved == [] and keep.best_score is None
    trainer.callback_metrics[SCORE] = torch.tensor(0.5)
    keep.on_validation_end(trainer, None)
    assert len(saved) == 1 and keep.best_score == 0.5


@pytest.mark.parametrize(("task", "score"), [("joint", 0.5), ("match-only", 0.2), ("coseg-only", 0.8)])
def test_score_of_validation(task: Task, score: float, monkeypatch):
    """With truth what the task trains, of this validation alone; without it minus the loss of each sample."""
    module = make(task, matching=1.0, area=1.0)
    logged: dict[str, float] = {}
    monkeypatch.setattr(module, "log_dict", lambda values: logged.update(values))
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    for shift in (9.0, 0.0):  # what the first leaves behind must not count in the second
        module._exact = True
        flow = torch.zeros(1, 2, 2, 5)
        found = flow.clone()
        found[:, :, 0, :] = found[:, :, 1, :3] = 9.0  # two of ten within a tenth of the box
        module.pck.update(found + shift, flow, torch.ones(1, 2, 5, dtype=torch.bool), torch.tensor([10.0]))
        mask = torch.ones(1, 1, 5, dtype=torch.bool)
        module.iou.update(torch.tensor([[[1.0, 1, 1, 1, 0]]]) * (shift == 0), mask)
        module.on_validation_epoch_end()
    assert float(logged[SCORE]) == pytest.approx(score)
    module._exact = False
    for _ in range(2):
        logged.clear()
        for loss, count in ((1.0, 3), (5.0, 1)):
            module.mean_loss.update(torch.tensor(loss), count)
        module.on_validation_epoch_end()
        assert float(logged[SCORE]) == -float(logged["val/loss"]) == -2.0
        module.mean_loss.update(torch.tensor(100.0), 1)
        module.on_validation_epoch_end()


def test_rates_by_part_and_over_the_steps():
    """Decoder, adapter with the parametric matcher, tail; a warm-up of at most a tenth of all steps, then a cosine."""
    rates = {"learning_rate": 0.4, "adapter_learning_rate": 0.2, "tail_learning_rate": 0.1}
    recipe = TrainConfig(steps=40, warmup=10, **rates)
    module = JointModule(replace(MODEL, matcher="parametric"), recipe)
    made = module.configure_optimizers()
    optimiser, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    groups = [{id(p) for p in group["params"]} for group in optimiser.param_groups]
    parts = [("decoder",), ("adapter", "matcher"), ("tail",)]
    for names, group in zip(parts, groups, strict=True):
        assert group == {id(p) for name in names for p in getattr(module.model, name).parameters()}
    factors = [schedule.lr_lambdas[0](step) for step in range(41)]
    assert factors[0] == 0.25 and factors[4] == pytest.approx(0.9755, abs=1e-4), "warm after 4 of 40 steps"
    assert factors[20] == pytest.approx(0.5) and factors[40] == pytest.approx(0.0)
    assert [group["lr"] for group in optimiser.param_groups] == [rate * 0.25 for rate in rates.values()]


def test_a_task_trains_its_own_parts():
    trained = {
        task: {
            name.split(".")[0]
            for name, p in make(task, matching=1.0, area=1.0).model.named_parameters()
            if p.requires_grad
        }
        for task in ("joint", "match-only", "coseg-only")
    }
    assert trained["joint"] == {"tail", "adapter", "decoder"}
    assert trained["match-only"] == {"tail", "adapter"} and trained["coseg-only"] == {"decoder"}


@torch.no_grad()
def test_contrast_compares_objects_with_objects_and_with_their_own_ground(monkeypatch):
    """F is here the mean colour; the masks are everything in a and nothing in b."""
    module = make(contrast=1.0)
    monkeypatch.setattr(module.model.backbone, "descriptor", lambda images: images.mean((2, 3)))
    levels = torch.tensor([0.9, 0.3])
    image_a, image_b = (torch.full((1, 3, 64, 64), float(level)) for level in levels)
    stage: Any = SimpleNamespace(logits_a=torch.full((1, 16, 16), 50.0), logits_b=torch.full((1, 16, 16), -50.0))
    alike = (0.9 - 0.5) ** 2  # object of a: 0.9; that of b: grey
    apart = ((0.9 - 0.5) ** 2 + (0.5 - 0.3) ** 2) / 2
    assert float(module._contrast(image_a, image_b, stage)) == pytest.approx(alike + 2 - apart, abs=1e-5)


@torch.no_grad()
def test_validation_counts_the_masks_of_both_photographs(monkeypatch):
    whole = torch.ones(1, 64, 64)
    found = SimpleNamespace(flow_ab=torch.zeros(1, 2, 64, 64), mask_a=whole, mask_b=0 * whole)
    monkeypatch.setattr(module_file, "predict", lambda *_: found)
    module, images, truth = make(matching=1.0), torch.zeros(1, 3, 64, 64), whole > 0
    pair = Pair(images, images, "x", truth, truth, torch.zeros(1, 2, 64, 64), truth)
    module.validation_step(pair, 0)
    assert float(module.pck.compute()) == 1 and float(module.iou.compute()) == 0.5
