"""How results are compared. A NaN fails every comparison that does not expect it."""

import torch
from torch import Tensor

EPS = {torch.float64: 2.3e-16, torch.float32: 1.2e-7, torch.float16: 9.8e-4, torch.bfloat16: 7.9e-3}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Same shape, the same NaNs and infinities, and max |actual - expected| <= tolerance * max(1, max |expected|)."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    a, e = actual.detach().double(), expected.detach().double()
    same = ~torch.isfinite(e)
    assert torch.equal(torch.isnan(a), torch.isnan(e)), f"{what}: NaN where none is expected, or the reverse"
    assert torch.equal(a[same].nan_to_num(7.0), e[same].nan_to_num(7.0)), f"{what}: the infinities differ"
    if bool(same.all()):
        return
    error = (a - e)[~same].abs().max().item()
    limit = tolerance * max(1.0, e[~same].abs().max().item())
    assert error <= limit, f"{what}: error {error:.3g} > {limit:.3g}"


def assert_no_worse(actual: Tensor, plain: Tensor, exact: Tensor, slack: float, what: str = "") -> None:
    """The rule for low precision: the error against float64 is at most twice that of plain torch, plus `slack`."""
    finite = torch.isfinite(exact)
    assert torch.equal(torch.isfinite(actual), finite), f"{what}: not finite where the exact result is, or the reverse"
    if not bool(finite.any()):
        return
    ours = (actual.detach().double() - exact)[finite].abs().max().item()
    theirs = (plain.detach().double() - exact)[finite].abs().max().item()
    limit = 2 * theirs + slack * max(1.0, exact[finite].abs().max().item())
    assert ours <= limit, f"{what}: error {ours:.3g}, plain torch {theirs:.3g}, limit {limit:.3g}"
