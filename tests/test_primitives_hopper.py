"""What sm_90 adds to csrc/cuda/primitives, and its simulation, against the tables of the PTX manual in plain NumPy.

Everything runs in several thread orders; every mistake that `primitives_hopper_tests.cu` can make must be an error or
show as NaN. Comparisons are written so that a NaN fails (`assert err <= tol`).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_primitives import plain, rounded, sim  # noqa: F401  (fixtures)

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="hostsim needs g++")
DEPTH = 64  # halves of a row of a tile


def swizzle_128b(tile: np.ndarray) -> np.ndarray:
    """Rows of 64 halves as they lie in shared memory: chunk c (16 bytes) of row r lies at chunk c ^ (r % 8)."""
    rows = tile.shape[0]
    chunks = tile.reshape(rows, 8, 8)
    out = np.empty_like(chunks)
    for r in range(rows):
        for c in range(8):
            out[r, c ^ (r % 8)] = chunks[r, c]
    return out.reshape(rows, DEPTH)


def accumulator_place() -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of register i of thread t of a warpgroup: the table of the accumulator D of m64n128k16."""
    row, column = np.zeros((128, 64), int), np.zeros((128, 64), int)
    for t in range(128):
        for i in range(64):
            warp, lane = t // 32, t % 32
            row[t, i] = 16 * warp + lane // 4 + 8 * (i // 2 % 2)
            column[t, i] = 8 * (i // 4) + 2 * (lane % 4) + i % 2
    return row, column


ROW, COLUMN = accumulator_place()


def test_accumulator_table_is_a_permutation():
    assert sorted(zip(ROW.ravel().tolist(), COLUMN.ravel().tolist(), strict=True)) == [
        (r, c) for r in range(64) for c in range(128)
    ]


# ---- bulk copies ------------------------------------------------------------------------------------------------


def tile(sim, tensor, box_rows, at, *, fault=0, extra=0, block=64):  # noqa: F811
    """The bytes of a tile in shared memory after a copy of the box that starts at (channel, row, image)."""
    images, rows, depth = tensor.shape
    out = np.zeros((box_rows, DEPTH), np.uint16)
    numbers = [depth, rows, images, box_rows, *at]
    bytes_ = box_rows * 128 + extra
    sim.run_hopper_test("tile", tensor, None, out, block=block, dynamic_bytes=bytes_, fault=fault, numbers=numbers)
    return out


def boxed(tensor, box_rows, at):
    """The box with zeros where it leaves the tensor."""
    channel, row, image = at
    images, rows, depth = tensor.shape
    out = np.zeros((box_rows, DEPTH), np.uint16)
    for r in range(box_rows):
        for c in range(DEPTH):
            if 0 <= image < images and 0 <= row + r < rows and 0 <= channel + c < depth:
                out[r, c] = tensor[image, row + r, channel + c]
    return out


def halves(*shape, seed=0):
    return np.random.default_rng(seed).integers(1, 60000, shape).astype(np.uint16)


@pytest.mark.parametrize(
    "shape,box_rows,at",
    [
        ((1, 8, 64), 8, (0, 0, 0)),
        ((2, 40, 136), 16, (64, 16, 1)),
        ((2, 40, 136), 16, (128, 32, 1)),  # beyond both ends: zeros, not the next row or image
        ((2, 40, 136), 64, (0, 8, 0)),
        ((3, 5, 8), 8, (0, 0, 2)),  # less than a box in all
        ((1, 20, 64), 8, (0, -3, 0)),
        ((1, 20, 72), 8, (-8, 12, 0)),
        ((1, 20, 64), 8, (0, 20, 0)),
        ((1, 20, 64), 8, (64, 0, 0)),
        ((2, 20, 64), 8, (0, 0, 2)),
        ((1, 300, 64), 256, (0, 40, 0)),
    ],
)
def test_tile_is_swizzled_and_padded_with_zeros(sim, shape, box_rows, at):  # noqa: F811
    tensor = halves(*shape)
    got = tile(sim, tensor, box_rows, at)
    np.testing.assert_array_equal(got, swizzle_128b(boxed(tensor, box_rows, at)))


TILE_FAULTS = {
    2: r"expects 1008 bytes in this phase, with this copy 1024 are issued",
    3: r"deadlock.*thread \(0, 0, 0\) waits at mbarrier_wait\(\) at .*primitives_hopper_tests\.cu:\d+ for parity 0 of "
    r"the mbarrier at byte 0 of 'bar', whose phase 0 lacks 0 of 1 arrivals and 16 of 1040 expected bytes",
    5: r"bulk_load_tile\(\) at .*: the thread that initialised the mbarrier has not called fence_proxy_async\(\) since",
    6: r"bulk_load_tile: the shared memory address is not aligned to 1024 bytes",
    8: r"mbarrier_arrive\(\) at .*: too many arrivals",
    9: r"its destination was written by plain stores and no fence_proxy_async\(\) followed",
    10: r"its destination overlaps that of the copy issued at .*, which is in flight",
    11: r"the mbarrier at byte 0 of 'bar' has been overwritten",
    12: r"there is no mbarrier at byte 0 of 'bar'",
    13: r"mbarrier_init: the mbarrier at byte 0 of 'bar' exists already",
    14: r"byte 10 of the dynamic shared memory was written while the bulk copy issued at .* to it was in flight",
    15: r"deadlock.* for parity 1 of .*whose phase 1 lacks 1 of 1 arrivals",
}


@pytest.mark.parametrize("fault", TILE_FAULTS)
def test_misuse_of_bulk_copies_is_an_error(sim, fault):  # noqa: F811
    with pytest.raises(RuntimeError, match=TILE_FAULTS[fault]):
        # One thread: where others wait already, the copy may be done before the fault.
        tile(sim, halves(1, 8, 64), 8, (0, 0, 0), fault=fault, extra=1024, block=1 if fault in (10, 14) else 64)
    test_tile_is_swizzled_and_padded_with_zeros(sim, (1, 8, 64), 8, (0, 0, 0))  # and the next launch is fine


def test_wait_with_the_wrong_parity_passes_and_sees_nothing(sim):  # noqa: F811
    got = tile(sim, halves(1, 8, 64), 8, (0, 0, 0), fault=1)
    assert (got == 0xFFFF).all()  # NaN in both halves


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_threads_that_do_not_wait_see_nothing(plain, order):  # noqa: F811
    tensor = halves(1, 8, 64)
    plain.set_order(order)
    got = tile(plain, tensor, 8, (0, 0, 0), fault=16).ravel()
    plain.set_order("forward")
    first = np.arange(got.size) % 64 == 0  # what thread 0 reads
    np.testing.assert_array_equal(got[first], swizzle_128b(tensor[0]).ravel()[first])
    assert (got[~first] == 0xFFFF).all()


@pytest.mark.parametrize("fault", [4, 7], ids=["no bytes expected", "no wait"])
def test_a_copy_that_nobody_waits_for_is_an_error(sim, fault):  # noqa: F811
    # With a barrier of one arrival that expects no bytes, the phase ends without the copy.
    with pytest.raises(RuntimeError, match="the block ended without waiting for the bulk copy issued at"):
        tile(sim, halves(1, 8, 64), 8, (0, 0, 0), fault=fault)


@pytest.mark.parametrize(
    "numbers,message",
    [
        ([12, 8, 1, 8], "depth is not a positive multiple of 8"),
        ([64, 0, 1, 8], "rows and images must be positive"),
        ([64, 8, 1, 264], "box_rows is not a multiple of 8 from 8 to 256"),
        ([64, 8, 1, 12], "box_rows is not a multiple of 8 from 8 to 256"),
        ([64, 2**34, 1, 8], "a size is beyond 2\\^32"),
        ([2**12, 2**31, 1, 8], "an image has 2\\^40 bytes or more"),
    ],
)
def test_tensor_maps_that_the_driver_would_refuse(plain, numbers, message):  # noqa: F811
    a = halves(1, 8, 64)
    with pytest.raises(RuntimeError, match=message):
        plain.run_hopper_test("tile", a, None, a.copy(), numbers=numbers)
    with pytest.raises(RuntimeError, match="data is not 16-byte aligned"):
        plain.run_hopper_test("tile", a.reshape(-1)[1:], None, a.copy(), numbers=[64, 7, 1, 8])
    with pytest.raises(RuntimeError, match="data is null"):
        plain.run_hopper_test("tile", None, None, a.copy(), numbers=[64, 7, 1, 8])


@pytest.mark.parametrize("start,to,count", [(0, 0, 1024), (32, 16, 48), (16, 1008, 16)])
def test_bulk_load(sim, start, to, count):  # noqa: F811
    a = np.random.default_rng(1).integers(0, 255, 2048).astype(np.uint8)
    out = np.zeros(1024, np.uint8)
    sim.run_hopper_test("bulk_load", a, None, out, dynamic_bytes=1024, numbers=[start, to, count])
    want = np.full(1024, 7, np.uint8)
    want[to : to + count] = a[start : start + count]
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize(
    "numbers,message",
    [
        ([8, 0, 16], r"bulk_load: the source address .* is not aligned to 16 bytes"),
        ([0, 8, 16], r"bulk_load: the shared memory address is not aligned to 16 bytes"),
        ([0, 0, 24], r"bulk_load: 24 bytes are not a positive multiple of 16"),
        ([0, 1008, 32], r"not within the shared memory of the block"),
    ],
)
def test_misuse_of_bulk_load(sim, numbers, message):  # noqa: F811
    a = np.zeros(2048, np.uint8)
    with pytest.raises(RuntimeError, match=message):
        sim.run_hopper_test("bulk_load", a, None, np.zeros(1024, np.uint8), dynamic_bytes=1024, numbers=numbers)


# ---- phases -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [2, 64, 256])
def test_ping_pong_over_many_phases(sim, block):  # noqa: F811
    rounds, n = 7, block // 2
    out = np.zeros(n, np.int32)
    sim.run_hopper_test("ping_pong", None, None, out, block=block, parameter=rounds)
    np.testing.assert_array_equal(out, sum(r * n + np.arange(n)[::-1] for r in range(rounds)))


def test_an_arrival_that_never_comes_is_a_deadlock(sim):  # noqa: F811
    with pytest.raises(
        RuntimeError, match=r"deadlock: .*warp \d: thread \(\d+, 0, 0\) waits at mbarrier_wait\(\) at .*lacks 1 of 32"
    ):
        sim.run_hopper_test("ping_pong", None, None, np.zeros(32, np.int32), block=64, parameter=5, fault=2)


def test_an_arrival_too_many_shows(plain):  # noqa: F811
    """A second arrival in the place of another thread's lets the other side run ahead: seen in some order."""
    wrong = 0
    for order in ("forward", "reverse", "random"):
        plain.set_order(order, 3)
        out = np.zeros(32, np.int32)
        try:
            plain.run_hopper_test("ping_pong", None, None, out, block=64, parameter=5, fault=1)
        except RuntimeError:
            wrong += 1
        else:
            wrong += not np.array_equal(out, sum(r * 32 + np.arange(32)[::-1] for r in range(5)))
    plain.set_order("forward")
    assert wrong > 0


# ---- wgmma ------------------------------------------------------------------------------------------------------


def wgmma(sim, kind, *, accumulate=True, fault=0, rows_b=128):  # noqa: F811
    """(the registers, what they should hold)"""
    rng = np.random.default_rng(2)
    a_bits, a = rounded(rng.standard_normal((64, DEPTH)), kind)
    b_bits, b = rounded(rng.standard_normal((128, DEPTH)), kind)
    d = rng.standard_normal((64, 128)).astype(np.float32)
    registers = d[ROW, COLUMN].copy() if accumulate else np.full((128, 64), np.nan, np.float32)
    want = (a @ b.T + (d if accumulate else 0))[ROW, COLUMN]
    sim.run_hopper_test(
        f"wgmma_{kind}",
        swizzle_128b(a_bits),
        swizzle_128b(b_bits),
        registers,
        dynamic_bytes=(64 + 128) * 128,
        parameter=int(accumulate),
        fault=fault,
    )
    return registers, want


@pytest.mark.parametrize("kind", ["half", "bf16"])
@pytest.mark.parametrize("accumulate", [True, False])
def test_wgmma_layouts(sim, kind, accumulate):  # noqa: F811
    got, want = wgmma(sim, kind, accumulate=accumulate)
    assert np.abs(got - want).max() <= 2e-5


def test_wgmma_sums_in_float32_in_the_order_of_k(plain):  # noqa: F811
    rng = np.random.default_rng(3)
    a_bits, a = rounded(rng.standard_normal((64, DEPTH)), "half")
    b_bits, b = rounded(rng.standard_normal((128, DEPTH)), "half")
    registers = np.zeros((128, 64), np.float32)
    plain.run_hopper_test(
        "wgmma_half", swizzle_128b(a_bits), swizzle_128b(b_bits), registers, dynamic_bytes=(64 + 128) * 128
    )
    want = np.zeros((64, 128), np.float32)
    for k in range(DEPTH):
        want += np.outer(a[:, k].astype(np.float32), b[:, k].astype(np.float32))
    np.testing.assert_array_equal(registers, want[ROW, COLUMN])


def test_half_numbers_of_every_kind(plain):  # noqa: F811
    """Subnormals, infinities and NaN come through the decoding."""
    special = np.array([6e-8, -3e-5, 65504, np.inf, -np.inf, np.nan, 0.0, -0.0], np.float16)
    a = np.zeros((64, DEPTH), np.float16)
    a[np.arange(64), np.arange(64) % 64] = special[np.arange(64) % 8]
    b = np.zeros((128, DEPTH), np.float16)
    b[:, :] = 1
    registers = np.zeros((128, 64), np.float32)
    with np.errstate(invalid="ignore"):
        want = (a.astype(np.float32) @ b.astype(np.float32).T)[ROW, COLUMN]
    plain.run_hopper_test(
        "wgmma_half",
        swizzle_128b(a.view(np.uint16)),
        swizzle_128b(b.view(np.uint16)),
        registers,
        dynamic_bytes=(64 + 128) * 128,
    )
    np.testing.assert_array_equal(registers, want)


WGMMA_FAULTS = {
    2: r"the block ended without waiting for the wgmma issued at .*primitives_hopper_tests\.cu:\d+",
    3: r"wgmma_m64n128k16\(\) at .*: no wgmma_fence\(\) since the last wgmma_wait\(\)",
    4: r"shared_operand: the shared memory address is not aligned to 1024 bytes",
    6: r"the warps of a warpgroup disagree on its operands",
    7: r"lane 5 has written registers of the wgmma issued at .*, which was in flight",
    8: r"warp 2 issued 3 wgmma, warp 0 of its warpgroup 4",
    10: r"the block ended without waiting for the wgmma issued at",
    11: r"lanes of a warp disagree",
    12: r"(wgmma_m64n128k16: 16384|shared_operand: 1024) bytes at .* are not within the shared memory",
    13: r"no wgmma_fence\(\) since the last wgmma_wait\(\)",
}


@pytest.mark.parametrize("fault", WGMMA_FAULTS)
def test_misuse_of_wgmma_is_an_error(sim, fault):  # noqa: F811
    with pytest.raises(RuntimeError, match=WGMMA_FAULTS[fault]):
        wgmma(sim, "half", fault=fault)
    test_wgmma_layouts(sim, "half", True)


@pytest.mark.parametrize("fault", [1, 9], ids=["read before the wait", "read after a wait that is too weak"])
def test_registers_hold_nan_until_the_wait(sim, fault):  # noqa: F811
    got, _ = wgmma(sim, "bf16", fault=fault)
    assert np.isnan(got).all()


def test_plain_stores_without_a_fence_are_not_seen(sim):  # noqa: F811
    got, _ = wgmma(sim, "bf16", fault=5)
    assert np.isnan(got).all()


def test_wgmma_needs_a_whole_warpgroup(plain):  # noqa: F811
    with pytest.raises(RuntimeError, match="the warp is not part of a whole warpgroup"):
        plain.run_hopper_test(
            "wgmma_speed_half", None, None, np.zeros(96, np.float32), block=96, parameter=1, dynamic_bytes=192 * 128
        )


def test_two_groups_in_flight(sim):  # noqa: F811
    rng = np.random.default_rng(4)
    a_bits, a = rounded(rng.standard_normal((64, DEPTH)), "half")
    b_bits, b = rounded(rng.standard_normal((256, DEPTH)), "half")
    out = np.full((2, 128, 64), np.nan, np.float32)
    sim.run_hopper_test("two_groups", swizzle_128b(a_bits), swizzle_128b(b_bits), out, dynamic_bytes=320 * 128)
    want = a @ b.T
    for i in range(2):
        assert np.abs(out[i] - want[:, 128 * i : 128 * i + 128][ROW, COLUMN]).max() <= 2e-5


# ---- a pipeline -------------------------------------------------------------------------------------------------

PIPELINE_BYTES = 2 * 256 * 128 + 64


def pipeline(sim, kind, depth, fault=0):  # noqa: F811
    rng = np.random.default_rng(5)
    a_bits, a = rounded(rng.standard_normal((128, depth)), kind)
    b_bits, b = rounded(rng.standard_normal((128, depth)), kind)
    out = np.full((128, 128), np.nan, np.float32)
    sim.run_hopper_test(
        f"pipeline_{kind}", a_bits, b_bits, out, dynamic_bytes=PIPELINE_BYTES, parameter=depth, fault=fault
    )
    return out, a @ b.T


@pytest.mark.parametrize("kind,depth", [("half", 8), ("bf16", 64), ("half", 7 * 64 + 24)])
def test_pipeline(sim, kind, depth):  # noqa: F811
    got, want = pipeline(sim, kind, depth)
    assert np.abs(got - want).max() <= 1e-4


def test_a_stage_given_back_too_early_shows(plain):  # noqa: F811
    """wgmma reads the stage at the wait: by then the next copy has been issued, in some order of the threads."""
    shows = []
    for order, seed in (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)):
        plain.set_order(order, seed)
        try:
            got, _ = pipeline(plain, "half", 6 * 64, fault=1)
        except RuntimeError:
            shows.append(True)
        else:
            shows.append(bool(np.isnan(got).any()))
    plain.set_order("forward")
    assert any(shows)


PIPELINE_FAULTS = {
    2: r"deadlock.*mbarrier_wait\(\) at .* for parity 0 of the mbarrier at byte 65552 of the dynamic shared memory, "
    r"whose phase 0 lacks 2 of 2 arrivals",
    4: r"deadlock.*mbarrier_wait\(\)",
    5: r"expects 16384 bytes in this phase, with this copy 32768 are issued",
}


@pytest.mark.parametrize("fault", PIPELINE_FAULTS)
def test_misuse_of_a_pipeline_is_an_error(sim, fault):  # noqa: F811
    with pytest.raises(RuntimeError, match=PIPELINE_FAULTS[fault]):
        pipeline(sim, "half", 6 * 64, fault=fault)


def test_a_parity_that_never_changes_shows(sim):  # noqa: F811
    try:
        got, _ = pipeline(sim, "half", 8 * 64, fault=3)
    except RuntimeError:
        return
    assert np.isnan(got).any()


# ---- warpgroups -------------------------------------------------------------------------------------------------


def test_registers_change_hands(sim):  # noqa: F811
    out = np.zeros(384, np.int32)
    sim.run_hopper_test("registers", None, None, out, block=384)
    assert (out == 1).all()


@pytest.mark.parametrize(
    "fault,message",
    [
        (1, "was not called by all four warps of warpgroup 0"),
        (2, "take_registers: the warps of a warpgroup disagree"),
        (3, "the warpgroups take 66560 registers, the block was launched with 64512"),
        (4, r"take_registers<160>\(\) at .*: the warpgroup has 168 registers a thread"),
    ],
)
def test_misuse_of_registers(sim, fault, message):  # noqa: F811
    with pytest.raises(RuntimeError, match=message):
        sim.run_hopper_test("registers", None, None, np.zeros(384, np.int32), block=384, fault=fault)


@pytest.mark.parametrize("block,width", [(64, 64), (128, 32), (384, 128)])
def test_named_barriers(sim, block, width):  # noqa: F811
    a = np.random.default_rng(6).integers(0, 1000, block).astype(np.int32)
    out = np.zeros_like(a)
    sim.run_hopper_test("named_barrier", a, None, out, block=block, parameter=width)
    np.testing.assert_array_equal(out, a.reshape(-1, width)[:, ::-1].ravel() + 2)


@pytest.mark.parametrize(
    "fault,message",
    [
        (1, "barrier 0 is not one of 1 to 15"),
        (2, r"barrier 1 for \d+ threads, others wait there for \d+"),
        (3, r"deadlock.*waits at named_barrier_sync\(\) at .* of barrier 1, where 96 of 128 threads have come"),
        (4, "127 threads are not whole warps of the block"),
    ],
)
def test_misuse_of_named_barriers(sim, fault, message):  # noqa: F811
    a = np.zeros(128, np.int32)
    width = 64 if fault == 2 else 128
    with pytest.raises(RuntimeError, match=message):
        sim.run_hopper_test("named_barrier", a, None, a.copy(), block=128, parameter=width, fault=fault)


def test_elect_one(sim):  # noqa: F811
    out = np.zeros((3, 2), np.int32)
    sim.run_hopper_test("elect", None, None, out, block=96)
    np.testing.assert_array_equal(out, [[2, 1]] * 3)


def test_exp2_fast(plain):  # noqa: F811
    x = np.concatenate([np.linspace(-140, 20, 125), [-np.inf, -126.0, -126.5]]).astype(np.float32)
    out = np.zeros(128, np.float32)
    plain.run_hopper_test("exp2", x, None, out)
    want = np.where(x < -126, 0, np.exp2(x.astype(np.float64)))
    assert np.abs(out - want).max() <= 1e-6 * 2**20
    assert (np.abs(out - want) <= 2e-7 * want).all()


# ---- builds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_the_same_kernels_compile_with_nvcc(architecture):
    """sm_80: the library is built for both, so what is there for sm_90 alone must be guarded."""
    usual = "/usr/local/cuda/bin/nvcc"
    nvcc = shutil.which("nvcc") or (usual if Path(usual).exists() else None)
    if nvcc is None:
        pytest.skip("no nvcc")
    csrc = Path(__file__).resolve().parents[1] / "csrc"
    command = [nvcc, "-cubin", "-o", "/dev/null", f"-arch={architecture}", "-O3", "-std=c++17", "-Xptxas", "-v"]
    command += ["-Werror", "all-warnings", *(f"-I{csrc / d}" for d in (".", "include", "cuda"))]
    command += [str(csrc / "hostsim" / "primitives_hopper_tests.cu")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    text = done.stdout
    assert done.returncode == 0 and "warning" not in text.lower(), text
    assert "C7508" not in text, "setmaxnreg is ignored"
    assert "C7510" not in text, "wgmma are serialised"
    assert "pipeline_kernel" in text


# ---- launches ---------------------------------------------------------------------------------------------------


def test_shared_memory_of_a_hopper_launch(plain):  # noqa: F811
    a, out = np.zeros(2048, np.uint8), np.zeros(1024, np.uint8)
    run = plain.run_hopper_test
    run("bulk_load", a, None, out, dynamic_bytes=227 * 1024 - 8, numbers=[0, 0, 16])  # 8: the static mbarrier
    with pytest.raises(RuntimeError, match="232448 of dynamic shared memory: a block has at most 227 KB"):
        run("bulk_load", a, None, out, dynamic_bytes=227 * 1024, numbers=[0, 0, 16])
    with pytest.raises(RuntimeError, match="232464 bytes of dynamic shared memory"):
        run("bulk_load", a, None, out, dynamic_bytes=227 * 1024 + 16, numbers=[0, 0, 16])
