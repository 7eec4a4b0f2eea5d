"""The joint model: gates, refinement, grids, configurations, checkpoints, and one short real training."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the joint extra is not installed")

from dataclasses import replace

import lightning
from torch.utils.data import DataLoader

from cosegflow.data.pair import Pair
from cosegflow.data.training import TrainingSample, TrainingSamples, Truth, collate_training
from cosegflow.demo import ComposedSource
from cosegflow.joint.backbones import TinyBackbone
from cosegflow.joint.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from cosegflow.joint.matcher import gate_mask, match_gated
from cosegflow.joint.model import JointModel, ModelConfig
from cosegflow.joint.module import JointModule, LossWeights, TrainConfig
from cosegflow.joint.predict import model_size, predict, predict_nearest

TINY = ModelConfig(backbone="tiny", image_size=64)


pytestmark = pytest.mark.usefixtures("one_thread")


def blobs(count: int = 4, size: int = 64) -> list[TrainingSample]:
    """Triplets that show one textured square each, at different places over plain grounds."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for number in range(count):
        texture = torch.rand(3, 24, 24, generator=generator)
        images = []
        for _ in range(3):
            image = torch.rand(3, 1, 1, generator=generator).expand(3, size, size).clone()
            y, x = torch.randint(0, size - 24, (2,), generator=generator).tolist()
            image[:, y : y + 24, x : x + 24] = texture
            images.append(image)
        ground = torch.rand(3, size, size, generator=generator)
        samples.append(TrainingSample(*images, ground, "square", number))
    return samples


def test_gate_thresholds_and_fallback():
    mask = torch.tensor([[[0.5, 0.49, 0.05, 0.049]], [[0.4, 0.3, 0.2, 0.0]]])
    gate = gate_mask(mask)
    assert gate.source[0].tolist() == [[True, False, False, False]]
    torch.testing.assert_close(gate.target[0], torch.tensor([[0.5, 0.49, 0.05, 0.0]]))
    assert bool(gate.source[1].all()) and bool((gate.target[1] == 1).all())  # would be empty: no gate
    assert gate_mask(mask, 0.3, 0.25).source[1].tolist() == [[True, True, False, False]]


def test_gated_matching_excludes_exactly_and_falls_back():
    features = torch.nn.functional.normalize(torch.randn(1, 8, 4, 4), dim=1)
    mask = torch.zeros(1, 4, 4)
    mask[0, 1:3, 1:3] = 0.9
    mask.requires_grad_()
    gate = gate_mask(mask)
    free = match_gated(features, features, None, None, 20.0)
    found = match_gated(features, features, gate, gate, 20.0, free)
    outside = ~gate.source[0]
    assert torch.equal(found.flow[0][:, outside], free.flow[0][:, outside])
    at = found.flow[0][:, gate.source[0]] + torch.tensor([[1.0, 2.0, 1.0, 2.0], [1.0, 1.0, 2.0, 2.0]])
    assert float(at.detach().min()) >= 1 - 1e-5 and float(at.detach().max()) <= 2 + 1e-5
    found.flow[0][:, gate.source[0]].square().sum().backward()
    assert mask.grad is not None and bool(torch.isfinite(mask.grad).all())


def test_forward_of_different_sizes():
    model = JointModel(TINY)
    output = model(torch.rand(2, 3, 48, 64), torch.rand(2, 3, 64, 32), rounds=2)
    assert len(output.rounds) == 3
    last = output.rounds[-1]
    assert last.ab.flow.shape == (2, 2, 6, 8) and last.ba.flow.shape == (2, 2, 8, 4)
    assert last.logits_a.shape == (2, 12, 16) and last.logits_b.shape == (2, 16, 8)
    assert output.rounds[0].gate_a is None and last.gate_a is not None


@pytest.mark.parametrize("task", ["joint", "match-only", "coseg-only"])
def test_tasks_train_their_parts(task):
    module = JointModule(TINY, TrainConfig(task=task, contrast_size=32))
    module.training_step(collate_training(blobs(2)), 0).backward()
    adapted = [p.grad for p in module.model.adapter.up.parameters()]
    decoded = [p.grad for p in module.model.decoder.head.parameters()]
    assert all((g is not None and bool(torch.isfinite(g).all())) == (task != "coseg-only") for g in adapted)
    assert all((g is not None and bool(torch.isfinite(g).all())) == (task != "match-only") for g in decoded)
    with pytest.raises(ValueError, match="task"):
        TrainConfig(task="both")  # type: ignore[arg-type]


def test_each_loss_alone_is_a_configuration():
    none = dict.fromkeys(LossWeights.__dataclass_fields__, 0.0)
    for name in none:
        module = JointModule(TINY, TrainConfig(weights=LossWeights(**{**none, name: 1.0}), contrast_size=32))
        batch = collate_training(blobs(2))
        terms = module.loss_terms(batch, module.model(batch.image_a, batch.image_b))
        assert list(terms) == [name]
        assert bool(torch.isfinite(terms[name]))


def lies(count: int, size: int = 64) -> Truth:
    """A batch of truth that is none."""
    masks = [torch.rand(count, size, size) > 0.5 for _ in range(2)]
    flow = torch.full((count, 2, size, size), torch.nan)
    return Truth(*masks, flow, torch.ones(count, size, size, dtype=torch.bool))


def test_training_never_reads_annotation():
    """Samples are made without truth, also of pairs that carry it; what a sample may carry changes nothing unasked."""
    fields = ("image_a", "image_b", "image_c", "ground", "category", "number", "truth")
    assert TrainingSample._fields == fields, "a new field: may training read it?"
    pairs = [Pair(s.image_a, s.image_b, "square") for s in blobs(2)]
    false = lies(2)
    told = [
        pair._replace(mask_a=false.mask_a[i], mask_b=false.mask_b[i], flow_ab=false.flow_ab[i], valid_ab=valid)
        for i, (pair, valid) in enumerate(zip(pairs, false.valid_ab, strict=True))
    ]
    batches = []
    for used in (pairs, told):
        samples = TrainingSamples(ComposedSource(used), seed=0)
        batches.append(collate_training([samples[0], samples[1]]))
        assert batches[-1].truth is None
    batches.append(batches[0]._replace(truth=false))
    values = []
    for batch in batches:
        torch.manual_seed(0)
        module = JointModule(TINY, TrainConfig(contrast_size=32))
        assert module.recipe.supervision == "none"
        values.append(float(module.training_step(batch, 0).detach()))
    assert values[0] == values[1] == values[2]


def test_training_gates_the_matching():
    """A real short training: the loss falls, and masks close a part of the image to the matching."""
    torch.manual_seed(0)
    weights = LossWeights(contrast=0.0)
    module = JointModule(TINY, TrainConfig(weights=weights, steps=30, warmup=2, learning_rate=5e-3))
    samples = blobs(4) * 30
    seen: list[tuple[float, float]] = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            seen.append((float(trainer.callback_metrics["loss"]), float(trainer.callback_metrics["foreground"])))

    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Watch()],
    )  # fmt: skip
    trainer.fit(module, DataLoader(samples, batch_size=4, collate_fn=collate_training))
    assert len(seen) == 30
    first, last = (sum(v[0] for v in part) / 5 for part in (seen[:5], seen[-5:]))
    assert last < first
    assert 0 < seen[-1][1] < 0.9, "the matching runs on a part of the image only"


@pytest.mark.parametrize("predictor", [predict, predict_nearest])
def test_predictions_have_the_photographs_sizes(predictor):
    model = JointModel(TINY).eval()
    found = predictor(model, torch.rand(1, 3, 37, 91), torch.rand(1, 3, 120, 50))
    assert found.flow_ab.shape == (1, 2, 37, 91) and found.flow_ab.dtype == torch.float32
    assert found.mask_a.shape == (1, 37, 91) and found.mask_b.shape == (1, 120, 50)
    assert found.confidence.shape == (1, 37, 91)
    for values in (found.mask_a, found.mask_b, found.confidence):
        assert float(values.min()) >= 0 and float(values.max()) <= 1


def test_a_photograph_matches_itself():
    model = JointModel(TINY).eval()
    image = torch.rand(1, 3, 64, 64)
    found = predict_nearest(model, image, image)
    assert float(found.flow_ab.abs().max()) < 1e-3


def test_model_size():
    assert model_size((240, 240), 240) == (240, 240)
    for size in ((17, 3000), (3000, 17), (480, 640), (16, 16)):
        height, width = model_size(size, 240)
        assert height % 16 == 0 and width % 16 == 0 and 0.7 < height * width / 240**2 < 1.4


def test_checkpoint_round_trip_and_errors(tmp_path: Path):
    model = JointModel(replace(TINY, beta=30.0)).eval()
    with torch.no_grad():
        model.adapter.up.weight.normal_(0, 0.1)
    path = tmp_path / "model.ckpt"
    save_checkpoint(model, path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.ckpt"]
    loaded = load_checkpoint(path)
    assert loaded.config.beta == 30.0 and not loaded.training
    a, b = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    assert torch.equal(predict(model, a, b).flow_ab, predict(loaded, a, b).flow_ab)
    assert not any(k.startswith("backbone") for k in torch.load(path, weights_only=True)["state"])
    (tmp_path / "text").write_text("hello")
    torch.save({"format": "other"}, tmp_path / "other.ckpt")
    content = torch.load(path, weights_only=True)
    content["state"].popitem()
    torch.save(content, tmp_path / "lacks.ckpt")
    for name, message in (
        ("nothing", "no such file"),
        ("text", "cannot be read"),
        ("other.ckpt", "not a checkpoint of cosegflow"),
        ("lacks.ckpt", "does not fit"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            load_checkpoint(tmp_path / name, "--checkpoint")
        assert "\n" not in str(caught.value) and str(caught.value).startswith("--checkpoint")


def test_tiny_backbone_does_not_touch_the_generator():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    TinyBackbone()
    assert torch.equal(torch.rand(1), expected)
