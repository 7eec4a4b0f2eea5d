"""Which cosegflow is checked: a wheel that is unpacked, the checkout itself, the installed one, or one built now."""

import hashlib
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from .process import execute, last_lines
from .source_digest import source_digest

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "build" / "gpu-check"


class SetupError(Exception):
    """One line about what cannot be used."""


def unpack(wheel: Path, folder: Path) -> Path:
    """Unpacks a wheel; the folder that holds the package.

    Raises:
        SetupError: it is no wheel of cosegflow.
    """
    if not wheel.is_file():
        raise SetupError(f"--wheel: no such file: {wheel}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    except zipfile.BadZipFile:
        raise SetupError(f"--wheel: not a wheel: {wheel}") from None
    if not (folder / "cosegflow" / "__init__.py").exists():
        raise SetupError(f"--wheel: no wheel of cosegflow: {wheel}")
    return folder


def installed() -> Path:
    """The folder that holds the installed package.

    Raises:
        SetupError: there is none.
    """
    elsewhere = [p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "benchmarks")]
    spec = PathFinder.find_spec("cosegflow", elsewhere)
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).resolve().parents[1]
    for finder in sys.meta_path:  # an editable install has a finder of its own
        find = getattr(finder, "find_spec", None)
        spec = find("cosegflow", None) if find is not None and finder is not PathFinder else None
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).resolve().parents[1]
    raise SetupError("--installed: no cosegflow is installed for this python; --wheel PATH takes a wheel")


def is_built(folder: Path) -> bool:
    """Whether the package in this folder has its compiled parts."""
    package = folder / "cosegflow"
    return (package / "libcosegflow.so").exists() and any(package.glob("_C*.so"))


def build_command(folder: Path) -> list[str]:
    """Builds a wheel of the checkout against this python's torch."""
    return [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder),
            str(ROOT)]  # fmt: skip


def build(limit_s: float, environment: Mapping[str, str]) -> Path:
    """Builds the wheel, unless it is there already; a changed checkout: `rm -r build/gpu-check` or --fresh.

    Raises:
        SetupError: the build failed or took too long.
    """
    found = sorted(BUILT.glob("cosegflow-*.whl"))
    if not found:
        BUILT.mkdir(parents=True, exist_ok=True)
        done = execute(build_command(BUILT), limit_s, environment, ROOT)
        found = sorted(BUILT.glob("cosegflow-*.whl"))
        if done.exit != 0 or not found:
            why = "ran past the time budget" if done.exit is None else " | ".join(last_lines(done.output, 2))
            raise SetupError(f"building the wheel failed: {why}")
    return found[-1]


def locate(
    wheel: Path | None, use_installed: bool, fresh: bool, limit_s: float, environment: Mapping[str, str]
) -> tuple[Path, "tempfile.TemporaryDirectory[str] | None"]:
    """The folder that holds the package to check, and the temporary folder to keep as long as it is used.

    Raises:
        SetupError: there is none, or it cannot be used.
    """
    if use_installed:
        return installed(), None
    if wheel is None and is_built(ROOT):
        return ROOT, None
    temporary = tempfile.TemporaryDirectory(prefix="cosegflow-check-")
    try:
        if wheel is None:
            if fresh:
                for old in BUILT.glob("cosegflow-*.whl"):
                    old.unlink()
            wheel = build(limit_s, environment)
        return unpack(wheel, Path(temporary.name)), temporary
    except SetupError:
        temporary.cleanup()
        raise


def environment_of(home: Path) -> dict[str, str]:
    """The environment of children: the package first, then the checkout for `benchmarks`."""
    paths = list(dict.fromkeys([str(home), str(ROOT)]))
    kept = {k: v for k, v in os.environ.items() if k not in ("COSEGFLOW_SIMPLE", "COSEGFLOW_PORTABLE", "PYTHONPATH")}
    other = os.environ.get("PYTHONPATH")
    return {**kept, "PYTHONPATH": os.pathsep.join([*paths, *([other] if other else [])])}


def digest(*patterns: str, root: Path, without: str = "") -> str:
    """A short hash of the names and contents of files below `root`, but for those of the name `without`."""
    total = hashlib.sha256()
    for pattern in patterns:
        for file in sorted(f for f in root.glob(pattern) if f.name != without):
            total.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()[:16]


def build_digest(home: Path) -> str:
    """Of the package's code, compiled or not."""
    return digest("cosegflow/**/*.py", "cosegflow/*.so", root=home)


def kernel_digest(root: Path = ROOT) -> str:
    """Of the CUDA kernels' sources: what a result verified holds for these alone."""
    patterns = ("csrc/cuda/**/*.cu", "csrc/cuda/**/*.cuh", "csrc/common/**/*.h", "csrc/include/**/*.h")
    return digest(*patterns, root=root, without="version.h")  # a new version is not another kernel


def build_info(home: Path) -> dict[str, Any]:
    """What the build of the package recorded; empty where it recorded nothing."""
    path = home / "cosegflow" / "_build_info.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def other_sources(home: Path, root: Path = ROOT) -> str | None:
    """How the sources of the package's binaries differ from the checkout's; None where they are the same."""
    built, here = build_info(home).get("sources"), source_digest(root)
    if built == here:
        return None
    return f"is of csrc {built}, this checkout has {here}" if built else "does not record what it was built from"
