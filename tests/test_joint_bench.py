"""The benchmark of the training step: both sides compute the same, and its files and errors."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("lightning", reason="the joint extra is not installed")
pytest.importorskip("rich", reason="the bench extra is not installed")

from cosegflow.benchmarks import joint, plain, rows
from cosegflow.benchmarks.command import BenchError

import cosegflow

pytestmark = pytest.mark.usefixtures("one_thread")


def test_plain_torch_computes_what_ours_does():
    fa, fb = (F.normalize(torch.randn(2, 8, *size), dim=1).requires_grad_() for size in ((5, 6), (4, 7)))
    mask_a, mask_b = torch.rand(2, 5, 6), torch.rand(2, 4, 7)
    masks = [torch.where(m > 0.3, m, 0.0).requires_grad_() for m in (mask_a, mask_b)]
    flow_ab, flow_ba = (torch.randn(2, 2, *size).requires_grad_() for size in ((5, 6), (4, 7)))
    image = torch.rand(2, 3, 4, 7, requires_grad=True)

    def everything():
        one = cosegflow.match(fa, fb, masks[0] > 0.5, masks[1], beta=20.0)
        free, gated = cosegflow.match_both(fa, fb, beta=20.0), cosegflow.match_both(fa, fb, *masks, beta=20.0)
        lse = [torch.where(torch.isfinite(m.lse), m.lse, 0.0) for m in (one, *free, *gated)]
        warped, valid = cosegflow.warp(image, flow_ab, return_valid=True)
        border = cosegflow.warp(image, flow_ab, padding="border")
        error = cosegflow.cycle_error(flow_ab, flow_ba)
        volume = cosegflow.correlation(fa, fb, normalize=True, relu=True)
        values = [*(m.flow for m in (one, *free, *gated)), *lse, warped, border, error.error, volume]
        return values, [valid, error.valid, one.confidence, gated[0].confidence, gated[1].lse]

    def derivatives(values):
        generator = torch.Generator().manual_seed(0)
        cotangents = [torch.randn(v.shape, generator=generator) for v in values]
        return torch.autograd.grad(values, (fa, fb, *masks, flow_ab, flow_ba, image), cotangents)

    ours, plainly = everything(), None
    with plain.instead_of_ours():
        plainly = everything()
    assert cosegflow.match is not plain.match
    for mine, theirs in zip((*ours[0], *ours[1]), (*plainly[0], *plainly[1]), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    for mine, theirs in zip(derivatives(ours[0]), derivatives(plainly[0]), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=2e-3)


def test_it_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "sub" / "joint.csv"
    arguments = [
        "--quick",
        "--size",
        "64",
        "--batch",
        "1",
        "--repeats",
        "1",
        "--stride",
        "8",
        "--no-memory",
        "--device",
        "cpu",
    ]
    assert joint.main([*arguments, "--csv", str(path)]) == 0
    found = rows.read(path)
    assert [row["peer"] for row in found] == ["cosegflow", "eager"]
    assert all(row["work"] == "joint_step" and row["median_ms"] > 0 and row["date"] for row in found)
    assert found[0]["error_rel"] < 0.05
    assert "times as long" in capsys.readouterr().out
    assert [p.name for p in path.parent.iterdir()] == ["joint.csv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--size", "100"], "--size: need a multiple of 16, got 100"), (["--repeats", "0"], "--repeats: need at least 1")],
)
def test_options_that_cannot_be_used(arguments: list[str], message: str):
    with pytest.raises(BenchError, match=message):
        joint.main(arguments)
