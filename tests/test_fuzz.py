"""The C++ entry points under random params, with AddressSanitizer and UBSan: see csrc/fuzz/fuzz_case.h."""

import functools
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

if os.environ.get("COSEGFLOW_HOSTSIM_MODULE"):
    pytest.skip("this is a run on a given module already", allow_module_level=True)
if shutil.which("g++") is None:
    pytest.skip("the fuzz target needs g++", allow_module_level=True)

REPO = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("fuzz_build", REPO / "csrc" / "fuzz" / "build.py")
fuzz_build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fuzz_build)

INPUTS = 2400
# Faults that a test on contiguous tensors of good sizes does not see, one of each kind, planted in copies.
PLANTED = {
    "reads beyond the mask": (
        "foreground_cpu.cpp", "for (int64_t x = 0; x < width; ++x) {", "for (int64_t x = 0; x <= width; ++x) {",
        "AddressSanitizer",
    ),
    "accepts anything": (
        "transfer_cpu.cpp", "  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;\n",
        "  if (p.batch == 0) return {};\n", "",
    ),
    "leaves excluded pixels unwritten": (
        "match_cpu.cpp", "if (nothing || !rows_.complete()) {", "if (nothing) {", "differs from one run to the next",
    ),
}  # fmt: skip


def run(program: Path, *options: str, isa: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COSEGFLOW_CPU_ISA": isa}
    return subprocess.run([program, *options], env=environment, capture_output=True, text=True)


@functools.cache
def program(kind: str) -> Path:
    return fuzz_build.build(kind)


@pytest.mark.parametrize("isa", ["", "scalar"])
def test_cpu(isa):
    done = run(program("cpu"), "--inputs", str(INPUTS), isa=isa)
    assert done.returncode == 0 and f"fuzz: {INPUTS} inputs" in done.stdout, done.stderr[-4000:]


@pytest.mark.timeout(1800)  # builds the simulated kernels under sanitizers, unless test_sanitizers did
def test_hostsim():
    inputs = INPUTS // 8  # each takes twenty times as long
    done = run(program("hostsim"), "--inputs", str(inputs))
    assert done.returncode == 0 and f"fuzz: {inputs} inputs" in done.stdout, done.stderr[-4000:]


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(tmp_path, fault):
    file, old, new, message = PLANTED[fault]
    shutil.copytree(REPO / "csrc", tmp_path / "csrc")
    path = tmp_path / "csrc" / "cpu" / file
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {file}"
    path.write_text(text.replace(old, new))
    kept = [o for o in program("cpu").parent.glob("*.o") if o.stem != path.stem]
    mutant = fuzz_build.build("cpu", tmp_path / "csrc", tmp_path / "build", kept)
    done = run(mutant, "--inputs", str(INPUTS))
    assert done.returncode != 0 and "fuzz: found by" in done.stderr, done.stdout
    assert message in done.stderr
