"""The tests can fail: planted bugs in copies of the kernels are all found, each by a check that passes without it."""

import os
import shutil
from dataclasses import dataclass

import mutation
import pytest

if os.environ.get("COSEGFLOW_HOSTSIM_MODULE"):
    pytest.skip("this is a mutant's own test run", allow_module_level=True)
if shutil.which("g++") is None:
    pytest.skip("hostsim needs g++", allow_module_level=True)

HALF = "tests/test_match.py::test_many_tiles[hostsim-targets-float16]"  # the tensor-core kernel
SINGLE = "tests/test_match.py::test_many_tiles[hostsim-targets-float32]"  # the FMA kernel
WARP = "tests/test_warp.py::test_values_and_gradients[hostsim-dtype1-zeros-bilinear-shape0]"
TIES = "tests/test_return_index.py::test_the_lowest_of_ties[hostsim-{at}-dtype{dtype}-{op}-fast]"
WINDOW = "tests/test_kernel_sigma.py::test_soft_argmax_masks[hostsim-holes-dtype1-fast]"

# Without torch, so that the sanitizer build can run them.
MATCH_HALF = """
a = np.random.default_rng(0).standard_normal((1, 136, 9, 15)).astype(np.float16)
flow, lse, confidence = sim.match(a, a, None, None, np.full(1, 9, np.float32), True, False)
assert np.isfinite(flow).all() and np.isfinite(lse).all()
"""
WARP_ODD = """
x, flow = np.zeros((1, 1, 3, 3), np.float32), np.zeros((1, 2, 5, 7), np.float32)
sim.warp(x, flow, "bilinear", "zeros")
"""

MMA_TILE = "csrc/cuda/mma_tile_product.cuh"
SIMT_TILE = "csrc/cuda/tile_product.cuh"
FORWARD = "csrc/cuda/match/match_forward_kernel.cuh"
COMMON = "csrc/cuda/match/match_common.cuh"
WARP_KERNELS = "csrc/cuda/warp/warp_kernels.cuh"
WARP_MATH = "csrc/common/warp_math.h"


@dataclass(frozen=True)
class Bug:
    """One planted bug, and the check that has to find it."""

    name: str
    file: str
    old: str
    new: str
    op: str = "match"
    test: str | None = None
    snippet: str | None = None
    variant: str = "plain"
    says: str = ""  # what the failure must mention


BUGS = [
    Bug("barrier dropped after a load", MMA_TILE,
        "cp_async_wait<kStages - 2>();\n        __syncthreads();", "cp_async_wait<kStages - 2>();", test=HALF),
    Bug("barrier dropped between store and use", SIMT_TILE,
        "passed the last barrier had finished the slab before last.\n      __syncthreads();",
        "passed the last barrier had finished the slab before last.", test=SINGLE),
    Bug("stage overwritten while it is read", MMA_TILE,
        "copy_next(stage == 0 ? kStages - 1 : stage - 1);", "copy_next(stage);", test=HALF),
    Bug("barrier dropped before a merge across warps", FORWARD,
        "  __syncthreads();\n  if (static_cast<int>(threadIdx.x) < rows) {",
        "  if (static_cast<int>(threadIdx.x) < rows) {", test=HALF),
    Bug("divergent barrier", FORWARD,
        "  __syncthreads();\n  if (static_cast<int>(threadIdx.x) < rows) {",
        "  if (static_cast<int>(threadIdx.x) < rows) {\n    __syncthreads();", test=HALF, says="barrier"),
    Bug("cp.async wait missing", MMA_TILE, "        cp_async_wait<kStages - 2>();\n", "", test=HALF),
    Bug("cp.async wait too weak", MMA_TILE, "cp_async_wait<kStages - 2>()", "cp_async_wait<kStages - 1>()", test=HALF),
    Bug("wrong lane of an mma fragment", MMA_TILE, "lane % 8 + lane / 16 * 8, chunk_b",
        "lane % 8 + lane / 8 * 8 % 16, chunk_b", test=HALF),
    Bug("wrong column of an accumulator", MMA_TILE, "static_cast<int>(threadIdx.x) % 4 * 2;",
        "static_cast<int>(threadIdx.x) % 4;", test=HALF),
    Bug("last partial tile forgotten", FORWARD, "(count + Engine::kCols - 1) / Engine::kCols", "count / Engine::kCols",
        test=HALF),
    Bug("bound of the targets dropped", COMMON, "if (j >= count) return", "if (j > count) return", test=HALF),
    Bug("online softmax not rescaled", FORWARD,
        "state[r].total *= rescale, state[r].x *= rescale, state[r].y *= rescale;",
        "state[r].total *= rescale, state[r].x *= rescale;", test=SINGLE),
    Bug("too little shared memory", MMA_TILE, "static_cast<size_t>(kStages) * kSlab * sizeof(T);",
        "static_cast<size_t>(kStages) * kSlab * sizeof(T) - 64;", snippet=MATCH_HALF,
        says="not within the shared memory of the block"),
    Bug("bounds mask of the threads dropped", WARP_KERNELS,
        "warp_forward_kernel(WarpParams p) {\n  using A = accumulate_t<T>;\n"
        "  const PixelOfThread pixel = pixel_of_thread(p);\n  if (!pixel.exists) return;",
        "warp_forward_kernel(WarpParams p) {\n  using A = accumulate_t<T>;\n"
        "  const PixelOfThread pixel = pixel_of_thread(p);", op="warp", snippet=WARP_ODD, variant="asan",
        says="AddressSanitizer"),
    Bug("warps that share a row not compared", FORWARD, "best.merge(merged_best[w][threadIdx.x]);", "(void)w;",
        test=TIES.format(at="[127, 128, 129]", dtype=2, op="match")),
    Bug("the last of equal columns", FORWARD, "for (int c = kC - 2; c >= 0; --c)", "for (int c = 0; c < kC - 1; ++c)",
        test=TIES.format(at="[5, 6]", dtype=1, op="match")),
    Bug("the higher target on ties", "csrc/cuda/primitives/most_probable.cuh", "other.index < index",
        "other.index > index", op="soft_argmax", test=TIES.format(at="[5, 6]", dtype=1, op="soft_argmax")),
    Bug("gradient not taken back through the window", "csrc/cuda/soft_argmax/soft_argmax_backward_kernels.cuh",
        "            slope *= row.window.slope(s, k);\n", "", op="soft_argmax", test=WINDOW),
    Bug("tap one pixel beyond the image", WARP_MATH, "&& x >= 0 && x < width &&", "&& x >= 0 && x <= width &&",
        op="warp", test=WARP),
]  # fmt: skip


@pytest.fixture(scope="module")
def baselines() -> dict[tuple, mutation.Outcome]:
    """Each check on the original sources, run once."""
    return {}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_planted_bug_is_found(bug, baselines):
    check = (bug.op, bug.test, bug.snippet, bug.variant)
    options = {"op": bug.op, "test": bug.test, "snippet": bug.snippet, "variant": bug.variant}
    if check not in baselines:
        baselines[check] = mutation.baseline(**options)
    assert not baselines[check].caught, f"the check fails without the bug:\n{baselines[check].output[-3000:]}"
    outcome = mutation.run(bug.file, bug.old, bug.new, **options)
    assert outcome.caught, f"not found: {bug.name}"
    assert bug.says in outcome.output, outcome.output[-3000:]
