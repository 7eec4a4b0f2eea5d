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

HALF = "tests/test_match.py::test_many_tiles[hostsim-targets-float16-portable]"  # mma.sync
SINGLE = "tests/test_match.py::test_many_tiles[hostsim-targets-float32-fast]"  # the FMA kernel
BACKWARD_HALF = "tests/test_match_backward_portable.py::test_gradients[hostsim-{}-holes]"
BOTH_HALF = "tests/test_match_both.py::test_many_tiles[hostsim-both-float16-portable]"
BOTH_CHUNKS = "tests/test_match_both.py::test_backward_in_chunks_and_forward[1-float32]"
LOCAL_TEST = "tests/test_local_correlation.py::test_values_and_gradients[hostsim-fast-plain-flow-float32-shape1]"
WARP = "tests/test_warp.py::test_values_and_gradients[hostsim-fast-dtype1-zeros-bilinear-shape0]"
WARP_CROWDED = "tests/test_warp.py::test_crowded_pixels[hostsim-planes-upsampled]"
TRANSFER = "tests/test_transfer.py::test_many_tiles[hostsim-rows-float32-fast]"
CHUNKS = "tests/test_transfer.py::test_backward_in_chunks"
BOTH_BACKWARD = "tests/test_match_both_backward_hopper.py::test_gradients[hostsim-runs of rows, the last one short]"
TRANSFER_BACKWARD = "tests/test_transfer_backward_hopper.py::test_value_channels[hostsim-9]"
TIES = "tests/test_return_index.py::test_the_lowest_of_ties[hostsim-{at}-dtype{dtype}-{op}-{kernels}]"
WINDOW = "tests/test_kernel_sigma.py::test_soft_argmax_masks[hostsim-holes-dtype1-fast]"

# Without torch, so that the sanitizer build can run them, and since importing it takes longer than a check.
LOCAL = """
rng = np.random.default_rng(0)
def compare(dtype, tolerance, size, radius, flow=None):
    b, c, ha, wa, hb, wb = size
    fa, fb = (rng.standard_normal((b, c, h, w)).astype(dtype) for h, w in ((ha, wa), (hb, wb)))
    if dtype == np.float16 or radius == 1:
        fb[0, 2 % c, 3, 2] = np.inf
    grad = rng.standard_normal((b, (2 * radius + 1) ** 2, ha, wa)).astype(dtype)
    need = (True, True, flow is not None)
    results = []
    for simple in (False, True):
        out = sim.local_correlation(fa, fb, flow, radius, False, simple)
        grads = sim.local_correlation_backward(grad, fa, fb, flow, radius, False, False, need, simple)
        results.append([out, *grads[: sum(need)]])
    for ours, theirs in zip(*results):
        live = np.isfinite(theirs)
        assert live.any() and (np.isfinite(ours) == live).all()
        error = np.abs(ours.astype(float) - theirs.astype(float))[live]
        assert (error <= tolerance * np.abs(theirs[live]).max()).all()
"""
LOCAL_GRID = (
    LOCAL
    + """
compare(np.float32, 1e-5, (2, 37, 9, 64, 11, 68), 4)
compare(np.float32, 1e-5, (1, 3, 6, 35, 9, 40), 9)
compare(np.float16, 4e-3, (2, 37, 9, 64, 11, 68), 4)
"""
)
LOCAL_FLOW = (
    LOCAL
    + """
y, x = np.meshgrid(np.arange(34), np.arange(35), indexing="ij")
smooth = np.stack([x * 0.1 + y * 0.03 - 1] * 2)[None].astype(np.float32)
compare(np.float32, 1e-5, (1, 9, 13, 18, 12, 17), 4, np.ascontiguousarray(smooth[:, :, :13, :18]))
compare(np.float32, 1e-5, (1, 130, 3, 10, 4, 9), 2, np.ascontiguousarray(smooth[:, :, :3, :10]))
compare(np.float16, 4e-3, (1, 9, 13, 18, 12, 17), 4, np.ascontiguousarray(smooth[:, :, :13, :18]))
place = np.stack([5.25 - x, 3.5 - y])[None].astype(np.float32)
compare(np.float32, 1e-5, (1, 3, 34, 35, 13, 16), 1, place)
compare(np.float32, 1e-5, (1, 3, 34, 35, 11, 14), 1, place - np.float32(5.5))
"""
)
MATCH_HALF = """
a = np.random.default_rng(0).standard_normal((1, 136, 9, 15)).astype(np.float16)
flow, lse, *_ = sim.match(a, a, None, None, np.full(1, 9, np.float32), True, False, portable=True)
assert np.isfinite(flow).all() and np.isfinite(lse).all()
"""
# The Hopper kernels against the portable ones: streamed and resident rows, fragments, several strips in a block, an
# image whose second warpgroup has no rows.
MATCH_HOPPER = """
rng = np.random.default_rng(0)
for b, c, ha, wa, hb, wb in ((2, 328, 40, 40, 40, 50), (5, 136, 40, 30, 9, 13), (2, 192, 10, 12, 20, 20)):
    fa = rng.standard_normal((b, c, ha, wa)).astype(np.float16)
    fb = rng.standard_normal((b, c, hb, wb)).astype(np.float16)
    mask = (rng.random((b, ha, wa)) < 0.8).astype(np.float32)
    arguments = (fa, fb, mask, None, np.full(b, 20, np.float32), True, False, 0.0, False, 0)
    for ours, theirs in zip(sim.match(*arguments, False), sim.match(*arguments, True)):
        live = np.isfinite(theirs)
        assert (np.isfinite(ours) == live).all() and (np.abs(ours - theirs)[live] <= 1e-4).all()
"""
# The same for transfer: fragments and strips in two launches, planes that are not full, images with rows for one
# warpgroup only.
TRANSFER_HOPPER = """
rng = np.random.default_rng(0)
for b, c, ha, wa, hb, wb, v in ((2, 40, 20, 17, 29, 27, 11), (2, 136, 10, 12, 9, 13, 3)):
    fa = rng.standard_normal((b, c, ha, wa)).astype(np.float16)
    fb = rng.standard_normal((b, c, hb, wb)).astype(np.float16)
    values = rng.standard_normal((b, v, hb, wb)).astype(np.float32)
    mask_a, mask_b = ((rng.random((b, h, w)) < 0.8).astype(np.float32) for h, w in ((ha, wa), (hb, wb)))
    arguments = (fa, fb, values, mask_a, mask_b, np.full(b, 20, np.float32), True, False, 0, 0)
    for ours, theirs in zip(sim.transfer(*arguments, False), sim.transfer(*arguments, True)):
        live = np.isfinite(theirs)
        assert (np.isfinite(ours) == live).all() and (np.abs(ours - theirs)[live] <= 1e-4).all()
"""
# The same for match_both: chunks of rows and fragments, several strips in a block, an image whose second warpgroup has
# no rows.
BOTH_HOPPER = """
rng = np.random.default_rng(0)
for b, c, ha, wa, hb, wb, chunk in ((3, 40, 20, 17, 27, 19, 1), (5, 136, 40, 30, 9, 13, 0), (2, 72, 10, 12, 20, 20, 0)):
    fa = rng.standard_normal((b, c, ha, wa)).astype(np.float16)
    fb = rng.standard_normal((b, c, hb, wb)).astype(np.float16)
    mask_a, mask_b = (np.where(rng.random((b, h, w)) < 0.8, rng.random((b, h, w)), 0).astype(np.float32)
                      for h, w in ((ha, wa), (hb, wb)))
    arguments = (fa, fb, mask_a, mask_b, np.full(b, 20, np.float32), True, False, chunk, 0)
    for ours, theirs in zip(sim.match_both(*arguments, False), sim.match_both(*arguments, True)):
        live = np.isfinite(theirs)
        assert (np.isfinite(ours) == live).all() and (np.abs(ours - theirs)[live] <= 1e-4).all()
"""
# Those of correlation against NumPy: planes and packed rows, streamed in bands and resident for several strips, images
# with rows for one warpgroup only, rows that are stored by 16 bytes and not.
CORRELATION_HOPPER = """
rng = np.random.default_rng(0)
for b, c, ha, wa, hb, wb in ((1, 264, 50, 48, 13, 16), (5, 136, 40, 30, 9, 16), (2, 40, 9, 13, 16, 17)):
    fa = rng.standard_normal((b, c, ha, wa)).astype(np.float16)
    fb = rng.standard_normal((b, c, hb, wb)).astype(np.float16)
    a, b = (f.astype(np.float32) / np.linalg.norm(f.astype(np.float32), axis=1, keepdims=True) for f in (fa, fb))
    exact = np.maximum(np.einsum("bcij,bckl->bijkl", a, b, optimize=True), 0)
    assert (np.abs(sim.correlation(fa, fb, True, True) - exact) <= 1e-3).all()
"""
WARP_ODD = """
x, flow = np.zeros((1, 5, 3, 3), np.float32), np.zeros((1, 2, 5, 7), np.float32)
sim.warp(x, flow, "bilinear", "zeros")
"""

MMA_TILE = "csrc/cuda/mma_tile_product.cuh"
SIMT_TILE = "csrc/cuda/tile_product.cuh"
FORWARD = "csrc/cuda/match/match_forward_kernel.cuh"
COMMON = "csrc/cuda/match/match_common.cuh"
GRADIENT = "csrc/cuda/match/match_score_gradient_kernel.cuh"
GRADIENT_HOST = "csrc/cuda/match/match_backward_cuda.cu"
BOTH_FORWARD = "csrc/cuda/match_both/match_both_forward_kernel.cuh"
BOTH_HOST = "csrc/cuda/match_both/match_both_forward_cuda.cu"
BOTH_GRADIENT = "csrc/cuda/match_both/match_both_gradient_kernel.cuh"
BOTH_SOFTMAX = "csrc/cuda/match_both/both_softmax.cuh"
BOTH_HOPPER_KERNEL = "csrc/cuda/match_both/match_both_hopper_kernel.cuh"
BOTH_HOPPER_HOST = "csrc/cuda/match_both/match_both_hopper_cuda.cu"
TRANSFER_TILE = "csrc/cuda/transfer/transfer_tile_kernels.cuh"
TRANSFER_HOST = "csrc/cuda/transfer/transfer_cuda.cu"
HOPPER_PIPELINE = "csrc/cuda/hopper/pipeline.cuh"
HOPPER_LINE = "csrc/cuda/hopper/work_line.cuh"
HOPPER_SOFTMAX = "csrc/cuda/hopper/row_softmax.cuh"
TRANSFER_HOPPER_HOST = "csrc/cuda/transfer/transfer_hopper_cuda.cu"
TRANSFER_BACKWARD_HOST = "csrc/cuda/transfer/transfer_backward_hopper_cuda.cu"
GRADIENT_PRODUCT = "csrc/cuda/hopper/gradient_product_cuda.cu"
CORRELATION_KERNEL = "csrc/cuda/correlation/correlation_hopper_kernel.cuh"
CORRELATION_STORE = "csrc/cuda/correlation/correlation_store.cuh"
WARP_TILES = "csrc/cuda/warp/warp_tiles.cuh"
WARP_GATHER = "csrc/cuda/warp/warp_gather_kernels.cuh"
WARP_INVERSE = "csrc/cuda/warp/warp_inverse.cuh"
CYCLE = "tests/test_cycle_error.py::test_values_and_gradients[hostsim-fast-False-dtype1-shape4]"
CYCLE_MATH = "csrc/common/cycle_error_math.h"
CYCLE_KERNELS = "csrc/cuda/cycle_error/cycle_error_kernels.cuh"
WINDOW_MATH = "csrc/common/window_math.h"
LOCAL_ALONG = "csrc/cuda/local_correlation/local_correlation_flow_{}.cuh"
LOCAL_STAGES = "csrc/cuda/local_correlation/local_correlation_forward_stages.cuh"
LOCAL_FMA = "csrc/cuda/local_correlation/local_correlation_forward_fma_kernel.cuh"
LOCAL_MMA = "csrc/cuda/local_correlation/local_correlation_forward_mma_kernel.cuh"
LOCAL_BACKWARD_FMA = "csrc/cuda/local_correlation/local_correlation_backward_fma_kernel.cuh"
LOCAL_BACKWARD_MMA = "csrc/cuda/local_correlation/local_correlation_backward_mma_kernel.cuh"
LOCAL_BACKWARD = "csrc/cuda/local_correlation/local_correlation_grid_backward_cuda.cu"
LOCAL_PACK = "csrc/cuda/local_correlation/local_correlation_grid_pack_kernels.cuh"
LOCAL_SIMPLE = "csrc/cuda/local_correlation/local_correlation_simple_kernels.cuh"


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
    Bug("bound of the targets dropped", COMMON,
        "if (j >= count) return {Acc(0), Acc(0), Acc(0), minus_infinity<Acc>()};\n  const int64_t at = side.at(b, j);",
        "if (j > count) return {Acc(0), Acc(0), Acc(0), minus_infinity<Acc>()};\n  const int64_t at = side.at(b, j);",
        test=SINGLE),  # halves are packed with a row behind the last one that excludes itself
    Bug("online softmax not rescaled", FORWARD,
        "state[r].total *= rescale, state[r].x *= rescale, state[r].y *= rescale;",
        "state[r].total *= rescale, state[r].x *= rescale;", test=SINGLE),
    Bug("too little shared memory", MMA_TILE, "static_cast<size_t>(kStages) * kSlab * sizeof(T);",
        "static_cast<size_t>(kStages) * kSlab * sizeof(T) - 64;", snippet=MATCH_HALF,
        says="not within the shared memory of the block"),
    *(Bug(name, file, old, new, test=BACKWARD_HALF.format(case)) for name, file, old, new, case in (
        ("lanes store each other's columns of ds", GRADIENT, "lane % 2 * 8 + lane / 2 * 4",
         "lane / 2 * 8 + lane % 2 * 4", "one tile"),
        ("sums of the columns in each other's places", GRADIENT, "lane / 8 % 2 * 8 + lane / 4 % 2",
         "lane / 4 % 2 * 8 + lane / 8 % 2", "one tile"),
        ("runs of rows of halves overwrite each other", GRADIENT_HOST, "args.accumulate = row_begin > 0;",
         "args.accumulate = false;", "runs of rows, their sums in parts"),
        ("a part of a sum left out", "csrc/cuda/gradient_product_mma.cuh", "part = 1; part < args.splits.count",
         "part = 2; part < args.splits.count", "runs of rows, their sums in parts"),
    )),
    Bug("barrier dropped before columns are merged", BOTH_FORWARD,
        "    __syncthreads();\n    // Read before", "    // Read before", op="match_both", test=BOTH_HALF),
    Bug("a lane keeps the wrong half of the columns", BOTH_FORWARD, "if (upper) offset += left;",
        "if (!upper) offset += left;", op="match_both", test=BOTH_HALF),
    Bug("columns forget earlier chunks", BOTH_HOST, "if (args.tile_begin > 0) state = all[i];", "",
        op="match_both", test=BOTH_CHUNKS),
    Bug("gradient of a column with the lse of a row", BOTH_GRADIENT, "p.log_weight) - q.lse)", "p.log_weight) - p.lse)",
        op="match_both", test=BOTH_HALF),
    Bug("threads beyond the image not kept at its edge", WARP_TILES,
        "min(row, grid.height - 1), min(column, grid.width - 1)", "row, column", op="warp", snippet=WARP_ODD,
        variant="asan", says="AddressSanitizer"),
    Bug("the upper cells' landings weighed as the lower ones'", WARP_GATHER, "above ? landing.wy : A(1) - landing.wy",
        "above ? A(1) - landing.wy : landing.wy", op="warp", test=WARP_CROWDED),
    Bug("a thread of the block forgets its share of a crowded pixel", WARP_GATHER, "w < kThreads / 32; ++w) total +=",
        "w < kThreads / 64; ++w) total +=", op="warp", test=WARP_CROWDED),
    Bug("pixels of a cell in order of arrival", WARP_INVERSE,
        "for (int i = 0; i < n; ++i) landings[count_before(places, n, places[i])]",
        "for (int i = 0; i < n; ++i) landings[i]", op="warp",
        test="tests/test_warp.py::test_deterministic_gradient[20-False-upsampled]"),
    Bug("warps that share a row not compared", FORWARD, "best.merge(merged_best[w][threadIdx.x]);", "(void)w;",
        test=TIES.format(at="[127, 128, 129]", dtype=2, op="match", kernels="portable")),
    Bug("the last of equal columns", FORWARD, "for (int c = kC - 2; c >= 0; --c)", "for (int c = 0; c < kC - 1; ++c)",
        test=TIES.format(at="[5, 6]", dtype=1, op="match", kernels="fast")),
    Bug("the higher target on ties", "csrc/cuda/primitives/most_probable.cuh", "other.index < index",
        "other.index > index", op="soft_argmax",
        test=TIES.format(at="[5, 6]", dtype=1, op="soft_argmax", kernels="fast")),
    Bug("gradient not taken back through the window", "csrc/cuda/soft_argmax/soft_argmax_backward_kernels.cuh",
        "s[u] *= k, slope *= k;", "s[u] *= k;", op="soft_argmax", test=WINDOW),
    Bug("tap one pixel beyond the image", WARP_TILES, "&& x >= 0 && x < image.width &&",
        "&& x >= 0 && x <= image.width &&", op="warp", test=WARP),
    Bug("gradient through the position forgotten", CYCLE_MATH,
        "  grad_ab_y += grad_x * x_by_y + grad_y * y_by_y;\n", "", op="cycle_error", test=CYCLE),
    Bug("flow carried back not checked for NaN", CYCLE_MATH,
        "pixel.valid = (back_x - back_x == A(0)) && (back_y - back_y == A(0));", "pixel.valid = true;",
        op="cycle_error", test=CYCLE),
    Bug("second channel scattered into the first", CYCLE_KERNELS,
        "atomicAdd(memory + (window.plane() + place[k])", "atomicAdd(memory + place[k]", op="cycle_error",
        test=CYCLE),
    Bug("stage read before all copies have landed", LOCAL_STAGES,
        "    cp_async_wait<S::kStages - 2>();\n", "    cp_async_wait<S::kStages - 1>();\n",
        op="local_correlation", snippet=LOCAL_GRID),
    Bug("second row of a pair an offset off", LOCAL_FMA, "dy = line - r;", "dy = line;", op="local_correlation",
        snippet=LOCAL_GRID),
    Bug("barrier dropped before the window takes the stages' memory", LOCAL_MMA,
        "  stages.end();\n  __syncthreads();", "  stages.end();", op="local_correlation",
        snippet=LOCAL_GRID),
    Bug("products of the next column", LOCAL_MMA, "return 8 * h + 2 * q + e - g;", "return 8 * h + 2 * q + e - g - 1;",
        op="local_correlation", snippet=LOCAL_GRID),
    Bug("zero times infinity kept", LOCAL_BACKWARD_MMA, "if (finite == 0.0f) {", "if (true) {",
        op="local_correlation", snippet=LOCAL_GRID),
    Bug("halo overwritten while it is read", LOCAL_BACKWARD_FMA,
        "    __syncthreads();  // all have read the halo\n", "", op="local_correlation",
        snippet=LOCAL_GRID),
    Bug("later pieces of the window replace earlier ones", LOCAL_BACKWARD, "      call.add = true;\n", "",
        op="local_correlation", snippet=LOCAL_GRID),
    Bug("offsets of the packed gradient not mirrored", LOCAL_PACK,
        "kMirrored ? (pieces.radius - oy) * side + pieces.radius - ox",
        "kMirrored ? (pieces.radius + oy) * side + pieces.radius + ox",
        op="local_correlation", snippet=LOCAL_GRID),
    Bug("offsets not mirrored for the other side", LOCAL_SIMPLE, "t.x + radius - j", "t.x - radius + j",
        op="local_correlation", snippet=LOCAL_GRID),
    Bug("slope of the flow with the wrong sign", WINDOW_MATH, "return {A(-1), A(1)};", "return {A(1), A(-1)};",
        op="local_correlation", test=LOCAL_TEST),
    *(Bug(name, LOCAL_ALONG.format(file), old, new, op="local_correlation", snippet=LOCAL_FLOW)
      for name, file, old, new in (
        ("taps of all windows end one pixel early", "windows", "min(x + columns, width)",
         "min(x + columns, width - 1)"),
        ("a lane adds the other tap's product", "fma_products", "octet_tap + lane / kPixels % kTapsAtOnce;",
         "octet_tap + 1 - lane / kPixels % kTapsAtOnce;"),
        ("the second tap of a quad with the first one's channels", "mma_products", "tap[0][i][2 * half + 1],",
         "tap[0][i][2 * half],"),
        ("channels after the first chunk forgotten", "fma_products", "windows.any ? chunks_of<T>(r.rows_b.vectors) : 0",
         "windows.any ? 1 : 0"),
        ("a crowded run skipped", "gradient_kernels", "w > crowd_run) << w", "w > crowd_run + 2) << w"),
        ("a warp's share of a crowded run left out", "sums", "int w = 1; w < kWarps", "int w = 2; w < kWarps"),
    )),
    Bug("0 times infinity in a sum", LOCAL_ALONG.format("sums"), "if (finite()) return;", "return;",
        op="local_correlation", test="tests/test_local_correlation.py::test_infinity_between_windows[hostsim]"),
    Bug("windows that begin left of fb not listed", LOCAL_ALONG.format("gradient_kernels"), "w.x >= -margin",
        "w.x >= -margin + 2", op="local_correlation", test="tests/test_local_correlation.py::"
        "test_kernels_along_a_flow[hostsim-a corner-3x34x35x11x14x1-float32-plain]"),
    Bug("delta forgotten", TRANSFER_TILE, "p * (dscore[at] - data.extra)", "p * dscore[at]", op="transfer",
        test=TRANSFER),
    Bug("barrier dropped before the sums of a column", TRANSFER_TILE,
        "if (args.columns == nullptr) return;\n      __syncthreads();", "if (args.columns == nullptr) return;",
        op="transfer", test=TRANSFER),
    Bug("chunks overwrite each other", TRANSFER_HOST, "args.accumulate = chunk.row_begin > 0;",
        "args.accumulate = false;", op="transfer", test=CHUNKS),
    *(Bug(name, file, old, new, snippet=MATCH_HOPPER) for name, file, old, new in (
        ("the producer waits for the wrong phase", HOPPER_PIPELINE, "&shared.empty[stage], (n / kStages & 1) ^ 1)",
         "&shared.empty[stage], n / kStages & 1)"),
        ("a consumer waits for the wrong phase", HOPPER_PIPELINE, "n_ / kStages & 1);\n      const unsigned place",
         "(n_ / kStages & 1) ^ 1);\n      const unsigned place"),
        ("barriers not shown to the copy engine", HOPPER_PIPELINE, "    fence_proxy_async();\n", ""),
        ("a stage given back while wgmma reads it", HOPPER_PIPELINE, "wgmma_wait<1>();", ""),
        ("the newest stage given back instead of the one before", HOPPER_PIPELINE,
         "wgmma_wait<1>();\n        release(n_ - 1);", "wgmma_wait<1>();\n        release(n_);"),
        ("a stage is free when half of the warps have read it", HOPPER_PIPELINE,
         "mbarrier_init(&shared.empty[s], kConsumerWarps)", "mbarrier_init(&shared.empty[s], kConsumerWarps / 2)"),
        ("columns' numbers not waited for", HOPPER_PIPELINE, "(slab == 0 ? (1 + kPlanes) * kColumnBytes : 0)", "0"),
        ("resident rows looked for elsewhere", HOPPER_PIPELINE, "(resident_ + slab) % kStages", "slab % kStages"),
        ("the second warpgroup multiplies the first one's rows", HOPPER_PIPELINE,
         "top = shared_operand(shared_.a[place] + number_ * kWarpgroupRows * kDepth * 2)",
         "top = shared_operand(shared_.a[place])"),
        ("the depth of a step in the wrong unit", HOPPER_PIPELINE, "at_depth(top, k), at_depth(b, k)",
         "at_depth(top, k), at_depth(b, k / 2)"),
        ("copies with the swizzle of 64 bytes", "csrc/cuda/primitives/bulk_copy.cuh", "kTileSwizzle = 128;",
         "kTileSwizzle = 64;"),
        ("products with the swizzle of 64 bytes", "csrc/cuda/primitives/wgmma.cuh", "uint64_t{1} << 62",
         "uint64_t{2} << 62"),
        ("a fragment counted twice", HOPPER_LINE, "(start + cols - 1) / run_ - first_run + 1",
         "(start + cols) / run_ - first_run + 1"),
        ("runs left out", HOPPER_LINE, "number_ += static_cast<int>(gridDim.x);",
         "number_ += static_cast<int>(gridDim.x) + 1;"),
        ("merged by the last but one", "csrc/cuda/hopper/fragments.cuh", "strip.fragments - 1", "strip.fragments - 2"),
        ("sums not rescaled", HOPPER_SOFTMAX, "base[r] = state_[r].raise(peak[r]);",
         "base[r] = ExponentBase::of(peak[r]), state_[r].peak = peak[r];"),
    )),
    *(Bug(name, file, old, new, op="transfer", snippet=TRANSFER_HOPPER) for name, file, old, new in (
        ("every launch takes the first values", TRANSFER_HOPPER_HOST,
         "plane = first / 2 + v < planes ? first / 2 + v", "plane = first / 2 + v < planes ? v"),
        ("planes end with the last target", TRANSFER_HOPPER_HOST,
         "if (row / hopper::kCols > max(count - 1, 0) / hopper::kCols) return;", "if (row >= count) return;"),
        ("excluded sources left as they were", TRANSFER_HOPPER_HOST, ".weight > 0) return;", ".weight >= 0) return;"),
        ("launches share the counters of fragments", TRANSFER_HOPPER_HOST,
         "passes.counters + pass * a.batch * passes.row_tiles * 2",
         "passes.counters"),
        ("a strip overwritten while it is read", "csrc/cuda/hopper/parked_line.cuh",
         "    __syncwarp();  // all lanes have read the last strip\n", ""),
        ("lanes added up before they have one base", "csrc/cuda/primitives/value_softmax.cuh", "    raise(highest);\n",
         ""),
    )),
    Bug("sums of rows of all chunks in one place", "csrc/cuda/match_both/match_both_backward_hopper_cuda.cu",
        "(chunk.b0 * plan.chunks + chunk.number) * plan.row_room", "chunk.b0 * plan.chunks * plan.row_room",
        op="match_both", test=BOTH_BACKWARD),
    *(Bug(name, file, old, new, op="transfer", test=TRANSFER_BACKWARD) for name, file, old, new in (
        ("launches of a chunk overwrite each other", TRANSFER_BACKWARD_HOST, "args.accumulate = number > 0;",
         "args.accumulate = false;"),
        ("a lane with another lane's column", "csrc/cuda/hopper/column_halving.cuh", "(lane & 4) * 4 + (lane & 8)",
         "(lane & 8) * 2 + (lane & 4) * 2"),
    )),
    *(Bug(name, file, old, new, op="match_both", snippet=BOTH_HOPPER) for name, file, old, new in (
        ("a lane keeps another lane's column", BOTH_SOFTMAX, "column(lane / 4) + g * 32",
         "column(lane / 4 ^ 1) + g * 32"),
        ("sums left relative to the last tile's base", BOTH_SOFTMAX, "make_relative(r, peak[r], common);",
         "state_[r].peak = peak[r], base_[r] = common.base;"),
        ("a column's sums left relative to the tile's peak", BOTH_SOFTMAX,
         "if constexpr (kCommon) mine.raise(column_peak[g]);", "if constexpr (kCommon) mine.peak = column_peak[g];"),
        ("merged before all warps have reduced their rows", BOTH_HOPPER_KERNEL,
         "      named_barrier_sync(1 + ring.number(), 128);\n      if (thread", "      if (thread"),
        ("both warpgroups write the same half row tile", BOTH_HOPPER_KERNEL,
         "const int half = strip.row_tile * 2 + ring.number();", "const int half = strip.row_tile * 2;"),
        ("the last half row tile forgotten", BOTH_HOPPER_HOST,
         "(args.rows[image] + hopper::kWarpgroupRows - 1) / hopper::kWarpgroupRows",
         "args.rows[image] / hopper::kWarpgroupRows"),
        ("chunks of rows share the counters of fragments", BOTH_HOPPER_HOST,
         "args.counters.counters += chunk * space.counters;", ""),
        ("rows of the first chunk in all", BOTH_HOPPER_HOST, "args.stream.first_row = static_cast<int>(row);", ""),
        ("the weight of a column left in its lse", BOTH_HOPPER_KERNEL, "State::log_sum_exp() - log_weight",
         "State::log_sum_exp()"),
    )),
    *(Bug(name, file, old, new, op="correlation", snippet=CORRELATION_HOPPER) for name, file, old, new in (
        ("bands of row tiles all full", CORRELATION_KERNEL, "min(order_.band, order_.row_tiles - band * order_.band)",
         "order_.band"),
        ("rows of the strip before", CORRELATION_KERNEL, "if (++place_.row_tile == order_.row_tiles)",
         "place_.new_rows = false;\n    if (++place_.row_tile == order_.row_tiles)"),
        ("boxes of planes in one place", CORRELATION_KERNEL, "to + box * kTurnedBox", "to"),
        ("lanes store each other's columns", CORRELATION_STORE, "? 8 * lane", "? 8 * (lane ^ 1)"),
    )),
    Bug("features of the first run of rows in all", "csrc/cuda/correlation/correlation_backward_hopper_cuda.cu",
        "args.b.first_depth = static_cast<int>(c.row), ", "", op="correlation",
        test="tests/test_correlation_hopper.py::test_gradients[hostsim-runs of rows]"),
    *(Bug(name, file, old, new, test=f"tests/test_match_backward_hopper.py::test_gradients[hostsim-{case}-none]")
      for name, file, old, new, case in (
        ("every run of rows takes the image's first features", GRADIENT_PRODUCT, "first_depth + slab * kDepth",
         "0 * first_depth + slab * kDepth", "runs of rows, the last one short"),
        ("a part of the depth twice", GRADIENT_PRODUCT, "u.first_slab = min(slabs, u.split * each);",
         "u.first_slab = 0;", "partial sums"),
        ("a chunk's gradient instead of all chunks'", "csrc/cuda/hopper/gradient_chunks.cuh",
         "args.b.accumulate = c.number > 0", "args.b.accumulate = false", "runs of rows, the last one short"),
    )),
    Bug("one exponential for peaks far apart", BOTH_SOFTMAX, "if (__all_sync(0xffffffffu, near)) {", "if (true) {",
        op="match_both", test="tests/test_match_both_hopper.py::test_peaks_far_apart[hostsim-none-300.0]"),
]  # fmt: skip


@pytest.fixture(scope="module")
def baselines() -> dict[tuple, mutation.Outcome]:
    """Each check on the original sources, run once."""
    return {}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_planted_bug_is_found(bug, baselines):
    check = (bug.test, bug.snippet, bug.variant)
    options = {"test": bug.test, "snippet": bug.snippet, "variant": bug.variant}
    if check not in baselines:
        baselines[check] = mutation.baseline(**options)
    assert not baselines[check].caught, f"the check fails without the bug:\n{baselines[check].output[-3000:]}"
    outcome = mutation.run(bug.file, bug.old, bug.new, op=bug.op, **options)
    assert outcome.caught, f"not found: {bug.name}"
    assert bug.says in outcome.output, outcome.output[-3000:]
