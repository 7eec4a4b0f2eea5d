"""The wrappers in csrc/cuda/primitives and the simulation they run in (csrc/hostsim), against plain NumPy.

Everything runs in several thread orders. Comparisons are written so that a NaN fails (`assert err <= tol`).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[1]
ORDERS = [("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)]


def _load_build():
    spec = importlib.util.spec_from_file_location("hostsim_build", REPO / "csrc" / "hostsim" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hostsim_build = _load_build()
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="hostsim needs g++")


@pytest.fixture(scope="session")
def plain():
    """The primitives alone: a broken kernel elsewhere must not take these tests down."""
    named = os.environ.get("COSEGFLOW_HOSTSIM_MODULE")
    out_dir = REPO / "build" / "hostsim" / "primitives-plain"
    return hostsim_build.import_module(named or hostsim_build.build(ops=["primitives"], out_dir=out_dir))


@pytest.fixture(params=ORDERS, ids=lambda p: f"{p[0]}{p[1]}")
def sim(plain, request):
    plain.set_order(*request.param)
    yield plain
    plain.set_order("forward", 0)


def to_bf16(x):
    """Rounds float32 to bfloat16 (nearest even), as its 16 bits."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(x, kind):
    """(the 16 bits, the values they stand for)"""
    if kind == "half":
        h = x.astype(np.float16)
        return h.view(np.uint16), h.astype(np.float64)
    bits = to_bf16(x)
    return bits, from_bf16(bits).astype(np.float64)


# ---- ldmatrix, mma ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiles", [2, 4])
@pytest.mark.parametrize("trans", [False, True])
def test_ldmatrix_layout(sim, tiles, trans):
    rows = np.arange(256, dtype=np.uint16).reshape(32, 8)
    out = np.zeros((32, tiles), np.uint32)
    sim.run_primitive_test(f"ldmatrix_x{tiles}" + ("_trans" if trans else ""), rows, None, out)
    for tile in range(tiles):
        m = rows[8 * tile : 8 * tile + 8]
        m = m.T if trans else m
        got = out[:, tile].copy().view(np.uint16).reshape(8, 8)  # lane t: row t/4, columns 2(t%4), +1
        np.testing.assert_array_equal(got, m)


@pytest.mark.parametrize("kind", ["half", "bf16"])
def test_mma_registers(sim, kind):
    """The register layout as the PTX manual writes it down, element by element."""
    rng = np.random.default_rng(0)
    a_bits, a = rounded(rng.standard_normal((16, 16)), kind)
    b_bits, b = rounded(rng.standard_normal((16, 8)), kind)
    d = rng.standard_normal((16, 8)).astype(np.float32)
    ra, rb, rd = np.zeros((32, 8), np.uint16), np.zeros((32, 4), np.uint16), np.zeros((32, 4), np.float32)
    position = np.zeros((32, 4, 2), int)
    for lane in range(32):
        group, in_group = lane >> 2, lane % 4
        for i in range(8):
            row = group if i < 2 or 4 <= i < 6 else group + 8
            column = in_group * 2 + (i & 1) + (8 if i >= 4 else 0)
            ra[lane, i] = a_bits[row, column]
        for i in range(4):
            rb[lane, i] = b_bits[in_group * 2 + (i & 1) + (8 if i >= 2 else 0), group]
            position[lane, i] = group + (8 if i >= 2 else 0), in_group * 2 + (i & 1)
            rd[lane, i] = d[tuple(position[lane, i])]
    sim.run_primitive_test(f"mma_registers_{kind}", ra, rb, rd)
    want = a @ b + d
    err = np.abs(rd - want[position[..., 0], position[..., 1]]).max()
    assert err <= 1e-5


@pytest.mark.parametrize("kind", ["half", "bf16"])
@pytest.mark.parametrize("trans", [False, True])
def test_mma_through_shared_memory(sim, kind, trans):
    rng = np.random.default_rng(1)
    a_bits, a = rounded(rng.standard_normal((16, 16)), kind)
    b_bits, b = rounded(rng.standard_normal((16, 8)), kind)
    d = rng.standard_normal((16, 8)).astype(np.float32)
    want = a @ b + d
    b_stored = np.ascontiguousarray(b_bits if trans else b_bits.T)
    sim.run_primitive_test(f"mma_{kind}" + ("_trans" if trans else ""), a_bits, b_stored, d)
    err = np.abs(d - want).max()
    assert err <= 1e-5


# ---- shuffles, votes, reductions, atomics -----------------------------------------------------------------------

TYPES = {"i32": np.int32, "u32": np.uint32, "i64": np.int64, "f32": np.float32, "f64": np.float64}


def shuffled(a, kind, operand, width):
    """PTX shfl, lane by lane."""
    out = a.copy()
    for t in range(len(a)):
        warp, lane = t // 32 * 32, t % 32
        first = lane - lane % width
        source = {
            "idx": first + operand % width,
            "up": lane - operand if lane - operand >= first else lane,
            "down": lane + operand if lane + operand < first + width else lane,
            "xor": lane ^ operand if (lane ^ operand) < first + width else lane,
        }[kind]
        out[t] = a[warp + source]
    return out


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["idx", "up", "down", "xor"])
def test_shuffles(sim, kind, dtype):
    a = (np.random.default_rng(2).standard_normal(96) * 1000).astype(TYPES[dtype])
    for width in (32, 16, 4):
        for operand in (0, 1, 3, 17):
            out = np.zeros_like(a)
            sim.run_primitive_test(f"shfl_{kind}_{dtype}", a, None, out, parameter=operand + 256 * width, block=96)
            np.testing.assert_array_equal(out, shuffled(a, kind, operand, width))


def test_votes(sim):
    for seed, density in enumerate((0.0, 0.02, 0.5, 1.0)):
        p = (np.random.default_rng(seed).random(128) < density).astype(np.int32)
        out = np.zeros((128, 6), np.int32)
        sim.run_primitive_test("vote", p, None, out, block=128)
        for warp in range(4):
            bits = p[32 * warp : 32 * warp + 32]
            got = out[32 * warp : 32 * warp + 32]
            ballot = int(sum(int(b) << i for i, b in enumerate(bits)))
            np.testing.assert_array_equal(got[:, 0].view(np.uint32), np.full(32, ballot, np.uint32))
            assert (got[:, 1] == bits.any()).all() and (got[:, 2] == bits.all()).all()
        assert (out[:, 3] == p.any()).all() and (out[:, 4] == p.all()).all() and (out[:, 5] == p.sum()).all()


def test_halves_of_a_warp_go_their_own_ways(sim):
    a = np.arange(64, dtype=np.int32)
    out = np.zeros_like(a)
    sim.run_primitive_test("half_warp", a, None, out, block=64)
    swapped = a ^ 1  # one exchange or three: the same
    want = np.concatenate([swapped[:32][::-1], swapped[32:][::-1]])
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("block", [32, 256, 1024])
def test_reductions(sim, dtype, block):
    a = np.random.default_rng(3).standard_normal(block).astype(TYPES[dtype])
    out = np.full((6, block), np.nan, a.dtype)
    sim.run_primitive_test(f"reduce_{dtype}", a, None, out, block=block)
    x = a.astype(np.float64)
    groups = lambda width, f: np.repeat(f(x.reshape(-1, width), axis=1), width)  # noqa: E731
    want = [groups(32, np.sum), groups(32, np.max), groups(8, np.sum), groups(4, np.max)]
    want += [np.full(block, x.sum()), np.full(block, (x * x).sum())]
    err = np.abs(out - np.stack(want)).max()
    assert err <= (1e-4 if dtype == "f32" else 1e-12)
    assert len(np.unique(out[4])) == 1  # bit-equal in all threads


def test_sums_do_not_depend_on_the_order(plain):
    a = np.random.default_rng(4).standard_normal(256).astype(np.float32)
    results = []
    for order, seed in ORDERS:
        plain.set_order(order, seed)
        out = np.zeros((6, 256), np.float32)
        plain.run_primitive_test("reduce_f32", a, None, out, block=256)
        results.append(out)
    plain.set_order("forward")
    for r in results[1:]:
        np.testing.assert_array_equal(r, results[0])


def test_atomics(sim):
    a = np.random.default_rng(5).integers(0, 8, 1000).astype(np.int32)
    out = np.zeros(9, np.float32)
    sim.run_primitive_test("atomic", a, None, out, parameter=1000, block=96, grid=11)
    np.testing.assert_array_equal(out, [*np.bincount(a, minlength=8), 11])


# ---- cp.async ---------------------------------------------------------------------------------------------------


def cp_async(sim, parameter, block=64):
    a = np.random.default_rng(6).standard_normal((2, block, 4)).astype(np.float32)
    out = np.zeros_like(a)
    sim.run_primitive_test("cp_async", a, None, out, parameter=parameter, block=block, dynamic_bytes=a.nbytes)
    return a, out


def test_cp_async_arrives_at_the_right_wait(sim):
    a, out = cp_async(sim, 0)
    np.testing.assert_array_equal(out, a)


def test_cp_async_too_weak_wait_shows(sim):
    a, out = cp_async(sim, 1)  # one group may still be in flight: the first has arrived
    np.testing.assert_array_equal(out[0], a[0])
    assert np.isnan(out[1]).all()


@pytest.mark.parametrize("parameter,first", [(2, False), (4, True)], ids=["no wait", "no commit"])
def test_cp_async_missing_wait_shows(sim, parameter, first):
    a, out = cp_async(sim, parameter)
    assert (out[0] == a[0]).all() if first else np.isnan(out[0]).all()
    assert np.isnan(out[1]).all()


def test_cp_async_zero_fill(sim):
    a, out = cp_async(sim, 3)
    a[:, 1::2] = 0
    np.testing.assert_array_equal(out, a)


def test_cp_async_overwrites_at_issue(sim):
    a, out = cp_async(sim, 6)
    assert np.isnan(out[0]).all()
    np.testing.assert_array_equal(out[1], a[1])


def test_cp_async_misaligned(sim):
    with pytest.raises(RuntimeError, match=r"cp\.async: the shared memory address is not aligned to 16 bytes"):
        cp_async(sim, 5)


def test_cp_async_beyond_shared_memory(sim):
    a = np.zeros((2, 64, 4), np.float32)
    with pytest.raises(RuntimeError, match="not within the shared memory"):
        sim.run_primitive_test("cp_async", a, None, a.copy(), block=64, dynamic_bytes=a.nbytes - 16)


# ---- shared memory, thread orders -------------------------------------------------------------------------------


def test_shared_memory_starts_as_nan_in_every_block(sim):
    out = np.zeros((5, 64), np.float32)
    sim.run_primitive_test("poison", None, None, out, grid=5, dynamic_bytes=128)
    assert np.isnan(out).all()


def test_mirror(sim):
    a = np.arange(100, dtype=np.float32)
    out = np.zeros_like(a)
    sim.run_primitive_test("mirror", a, None, out, block=100, dynamic_bytes=400)
    np.testing.assert_array_equal(out, a[::-1])


def test_missing_barrier_shows(sim):
    out = np.zeros(100, np.float32)
    sim.run_primitive_test(
        "mirror_without_barrier", np.arange(100, dtype=np.float32), None, out, block=100, dynamic_bytes=400
    )
    assert np.isnan(out).any()


def test_random_order_repeats_with_its_seed(plain):
    a = np.arange(100, dtype=np.float32)

    def run(seed):
        plain.set_order("random", seed)
        out = np.zeros_like(a)
        plain.run_primitive_test("mirror_without_barrier", a, None, out, block=100, dynamic_bytes=400)
        return np.isnan(out)

    first = run(7)
    assert (run(7) == first).all() and (run(8) != first).any()
    plain.set_order("forward")


def test_unknown_order(plain):
    with pytest.raises(ValueError, match="'forward', 'reverse' or 'random'"):
        plain.set_order("backward")


# ---- kernels that are wrong -------------------------------------------------------------------------------------

WRONG = {
    0: (64, r"divergent barrier: .*(has|have) returned"),
    1: (64, r"divergent barrier: thread .* waits at __syncthreads\(\) at .*:\d+ while thread .* waits at .*:\d+"),
    2: (32, r"divergent warp: .*__shfl_down_sync with mask 0xffffffff"),
    3: (32, r"__syncwarp with mask 0x0000000f, which does not name the caller"),
    4: (64, r"deadlock: no thread can run.*__syncthreads\(\).*__syncwarp"),
    5: (32, r"livelock"),
    6: (32, r"(divergent warp|deadlock): .*__syncwarp"),
    7: (32, r"thread \(3, 0, 0\): __trap"),
    8: (64, r"divergent barrier: .*(has|have) returned"),
}


@pytest.mark.parametrize("parameter", WRONG)
def test_wrong_kernels_are_reported(sim, parameter):
    block, message = WRONG[parameter]
    out = np.zeros(64, np.int32)
    with pytest.raises(RuntimeError, match=message) as error:
        sim.run_primitive_test("wrong", None, None, out, parameter=parameter, block=block, grid=3)
    assert "wrong_kernel" in str(error.value) or "primitives_tests.cu" in str(error.value)
    assert "block (" in str(error.value)
    test_mirror(sim)  # and the next launch is fine


@pytest.mark.parametrize(
    "kwargs,message",
    [
        ({"block": 1056}, "block of \\(1056, 1, 1\\) threads"),
        ({"dynamic_bytes": 240 * 1024}, "245760 bytes of dynamic shared memory"),
    ],
)
def test_impossible_launches(plain, kwargs, message):
    with pytest.raises(RuntimeError, match=message):
        plain.run_primitive_test("mirror", np.zeros(2048, np.float32), None, np.zeros(2048, np.float32), **kwargs)


def test_partial_warp_cannot_mma(plain):
    with pytest.raises(RuntimeError, match="mma_m16n8k16 needs 32 threads"):
        plain.run_primitive_test("mma_speed_half", None, None, np.zeros(48, np.float32), block=48, parameter=1)


def test_empty_grid_is_fine(plain):
    out = np.zeros(4, np.float32)
    plain.run_primitive_test("mirror", out, None, out, grid=0, dynamic_bytes=400)


@pytest.mark.parametrize("parameter,message", [(1, "shared variable 'row'"), (3, "dynamic shared memory")])
def test_stray_writes_show_without_sanitizer(sim, parameter, message):
    a = np.zeros(64, np.float32)
    with pytest.raises(RuntimeError, match="wrote beyond the end of the " + message):
        sim.run_primitive_test("overrun", a, None, a.copy(), parameter=parameter, dynamic_bytes=128)


# ---- the other builds -------------------------------------------------------------------------------------------

CHILD = """
import importlib.util, numpy as np
spec = importlib.util.spec_from_file_location("build", {build!r})
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
sim = build.import_module({module!r})
a = np.zeros(32, np.float32)
sim.run_primitive_test("overrun", a, None, np.zeros(32, np.float32), parameter={parameter}, dynamic_bytes=128)
print("SURVIVED")
"""


@pytest.fixture(scope="session")
def asan_path():
    return hostsim_build.build("asan", ops=["primitives"], out_dir=REPO / "build" / "hostsim" / "primitives-asan")


def python(code_or_args, env):
    return subprocess.run(
        [sys.executable, *code_or_args], env={**os.environ, **env}, capture_output=True, text=True, cwd=REPO
    )


@pytest.mark.parametrize(
    "parameter",
    [0, 1, 2, 3, 4, 5],
    ids=["static read", "static write", "dynamic read", "dynamic write", "global read", "within"],
)
def test_asan_catches_overruns(asan_path, parameter):
    code = CHILD.format(build=hostsim_build.__file__, module=str(asan_path), parameter=parameter)
    done = python(["-c", code], hostsim_build.sanitizer_env())
    if parameter == 5:  # the control: nothing out of bounds
        assert done.returncode == 0 and "SURVIVED" in done.stdout, done.stderr
        return
    assert done.returncode != 0 and "SURVIVED" not in done.stdout
    # UBSan may come first: the row's type says how long it is.
    assert "heap-buffer-overflow" in done.stderr or "runtime error: index 32 out of bounds" in done.stderr, done.stderr
    assert "overrun_kernel" in done.stderr


@pytest.mark.skipif("COSEGFLOW_HOSTSIM_MODULE" in os.environ, reason="this is the inner run")
@pytest.mark.parametrize("variant", ["asan", "ucontext"])
def test_all_of_the_above_in_the_other_builds(variant, request):
    """Fibers that report to AddressSanitizer, and the portable fibers, behave as the plain ones do."""
    if variant == "asan":
        path = request.getfixturevalue("asan_path")
    else:  # only the files that know how a fiber works differ from the plain build
        request.getfixturevalue("plain")
        folder = REPO / "build" / "hostsim"
        reuse = {"reuse": folder / "primitives-plain", "changed": ["hostsim/fiber.h", "hostsim/fiber.cpp"]}
        path = hostsim_build.build(variant, ops=["primitives"], out_dir=folder / "primitives-ucontext", **reuse)
    env = {"COSEGFLOW_HOSTSIM_MODULE": str(path)}
    if variant == "asan":
        env |= hostsim_build.sanitizer_env()
    chosen = "not asan_catches and not stray_writes and not other_builds and not nvcc"
    files = [__file__, str(Path(__file__).with_name("test_primitives_hopper.py"))]
    done = python(["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *files, "-k", chosen], env)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "WARNING: ASan" not in done.stderr
