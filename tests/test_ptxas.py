"""nvcc compiles every kernel with warnings as errors; no kernel spills, and each stays in its register budget."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").rglob("*.cu"))
ARCHITECTURES = ("sm_80", "sm_90a")

# Registers per thread that a kernel may use on any architecture: 65536 / (threads per block x blocks that should fit).
BUDGET: dict[str, int] = {}


def find_nvcc() -> str | None:
    """nvcc of the toolkit, or None."""
    usual = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(usual) if usual.exists() else None)


@lru_cache
def report(source: Path, architecture: str) -> tuple[int, str]:
    """Exit code and the output of nvcc with the report of ptxas, demangled."""
    nvcc = find_nvcc()
    assert nvcc is not None
    command = [
        nvcc,
        "-cubin",
        "-o",
        "/dev/null",
        f"-arch={architecture}",
        "-O3",
        "-std=c++17",
        "-Werror",
        "all-warnings",
    ]
    command += [
        "-Xptxas",
        "-v",
        "--expt-relaxed-constexpr",
        *(f"-I{ROOT / 'csrc' / d}" for d in (".", "include", "cuda")),
    ]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    names = subprocess.run(["c++filt"], input=done.stdout + done.stderr, capture_output=True, text=True)
    return done.returncode, names.stdout


@pytest.fixture(scope="module")
def reports() -> dict[tuple[Path, str], tuple[int, str]]:
    """Every source for every architecture, two at a time."""
    if find_nvcc() is None:
        pytest.skip("no nvcc: hostsim compiles the same sources with g++")
    jobs = [(s, a) for s in SOURCES for a in ARCHITECTURES]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(jobs, pool.map(lambda job: report(*job), jobs), strict=True))


def kernels(text: str) -> list[tuple[str, int, str]]:
    """(name, registers, the lines about it) of each kernel in a report."""
    found = []
    for part in text.split("Compiling entry function ")[1:]:
        name = re.search(r"(\w+_kernel)\b", part)
        registers = re.search(r"Used (\d+) registers", part)
        assert name and registers, part
        found.append((name.group(1), int(registers.group(1)), part))
    return found


def test_compiles_without_warnings(reports):
    for (source, architecture), (code, text) in reports.items():
        assert code == 0, f"{source.name} for {architecture}:\n{text}"
        assert "warning" not in text.lower(), f"{source.name} for {architecture}:\n{text}"
        assert "C7508" not in text, f"{source.name}: setmaxnreg is ignored"


def test_no_spills_and_within_budget(reports):
    seen: dict[str, int] = {}
    for (source, architecture), (_, text) in reports.items():
        for name, registers, part in kernels(text):
            spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
            assert spills, part
            assert spills.groups() == ("0", "0"), f"{name} of {source.name} spills on {architecture}: {part}"
            seen[name] = max(seen.get(name, 0), registers)
    over = {name: f"{n} > {BUDGET.get(name)}" for name, n in seen.items() if not n <= BUDGET.get(name, 0)}
    assert not over, f"over the register budget (or not in the table BUDGET): {over}; measured: {seen}"
    assert set(BUDGET) == set(seen), f"in the table but nowhere else: {set(BUDGET) - set(seen)}"
