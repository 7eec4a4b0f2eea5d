"""What is handed out: the sdist, the wheel that is built from it, the audit, and the choice of torch and Python."""

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import audit_wheel
import install_matrix
import pytest
from commands import run

import cosegflow

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(cosegflow.__file__).parent
CLAIMED_GLIBC = (2, 34)  # docs/wheels.md


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build" / ".sdist-lock", "w") as lock:  # setuptools collects it in the checkout: one at a time
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(sys.executable, "-c", "import sys; from setuptools.build_meta import build_sdist as b; b(sys.argv[1])",
            folder, cwd=ROOT)  # fmt: skip
    (made,) = folder.glob("cosegflow-*.tar.gz")
    return made


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="compares with the files that git knows: no checkout")
def test_sdist_holds_what_builds_and_no_products(sdist):
    with tarfile.open(sdist) as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    generated = {name for name in held if name.startswith("cosegflow.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert held - generated <= set(listed)
    needed = re.compile(
        r"(csrc/(common|cpu|cuda|include|torch)|cosegflow|examples)/|benchmarks/.*\.py$|[^/]*\.(toml|py)$"
    )
    assert {name for name in listed if needed.match(name)} <= held
    assert {"LICENSE", "README.md", "tests/smoke.py"} <= held
    assert sdist.stat().st_size < 2**20


def test_cpu_only_wheel_of_the_sdist_works_and_says_so(sdist, tmp_path):
    """The one CPU-only build of the tests: sdist, wheel, audit, pip install, an operation."""
    pytest.importorskip("auditwheel", reason="the wheel extra is not installed")
    unpacked = ROOT / "build" / "from-sdist"  # at one place, with the times of the archive: only what changed compiles
    unpacked.mkdir(parents=True, exist_ok=True)
    for old in unpacked.iterdir():
        if old.name != "build":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    with tarfile.open(sdist) as archive:
        for member in archive:
            member.name = member.name.partition("/")[2] or "."
            archive.extract(member, unpacked)
    pip = [sys.executable, "-m", "pip"]
    built = subprocess.run(
        [*pip, "wheel", "--verbose", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path / "built", unpacked],
        env={**os.environ, "COSEGFLOW_CPU_ONLY": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    assert "WITHOUT CUDA kernels: COSEGFLOW_CPU_ONLY is set" in built.stdout + built.stderr
    (wheel,) = (tmp_path / "built").glob("*.whl")
    assert "-linux_" in wheel.name and audit_wheel.faults(wheel)
    audited = audit_wheel.audit(wheel, tmp_path / "audited")
    run(*pip, "install", "--no-deps", "--no-index", "--target", tmp_path / "site", audited)
    assert json.loads((tmp_path / "site/cosegflow/_build_info.json").read_text())["cuda"] is None
    code = """if True:
        import sys, torch, cosegflow
        from cosegflow import _library, cpp_paths, info
        assert (cpp_paths.include_dir() / "cosegflow" / "match.h").is_relative_to(sys.argv[1])
        assert cosegflow.__file__.startswith(sys.argv[1])
        assert torch.equal(cosegflow.warp(torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2, 2)), torch.ones(1, 1, 2, 2))
        assert "built without CUDA kernels: COSEGFLOW_CPU_ONLY is set" in info.report()
        try:
            _library.require(torch.device("cuda"))
        except RuntimeError as error:
            assert "no CUDA kernels" in str(error) and "COSEGFLOW_FORCE_CUDA=1" in str(error)
        else:
            raise AssertionError
    """
    run(sys.executable, "-c", code, tmp_path, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")})


@pytest.mark.parametrize("name", ["_C.abi3.so", "libcosegflow.so"])
def test_needs_no_newer_glibc_than_the_wheels_tag_says(name):
    here = tuple(map(int, platform.libc_ver()[1].split(".")))
    if here > (2, 36):
        pytest.skip(
            f"built beside glibc {'.'.join(map(str, here))}, which binds to its own symbols; releases beside 2.36"
        )
    lines = run("nm", "-D", "--undefined-only", PACKAGE / name).splitlines()
    versions = {line: tuple(map(int, m[1].split("."))) for line in lines if (m := re.search(r"@GLIBC_([\d.]+)", line))}
    assert versions
    assert not [line for line, version in versions.items() if version > CLAIMED_GLIBC]


def test_the_binding_is_abi3_and_a_private_symbol_is_seen(tmp_path):
    pytest.importorskip("abi3audit", reason="the wheel extra is not installed")
    audit_wheel.tool("abi3audit", "--strict", "--assume-minimum-abi3", "3.10", PACKAGE / "_C.abi3.so")
    source = "extern int _PyLong_Sign(void*); int f(void* x) { return _PyLong_Sign(x); }"
    run("gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", tmp_path / "planted.abi3.so", input=source)
    with pytest.raises(SystemExit, match="_PyLong_Sign"):
        audit_wheel.tool(
            "abi3audit", "--strict", "--verbose", "--assume-minimum-abi3", "3.10", tmp_path / "planted.abi3.so"
        )


def test_the_libraries_find_each_other():
    binding, kernels = (audit_wheel.dynamic(PACKAGE / name) for name in ("_C.abi3.so", "libcosegflow.so"))
    assert audit_wheel.link_faults(binding, kernels) == []
    renamed = audit_wheel.link_faults(
        {"NEEDED": ["libcosegflow-1a2b.so"], "RUNPATH": ["$ORIGIN/../cosegflow.libs"]}, {}
    )
    assert [fault.split(" ")[0] for fault in renamed] == ["libcosegflow.so", "_C.abi3.so", "_C.abi3.so"]


def test_a_wheel_with_other_libraries_and_another_tag_is_refused(tmp_path):
    wheel = tmp_path / "cosegflow-0.1.0-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in (
            *audit_wheel.BESIDE,
            "cosegflow/_C.abi3.so",
            "cosegflow.libs/libtorch_cpu-12ab.so",
            "tests/smoke.py",
        ):
            archive.writestr(name, "")
    assert audit_wheel.faults(wheel) == [
        f"the name {wheel.name} does not end as in -cp310-abi3-manylinux_2_34_x86_64.whl",
        "it has cosegflow.libs/libtorch_cpu-12ab.so",
        "it has tests/smoke.py",
        "it lacks cosegflow/libcosegflow.so",
    ]


def plant(folder: Path, name: str, script: str) -> Path:
    """An executable that stands for a Python."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_pythons_are_those_that_answer(tmp_path, monkeypatch):
    plant(tmp_path / "path", "python3.9", "echo 3 9 1")
    plant(tmp_path / "path", "python3.14", "exit 127")  # as a shim of pyenv does
    plant(tmp_path / "path", "python3.15", "echo")  # a pre-release
    plant(tmp_path / "path", "python3.13-config", "echo 3 13 9")
    oldest = plant(tmp_path / "path", "python3.10", "echo 3 10 2")
    newest = plant(tmp_path / "pyenv", "python3.14", "echo 3 14 1")
    plant(tmp_path / "pyenv", "python3.10", "echo 3 10 2")
    itself = plant(tmp_path / "venv", "python", "echo 3 12 7")
    monkeypatch.setattr(sys, "executable", str(itself))
    found = install_matrix.interpreters([tmp_path / "path", tmp_path / "none", tmp_path / "pyenv"], (3, 10))
    assert found == {(3, 10, 2): oldest, (3, 12, 7): itself, (3, 14, 1): newest}
    assert list(found) == sorted(found)
    assert install_matrix.select("oldest", found) == ("oldest", (3, 10, 2))
    assert install_matrix.select("newest", found) == ("newest", (3, 14, 1))
    assert install_matrix.select("2.13.0:3.10", found) == ("2.13.0", (3, 10, 2))
    with pytest.raises(SystemExit, match=r"no Python 3\.77 here, only 3\.10\.2"):
        install_matrix.select("2.13.0:3.77", found)


def test_torch_is_the_nearest_release():
    printed = (
        "torch (2.14.1)\nAvailable versions: 2.14.1, 2.14.0rc1, 2.13.0+cpu, 2.13.0, 2.11.0, 2.9.1\n  LATEST: 2.14.1\n"
    )
    available = install_matrix.released(printed, (2, 10))
    assert available == [(2, 11, 0), (2, 13, 0), (2, 14, 1)]
    assert install_matrix.nearest((2, 10), available) == (2, 11, 0)
    assert install_matrix.nearest((2, 12, 1), available) == (2, 13, 0)
    assert install_matrix.nearest((2, 99), available) == (2, 14, 1)
    assert install_matrix.released("ERROR: no matching distribution", (2, 10)) == []


def test_the_matrix_names_what_failed(tmp_path, monkeypatch, capsys):
    wheel = tmp_path / "cosegflow-0.1.0-cp310-abi3-manylinux_2_34_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("cosegflow-0.1.0.dist-info/METADATA", "Requires-Python: >=3.10\nRequires-Dist: torch>=2.10\n")
    working = plant(tmp_path / "path", "python3.98", "echo 3 98 0")  # makes no environment, and says nothing
    failing = plant(tmp_path / "path", "python3.99", 'test "$1" = -c && echo 3 99 0')
    monkeypatch.setattr(install_matrix, "python_folders", lambda: [tmp_path / "path"])

    def main(torch: str) -> None:
        monkeypatch.setattr(sys, "argv", ["install_matrix.py", "--wheel", str(wheel), "--torch", torch])
        install_matrix.main()

    assert working.exists() and failing.exists()
    with pytest.raises(SystemExit, match="2 of 2 installations failed"):
        main("2.13.0:3.98,newest")
    printed = capsys.readouterr().out
    assert "| 3.99.0 | - | failed: venv |" in printed and "| 3.98.0 | - | failed: " in printed
    with pytest.raises(SystemExit):
        main("latest")
    assert "--torch: 'latest' is none of oldest, newest, 2.13.0, 2.13.0:3.12" in capsys.readouterr().err
    monkeypatch.setattr(install_matrix, "NEEDED_GB", 2**40)
    with pytest.raises(SystemExit, match=r"GB of disk are free, needs \d+"):
        main("newest")
