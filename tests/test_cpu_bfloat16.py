"""bfloat16 scores on the CPU: raw features, multiplied exactly, the norms applied to the products."""

import pytest
import torch

import cosegflow
from cosegflow import reference

INF = float("inf")
SHAPE = (2, 37, 9, 11)  # an odd number of channels: the last pair has one


def features(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).bfloat16()


def volume(fa: torch.Tensor, fb: torch.Tensor, normalize: bool) -> torch.Tensor:
    """The scores in float32: match's score at each single target is not rounded to bfloat16, as correlation's is."""
    targets = []
    for y in range(fb.shape[2]):
        for x in range(fb.shape[3]):
            mask = torch.zeros(fb.shape[0], *fb.shape[2:])
            mask[:, y, x] = 1
            targets.append(cosegflow.match(fa, fb, None, mask, normalize=normalize, return_index=True).score)
    return torch.stack(targets, -1).unflatten(-1, fb.shape[2:])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("size", [1.0, 1e-36, 1e-20, 1e15])
def test_scores_of_any_magnitude(size, normalize):
    fa, fb = features(0), features(1)
    scale = torch.logspace(-2, 2, SHAPE[2] * SHAPE[3]).reshape(SHAPE[2:])
    fa = (fa.float() * scale * size).bfloat16()
    fb = (fb.float() * scale.flip(0) * (1 if normalize else 1 / size)).bfloat16()
    got = volume(fa, fb, normalize).double()
    exact = reference.correlation(fa.double(), fb.double(), normalize)
    length = fa.double().norm(dim=1)[..., None, None] * fb.double().norm(dim=1)[:, None, None]
    error = ((got - exact).abs() / (exact.abs() * 0 + 1 if normalize else length)).max().item()
    assert error <= 1e-6, error


def test_whole_numbers_are_exact():
    fa = torch.randint(-8, 9, SHAPE).bfloat16()
    fb = torch.randint(-8, 9, SHAPE).bfloat16()
    assert torch.equal(volume(fa, fb, False).double(), reference.correlation(fa.double(), fb.double()))


@pytest.mark.parametrize("bad", [INF, -INF, float("nan")])
def test_what_is_not_finite_stays_where_it_is(bad):
    fa, fb = features(0), features(1)
    fa[0, 5, 2, 3] = bad
    flow = cosegflow.match(fa, fb).flow
    assert torch.isnan(flow[0, :, 2, 3]).all()
    fa[0, :, 2, 3] = 1
    flow[0, :, 2, 3] = cosegflow.match(fa, fb).flow[0, :, 2, 3]
    assert torch.equal(flow, cosegflow.match(fa, fb).flow)


def test_zero_features_match_everything_alike():
    fa, fb = torch.zeros(SHAPE).bfloat16(), features(1)
    lse = cosegflow.match(fa, fb).lse
    assert (lse - torch.log(torch.tensor(99.0))).abs().max().item() <= 1e-6
