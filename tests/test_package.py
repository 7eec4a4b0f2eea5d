"""What is built and how it fails: symbols, build messages, info. C++ use: test_cpp_use.py."""

import runpy
import sys
from pathlib import Path

import audit_wheel
import pytest
import torch
from commands import run

import cosegflow
from cosegflow import _library, info

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(cosegflow.__file__).parent
HEADERS = sorted((ROOT / "csrc" / "include" / "cosegflow").glob("*.h"))


def test_only_the_api_is_exported():
    lines = run("nm", "-D", "-C", "--defined-only", PACKAGE / "libcosegflow.so").splitlines()
    exported = {line.split(" ", 2)[2].split("(")[0] for line in lines if " T " in line}
    declared = {
        f"cosegflow::{words[i]}"
        for header in HEADERS
        for line in header.read_text().splitlines()
        if line.startswith("COSEGFLOW_API")
        for words in [line.replace("(", " ").split()]
        for i in [2]
    }
    if not _library.HAS_CUDA_KERNELS:
        declared = {d for d in declared if not d.endswith("_cuda")}
    assert exported == declared


def test_links_neither_cuda_nor_torch_where_it_must_not():
    kernels, binding = (audit_wheel.dynamic(PACKAGE / name)["NEEDED"] for name in ("libcosegflow.so", "_C.abi3.so"))
    assert not [n for n in kernels if "torch" in n or "cudart" in n or "c10" in n], kernels
    assert not [n for n in binding if "cuda" in n], binding
    assert "libcosegflow.so" in binding


def test_setup_without_torch_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match=r"pip install --no-build-isolation \.") as failure:
        runpy.run_path("setup.py")
    assert "pip install 'torch>=2.10'" in str(failure.value)


def test_setup_refuses_contradiction(monkeypatch):
    monkeypatch.setenv("COSEGFLOW_CPU_ONLY", "1")
    monkeypatch.setenv("COSEGFLOW_FORCE_CUDA", "1")
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="COSEGFLOW_FORCE_CUDA is set, but COSEGFLOW_CPU_ONLY is set"):
        runpy.run_path("setup.py")


def test_info_tells_all():
    text = run(sys.executable, "-m", "cosegflow.info")
    for word in (
        cosegflow.__version__,
        torch.__version__,
        "CUDA kernels",
        "architectures",
        "backend cpu",
        "backend cuda",
    ):
        assert word in text
    assert "backend cpu      works" in text
    works, reason = info.cuda_status()
    assert works == torch.cuda.is_available() or reason


def test_a_failed_load_is_told_at_the_first_call(monkeypatch):
    assert cosegflow.is_available()
    monkeypatch.setattr(_library, "_load_error", ImportError("libc10.so: undefined symbol"))
    assert not cosegflow.is_available()
    with pytest.raises(RuntimeError, match=r"could not be loaded: libc10.so: undefined symbol.*torch >= 2.10"):
        cosegflow.warp(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, 2))


def test_kernels_need_only_torch_and_numpy():
    """Importing cosegflow and calling an operation imports nothing of the joint layer."""
    code = """if True:
        import sys, torch, cosegflow
        cosegflow.match(torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3))
        heavy = {"lightning", "pytorch_lightning", "torchmetrics", "skimage", "matplotlib", "efficientnet_lite_pytorch"}
        print(sorted(heavy & set(sys.modules)))
    """
    assert run(sys.executable, "-c", code).strip() == "[]"
