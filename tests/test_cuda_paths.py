"""On a Hopper GPU: that its own kernels are what runs. A check of numbers alone would pass if others ran instead."""

import os
import subprocess
import sys

import pytest
import torch

CALLS = """
import torch, cosegflow
f = torch.randn(1, 64, 20, 20, device="cuda", dtype=torch.bfloat16)
cosegflow.match(f, f)
cosegflow.match_both(f, f)
cosegflow.transfer(f, f, torch.randn(1, 3, 20, 20, device="cuda"))
torch.cuda.synchronize()
"""


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="no GPU of compute capability 9.0",
)
def test_hopper_runs_its_own_kernels():
    environment = {k: v for k, v in os.environ.items() if k not in ("COSEGFLOW_SIMPLE", "COSEGFLOW_PORTABLE")}
    done = subprocess.run(
        [sys.executable, "-c", CALLS], env={**environment, "COSEGFLOW_LOG": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for op in ("match", "match_both", "transfer"):
        assert f"cosegflow: {op}: Hopper kernels (wgmma, TMA)" in done.stderr, done.stderr
