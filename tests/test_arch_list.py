"""What setup.py builds for, from the visible GPUs and TORCH_CUDA_ARCH_LIST; nothing is built here."""

import runpy
from pathlib import Path

import pytest

from cosegflow import _arch_list, _library, info

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ([], "8.0+PTX;9.0a"),
        ([(9, 0)], "8.0+PTX;9.0a"),  # torch would say 9.0+PTX, which has no wgmma
        ([(9, 0), (9, 0)], "8.0+PTX;9.0a"),
        ([(8, 0)], "8.0+PTX"),
        ([(8, 6), (8, 6)], "8.6+PTX"),
        ([(9, 0), (8, 0)], "8.0+PTX;9.0a"),
        ([(8, 9), (9, 0), (8, 6)], "8.6+PTX;8.9;9.0a"),
        ([(9, 0), (10, 0)], "9.0a;10.0+PTX"),
        ([(12, 0)], "12.0+PTX"),
        ([(7, 5)], "7.5;8.0+PTX"),
        ([(7, 5), (9, 0)], "7.5;8.0+PTX;9.0a"),
        ([(13, 0)], "8.0+PTX;9.0a"),  # newer than nvcc: compiles the PTX
        ([(8, 6), (13, 0)], "8.6+PTX"),
    ],
)
def test_the_visible_gpus_choose(visible, expected):
    assert _arch_list.choose(visible, newest=(12, 1)) == expected


@pytest.mark.parametrize(
    ("arch_list", "sm90a", "lacks"),
    [
        ("8.0+PTX;9.0a", True, False),
        ("9.0a+PTX", True, False),
        ("8.0 9.0a", True, False),
        ("9.0;9.0a", True, False),
        ("9.0", False, True),
        ("8.0;9.0+PTX", False, True),
        ("Ampere;Hopper", False, True),
        ("8.0;8.6+PTX", False, False),
        ("", False, False),
    ],
)
def test_what_a_list_has_of_hopper(arch_list, sm90a, lacks, monkeypatch):
    assert _arch_list.has_sm90a(arch_list) == sm90a
    assert _arch_list.macros(arch_list) == (["-DCOSEGFLOW_SM90A=1"] if sm90a else [])
    assert (_arch_list.lack(arch_list) is not None) == lacks
    monkeypatch.setattr(_library, "build_info", lambda: {"cuda": "13.0", "arch_list": arch_list or None})
    text = info.report()
    assert ("no kernel uses Hopper's own" in text) == lacks
    assert f"architectures    {arch_list or '-'}" in text


def test_the_list_needs_no_torch():
    """setup.py runs the file: the package cannot be imported before it is built."""
    names = runpy.run_path(str(ROOT / "cosegflow" / "_arch_list.py"))
    assert names["choose"]([]) == _arch_list.DEFAULT
    assert "import torch" not in (ROOT / "cosegflow" / "_arch_list.py").read_text()


def test_setup_takes_the_users_list_and_says_what_it_lacks(monkeypatch, capsys):
    """What setup.py does before it compiles, with a Hopper GPU in sight."""
    import setuptools
    import torch

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    names = runpy.run_path("setup.py", run_name="setup")
    home = names["CUDA_HOME"]
    if home is None:
        pytest.skip("no CUDA toolkit")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    for given, expected in ((None, "8.0+PTX;9.0a"), ("native", "8.0+PTX;9.0a"), ("9.0", "9.0")):
        if given is None:
            monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
        else:
            monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", given)
        assert names["arch_list"](home) == expected
