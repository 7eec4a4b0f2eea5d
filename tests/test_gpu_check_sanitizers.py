"""What gpu-check makes of compute-sanitizer's output, and the command lines it gives it."""

import textwrap

from benchmarks.check import sanitize_stage
from benchmarks.check.process import Done


def judged(text: str, code: int | None = 0) -> dict:
    return sanitize_stage.judge(Done(code, textwrap.dedent(text), 3.0))


CLEAN = """\
    ========= COMPUTE-SANITIZER
    small_shapes: 64 calls
    ========= ERROR SUMMARY: 0 errors
"""
WRONG_READ = """\
    ========= COMPUTE-SANITIZER
    ========= Invalid __global__ read of size 4 bytes
    =========     at void cosegflow::warp_cuda::warp_forward_kernel<float>(cosegflow::WarpParams)+0x90 in warp.cuh:51
    =========     by thread (3,0,0) in block (0,0,0)
    =========     Address 0x7f0 is out of bounds
    =========
    small_shapes: 64 calls
    ========= ERROR SUMMARY: 1 error
"""
FOREIGN = """\
    ========= COMPUTE-SANITIZER
    ========= Uninitialized __global__ memory read of size 4 bytes
    =========     at void at::native::elementwise_kernel<(int)128>(int)+0x60
    =========     by thread (3,0,0) in block (0,0,0)
    =========
    small_shapes: 64 calls
    ========= ERROR SUMMARY: 1 error
"""
HAZARD = """\
    ========= COMPUTE-SANITIZER
    ========= Error: Race reported between Write access at cosegflow::compact_kernel<float>(int)+0x90 in pack.cuh:90
    =========     and Read access at cosegflow::compact_kernel<float>(int)+0x100 in pack.cuh:99 [508 hazards]
    =========
    small_shapes: 64 calls
    ========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
UNSUPPORTED = """\
    ========= COMPUTE-SANITIZER
    ========= Error: Device not supported. Please refer to the "Supported Devices" section of the documentation
    Traceback (most recent call last):
    RuntimeError: CUDA error: unknown error
    ========= ERROR SUMMARY: 1 error
"""
NEVER_STARTED = """\
    ========= COMPUTE-SANITIZER
    ========= Error: Target application terminated before first instrumented API call
    ========= Error: couldn't find exit code.
"""


def test_what_the_sanitizers_say():
    assert judged(CLEAN) == {
        "exit": 0, "seconds": 3.0, "summary": "ERROR SUMMARY: 0 errors", "foreign": 0, "status": "clean",
    }  # fmt: skip
    row = judged(WRONG_READ, 86)
    assert row["status"] == "errors" and row["summary"] == "ERROR SUMMARY: 1 error"
    assert row["errors"][0][0].startswith("Invalid __global__ read") and len(row["errors"][0]) == 4
    row = judged(HAZARD, 86)
    assert row["status"] == "errors" and "1 hazard displayed" in row["summary"] and "pack.cuh:90" in row["errors"][0][0]
    assert judged(UNSUPPORTED, 255)["status"] == "refused" and "not supported" in judged(UNSUPPORTED, 255)["reason"]
    assert judged(NEVER_STARTED, 255)["status"] == "refused"
    assert judged("compute-sanitizer: No such file or directory", 127)["status"] == "refused"
    assert judged("Segmentation fault", -11)["status"] == "refused"
    assert judged(WRONG_READ.replace("ERROR SUMMARY", ""), -6)["status"] == "errors"  # it died after it found something
    assert judged(CLEAN, None)["status"] == "timeout"


def test_findings_in_other_kernels_are_told_apart():
    row = judged(FOREIGN, 86)
    assert row["status"] == "clean" and row["foreign"] == 1
    both = FOREIGN.replace("small_shapes: 64 calls\n", "").replace("    ========= ERROR SUMMARY: 1 error\n", "")
    both += WRONG_READ.replace("1 error", "2 errors")
    assert judged(both, 86)["status"] == "errors" and judged(both, 86)["foreign"] == 1
    # More than were printed: nobody knows whose the others are.
    assert judged(FOREIGN.replace("1 error", "70 errors"), 86)["status"] == "errors"


def test_a_program_that_fails_under_the_tool_is_a_failure():
    text = CLEAN.replace("small_shapes: 64 calls", "AssertionError: NaN: match")
    assert judged(text, 1)["status"] == "failed" and "NaN: match" in judged(text, 1)["reason"]


def test_command_lines_keep_to_what_the_release_knows():
    old = sanitize_stage.command_of("tool", "initcheck", "", 1, ["python"])
    new = sanitize_stage.command_of("tool", "initcheck", sanitize_stage.TRACKS_OTHERS, 1, ["python"])
    assert "--kernel-name" not in old and new[new.index("--kernel-name") + 1] == "kernel_substring=cosegflow"
    assert old[-1] == new[-1] == "python"
