"""The CPU kernels of lesser instruction sets pass the same tests as those that this machine would choose."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize("isa", ["avx512", "avx2", "scalar"])
def test_the_same_tests_pass(isa):
    names = ["match", "match_both", "transfer", "correlation"]
    if isa != "avx512":  # which differs from the best in the products of bfloat16 alone
        names += ["soft_argmax", "return_index", "kernel_sigma", "warp", "warp_cpu", "local_correlation"]
    files = [str(TESTS / f"test_{name}.py") for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    command += ["-k", "cpu and (masks or shapes or values or many_tiles or huge or large_images or ties)"]
    environment = {**os.environ, "COSEGFLOW_CPU_ISA": isa, "COSEGFLOW_TEST_BACKENDS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]
