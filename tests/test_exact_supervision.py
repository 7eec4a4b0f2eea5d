"""Supervised training on composed samples: the truth is exact, and only there where it is asked for."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the joint extra is not installed")

from PIL import Image

import cosegflow
from cosegflow.data import DatasetError, TrainingSample, TrainingSamples, collate_training, open_training_source
from cosegflow.data.training import Truth
from cosegflow.joint.config import TrainConfig
from cosegflow.joint.model import ModelConfig, to_grid
from cosegflow.joint.module import JointModule

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = ModelConfig(backbone="tiny", image_size=64)
EXACT = TrainConfig(supervision="exact", contrast_size=32)


def stamps(size: int = 64, **options: bool) -> TrainingSamples:
    return TrainingSamples(open_training_source("stamps", "none"), seed=2, size=size, **options)


def known(sample: TrainingSample) -> Truth:
    assert sample.truth is not None
    return sample.truth


def test_the_truth_of_a_composed_sample_is_exact():
    """b warped by the flow is a on the object, up to the colours that each photograph has of its own."""
    samples = stamps(96, truth=True)
    errors, shifted = [], []
    for number in range(6):
        sample = samples[number]
        truth = known(sample)
        assert truth.flow_ab.shape == (2, 96, 96) and truth.flow_ab.dtype == torch.float32
        assert all(x.shape == (96, 96) and x.dtype == torch.bool for x in (truth.mask_a, truth.mask_b, truth.valid_ab))
        valid = truth.valid_ab
        assert int(valid.sum()) > 100 and not bool((valid & ~truth.mask_a).any())
        assert float(truth.flow_ab[:, ~valid].abs().max()) == 0
        flow = truth.flow_ab[None]
        mask = cosegflow.warp(truth.mask_b.float()[None, None], flow)[0, 0]
        assert float(mask[valid].mean()) > 0.97, "the match lies on the object"

        def error(flow: torch.Tensor, sample: TrainingSample = sample, valid: torch.Tensor = valid) -> float:
            """Of the object, each channel of both photographs standardised over it."""
            sides = [x[:, valid] for x in (sample.image_a, cosegflow.warp(sample.image_b[None], flow)[0])]
            a, b = ((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True).clamp(min=0.02) for x in sides)
            return float((a - b).abs().mean())

        errors.append(error(flow))
        shifted.append(min(error(flow + torch.tensor([x, y])[:, None, None]) for x, y in ((4.0, 0), (0, 4.0))))
    assert all(e < 0.5 * s for e, s in zip(errors, shifted, strict=True)), (errors, shifted)


def test_truth_changes_nothing_else_and_comes_only_when_asked_for():
    told, plain = stamps(truth=True), stamps()
    for number in (0, 17):
        with_truth, without = told[number], plain[number]
        assert without.truth is None and with_truth.truth is not None
        for name in ("image_a", "image_b", "ground"):
            assert torch.equal(getattr(with_truth, name), getattr(without, name))
        again = known(told[number])
        assert all(torch.equal(x, y) for x, y in zip(again, known(with_truth), strict=True))
    triplet = stamps(truth=True, triplets=True)[3]
    assert triplet.image_c is not None and known(triplet).flow_ab.shape == (2, 64, 64)


def test_truth_collates():
    told, plain = stamps(truth=True), stamps()
    batch = collate_training([told[0], told[1], told[2]])
    truth = known(batch)
    assert truth.mask_a.shape == truth.mask_b.shape == truth.valid_ab.shape == (3, 64, 64)
    assert truth.flow_ab.shape == (3, 2, 64, 64) and truth.valid_ab.dtype == torch.bool
    assert torch.equal(truth.flow_ab[1], known(told[1]).flow_ab)
    assert collate_training([told[0], plain[1]]).truth is None


def test_photographs_have_no_truth(tmp_path: Path):
    (tmp_path / "cat").mkdir()
    for i in range(2):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(tmp_path / f"cat/{i}.png")
    samples = TrainingSamples(open_training_source("folder", tmp_path), seed=0, size=16, truth=True)
    with pytest.raises(DatasetError, match="folder: has no exact flow and masks") as caught:
        samples[0]
    assert "\n" not in str(caught.value)


def test_exact_losses_teach_flow_and_masks():
    module = JointModule(MODEL, EXACT)
    samples = stamps(truth=True)
    batch = collate_training([samples[0], samples[1]])
    terms = module.exact_terms(batch, module.model(batch.image_a, batch.image_b, 1))
    assert set(terms) == {"known_flow", "equivariance", "masks"}
    assert all(value.shape == () and 0 < float(value.detach()) < math.inf for value in terms.values())
    trained = {name: p for name, p in module.model.named_parameters() if p.requires_grad}
    for term, part in (("known_flow", "adapter"), ("equivariance", "adapter"), ("masks", "decoder")):
        grads = torch.autograd.grad(terms[term], list(trained.values()), retain_graph=True, allow_unused=True)
        found = {name: g for name, g in zip(trained, grads, strict=True) if g is not None}
        assert all(bool(torch.isfinite(g).all()) for g in found.values())
        assert any(name.startswith(part) and float(g.abs().max()) > 0 for name, g in found.items()), term
    total = module.training_step(batch, 0)
    weights = module.recipe.weights
    first = module.exact_terms(batch, module.model(batch.image_a, batch.image_b, module.recipe.rounds))
    expected = weights.known_flow * first["known_flow"] + weights.equivariance * first["equivariance"]
    assert float(total.detach()) > float(expected.detach()), "and the masks"


def test_exact_losses_know_the_units():
    """A shift of 16 pixels is one of two cells, also where the truth ends within a cell; masks of every size."""
    module = JointModule(MODEL, EXACT)
    flow = torch.tensor([16.0, -8.0]).reshape(1, 2, 1, 1).expand(1, 2, 64, 64)
    valid = torch.zeros(1, 64, 64, dtype=torch.bool)
    valid[:, 10:51, 5:44] = True
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 8:56, 4:44] = True
    image = torch.rand(1, 3, 64, 64)
    batch = TrainingSample(image, image, None, image, ("x",), torch.tensor([0]))
    masks = mask, mask.flip(2)
    batch = batch._replace(truth=Truth(*masks, flow * valid[:, None], valid))
    output = module.model(image, image, 0)
    cells = torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1).expand(1, 2, 8, 8)
    logits_a, logits_b = (30 * (2 * to_grid(m.float(), (16, 16)) - 1) for m in masks)
    for wrong, cost in ((0.0, 0.0), (1.0, (2 + 0.25) ** 0.5 - 0.5)):
        stage = output.rounds[0]
        stage = stage._replace(ab=stage.ab._replace(flow=cells + wrong), logits_a=logits_a, logits_b=logits_b)
        terms = module.exact_terms(batch, output._replace(rounds=(stage,)))
        assert float(terms["known_flow"].detach()) == pytest.approx(cost, abs=1e-5)
        assert float(terms["masks"].detach()) <= 1e-6


def test_exact_losses_do_not_depend_on_how_samples_are_batched():
    module = JointModule(MODEL, EXACT)
    samples = stamps(truth=True)

    @torch.no_grad()
    def terms(numbers: range) -> dict[str, torch.Tensor]:
        batch = collate_training([samples[n] for n in numbers])
        return module.exact_terms(batch, module.model(batch.image_a, batch.image_b, 1))

    whole, first, second = terms(range(4)), terms(range(2)), terms(range(2, 4))
    for name, value in whole.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, value, rtol=2e-5, atol=1e-6, msg=name)


def test_exact_supervision_needs_truth_and_uses_it():
    samples, module = stamps(truth=True), JointModule(MODEL, EXACT)
    batch = collate_training([samples[0], samples[1]])
    with pytest.raises(ValueError, match=r"batch.truth: exact supervision needs samples with truth") as caught:
        module.training_step(batch._replace(truth=None), 0)
    assert "\n" not in str(caught.value)
    truth = known(batch)
    lie = truth._replace(mask_a=~truth.mask_a, flow_ab=truth.flow_ab + 5 * truth.valid_ab[:, None])
    values = [float(module.training_step(b, 0).detach()) for b in (batch, batch._replace(truth=lie))]
    assert values[0] != values[1]
    unsupervised = JointModule(MODEL, replace(EXACT, supervision="none"))
    plain = [
        float(unsupervised.training_step(b, 0).detach())
        for b in (batch, batch._replace(truth=lie), batch._replace(truth=None))
    ]
    assert plain[0] == plain[1] == plain[2]
