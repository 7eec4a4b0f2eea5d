"""The kernels of every operation under AddressSanitizer and UndefinedBehaviorSanitizer, on odd sizes and all masks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mutation
import pytest

if os.environ.get("COSEGFLOW_HOSTSIM_MODULE"):
    pytest.skip("this is a run on a given module already", allow_module_level=True)
if shutil.which("g++") is None:
    pytest.skip("hostsim needs g++", allow_module_level=True)

TESTS = Path(__file__).parent
SELECTED = {
    "warp": "test_values_and_gradients or test_layouts or test_outside",
    "cycle_error": "test_values_and_gradients or test_layouts",
    "correlation": "(test_values_and_gradients and (shape1 or shape2 or shape4)) or test_layouts",
    "correlation_hopper": "(test_shapes and (warpgroup or odd or bands)) or (test_gradients and (odd or aligned))",
    "soft_argmax": "test_masks or test_words or test_not_contiguous or (test_shapes and (shape1 or shape3))",
    "local_correlation": "(test_values_and_gradients and fast and shape1 and (float32 or bfloat16)) or test_outside or "
    "(test_kernels_along and plain and (34x35x13 or 130x3) and not float64)",
    "local_correlation_grid": "(test_layouts or test_only or (test_tiles and plain and not beyond)) and not float64",
    "transfer": "test_masks or test_layouts or test_value_channels or test_huge or (test_many_tiles and float32)",
    "return_index": "test_masks or test_beta or test_the_lowest",
    "kernel_sigma": "masks or test_rows or test_beta or (test_shapes and (shape1 or shape3))",
    "match": "test_masks or test_layouts or test_channels or test_many_tiles or test_huge or test_shapes",
    "match_backward_portable": "test_gradients and runs",
    "match_hopper": "test_shapes and (warpgroup or lanes or streaming)",
    "match_both": "test_masks or test_layouts or test_many_tiles or test_huge or test_shapes",
}


# Files whose tests know no other backend.
SIMULATED_ONLY = {"pack": "test_layouts or test_two_launches or test_split"}


@pytest.mark.parametrize("op", [*SELECTED, *SIMULATED_ONLY])
def test_clean(op):
    module = mutation.hostsim_build.build("asan")
    environment = {
        **os.environ,
        **mutation.hostsim_build.sanitizer_env(),
        "COSEGFLOW_HOSTSIM_MODULE": str(module),
        "COSEGFLOW_TEST_BACKENDS": "hostsim",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-p", "no:xdist"]
    chosen = f"hostsim and ({SELECTED[op]})" if op in SELECTED else SIMULATED_ONLY[op]
    command += [str(TESTS / f"test_{op}.py"), "-k", f"({chosen}) or test_backward_in_chunks"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0 and " passed" in done.stdout, output[-4000:]
    assert "runtime error" not in output and "AddressSanitizer" not in output, output[-4000:]
