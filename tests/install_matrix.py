"""Installs a wheel with pip under the oldest and the newest torch and Python that it supports, and runs smoke.py there:

python tests/install_matrix.py --wheel dist/cosegflow-*.whl --torch oldest,newest

`oldest` is the oldest torch under the oldest Python of this machine, `newest` the newest under the newest; a version,
as 2.13.0 or 2.13.0:3.12, is tried under the newest Python, or under the one that is named. Pythons are those on PATH,
pyenv's, and the one that runs this. Each environment takes some 5 GB below build/, and is removed at its end.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED_GB = 8  # of disk for one environment, and for what pip unpacks on the way
PROBE = """
import ensurepip, sys, sysconfig, venv
usable = sys.version_info.releaselevel == "final" and not sysconfig.get_config_var("Py_GIL_DISABLED")
print(*(sys.version_info[:3] if usable else ()))
"""

Version = tuple[int, ...]


def version_of(text: str) -> Version:
    """(3, 12) of "3.12"."""
    return tuple(int(part) for part in text.split("."))


def text_of(version: Version) -> str:
    """ "3.12" of (3, 12)."""
    return ".".join(map(str, version))


@dataclass(frozen=True)
class Wheel:
    """A wheel and the least Python and torch that its metadata asks for."""

    path: Path
    python: Version
    torch: Version

    @staticmethod
    def read(path: Path) -> "Wheel":
        """Exits where the metadata does not name both."""
        with zipfile.ZipFile(path) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            text = archive.read(name).decode()
        python = re.search(r"^Requires-Python: >=([\d.]+)$", text, re.MULTILINE)
        torch = re.search(r"^Requires-Dist: torch>=([\d.]+)$", text, re.MULTILINE)
        if not python or not torch:
            sys.exit(f"{path.name}: needs `Requires-Python: >=` and `Requires-Dist: torch>=` in its metadata")
        return Wheel(path.resolve(), version_of(python[1]), version_of(torch[1]))


@dataclass
class Trial:
    """One row of the table."""

    python: Version
    torch: Version = ()
    result: str = ""
    passed: bool = False
    seconds: float = 0.0
    output: str = ""


class StepError(Exception):
    """A step of a trial failed; names it."""


def interpreters(folders: Iterable[Path], least: Version) -> dict[Version, Path]:
    """The Pythons in these folders that can make an environment, by version, the oldest first.

    A name alone says nothing: pyenv's shims exist for versions that are not switched on, and Debian's Python may lack
    venv. Pre-releases and builds without the GIL, which load no abi3 extension, are left out.
    """
    found: dict[Version, Path] = {}
    names = [path for folder in folders for path in sorted(folder.glob("python3.*"))]
    for path in [*(p for p in names if re.fullmatch(r"python3\.\d+", p.name)), Path(sys.executable)]:
        try:
            done = subprocess.run([path, "-c", PROBE], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            continue
        version = tuple(map(int, done.stdout.split())) if done.returncode == 0 else ()
        if version >= least:
            found.setdefault(version, path)
    return dict(sorted(found.items()))


def python_folders() -> list[Path]:
    """Where Pythons may be: PATH, then pyenv's versions."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    return [*map(Path, filter(None, os.get_exec_path())), *sorted(pyenv.glob("versions/*/bin"))]


def environment() -> dict[str, str]:
    """That of every child: no package of the checkout, and no versions but those that are asked for here."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return {**kept, "PIP_CONSTRAINT": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def released(text: str, least: Version) -> list[Version]:
    """The versions from `least` on in what `pip index versions` printed, the oldest first; no pre-releases, no +cpu."""
    line = re.search(r"^Available versions: (.*)$", text, re.MULTILINE)
    names = re.split(r",\s*", line[1].strip()) if line else []
    return sorted(v for v in map(version_of, (n for n in names if re.fullmatch(r"[\d.]+", n))) if v >= least)


def nearest(asked: Version, available: list[Version]) -> Version:
    """The first available version from `asked` on, else the newest."""
    return next((v for v in available if v >= asked), available[-1])


def select(asked: str, pythons: dict[Version, Path]) -> tuple[str, Version]:
    """The torch and the Python of an item of --torch; exits where this machine has no such Python."""
    torch, _, python = asked.partition(":")
    versions = list(pythons)
    if python:
        versions = [v for v in versions if v[: len(version_of(python))] == version_of(python)]
    if not versions:
        sys.exit(f"--torch {asked}: no Python {python} here, only {', '.join(map(text_of, pythons)) or 'none'}")
    return torch, versions[0 if torch == "oldest" else -1]


def attempt(wheel: Wheel, asked: str, version: Version, python: Path) -> Trial:
    """Makes the environment, installs, runs smoke.py, and removes the environment."""
    folder = ROOT / "build" / f"smoke-{text_of(version)}-{asked}"
    inside = folder / "bin" / "python"
    trial = Trial(version)
    start = time.monotonic()

    def step(name: str, *command: object) -> str:
        line = [str(part) for part in command]
        try:
            done = subprocess.run(line, cwd=ROOT / "build", env=environment(), capture_output=True, text=True)
        except OSError as error:
            raise StepError(f"{name}: {error}") from None
        trial.output += done.stdout + done.stderr
        if done.returncode != 0:
            raise StepError(name)
        return done.stdout

    try:
        step("venv", python, "-m", "venv", "--clear", folder)
        available = released(step("pip index", inside, "-m", "pip", "index", "versions", "torch"), wheel.torch)
        trial.output = ""  # the list is long
        if not available:
            raise StepError(f"no torch >= {text_of(wheel.torch)} has a wheel for this Python")
        wanted = {"oldest": wheel.torch, "newest": available[-1]}.get(asked) or version_of(asked)
        trial.torch = nearest(wanted, available)
        if trial.torch[: len(wanted)] != wanted:
            trial.result = f"(instead of {text_of(wanted)}, which has no wheel for this Python) "
        packages = f"torch=={text_of(trial.torch)}", wheel.path
        step("pip install", inside, "-m", "pip", "install", "-qq", "--no-compile", *packages)
        step("smoke.py", inside, ROOT / "tests" / "smoke.py")
        trial.result += "passed"
        trial.passed = True
    except StepError as error:
        trial.result += f"failed: {error}"
    finally:
        trial.seconds = time.monotonic() - start
        shutil.rmtree(folder, ignore_errors=True)
    return trial


def table(trials: list[Trial]) -> str:
    """In Markdown, for docs/wheels.md."""
    rows = [f"| {text_of(t.python)} | {text_of(t.torch) or '-'} | {t.result} | {t.seconds:.0f} s |" for t in trials]
    return "\n".join(["| Python | torch | result | time |", "|---|---|---|---|", *rows])


def main() -> None:
    """Exits with a message where a trial failed; the others are made all the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0].rstrip(":"))
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--torch", default="oldest,newest", help="what to try, with commas (default: %(default)s)")
    options = parser.parse_args()
    if not options.wheel.is_file():
        parser.error(f"--wheel: no such file: {options.wheel}")
    items = list(dict.fromkeys(options.torch.split(",")))  # each has a folder of its own
    if wrong := [i for i in items if not re.fullmatch(r"(oldest|newest|\d+(\.\d+)*)(:3\.\d+)?", i)]:
        parser.error(f"--torch: {wrong[0]!r} is none of oldest, newest, 2.13.0, 2.13.0:3.12")
    wheel = Wheel.read(options.wheel)
    pythons = interpreters(python_folders(), wheel.python)
    trials = [(torch, version, pythons[version]) for torch, version in (select(item, pythons) for item in items)]
    at_once = min(len(trials), os.cpu_count() or 1)
    if (free := shutil.disk_usage(ROOT).free / 2**30) < NEEDED_GB * at_once:
        sys.exit(f"smoke: {free:.1f} GB of disk are free, needs {NEEDED_GB * at_once}")
    (ROOT / "build").mkdir(exist_ok=True)
    for asked, version, python in trials:
        print(f"{wheel.path.name}: torch {asked} under Python {text_of(version)} ({python})", flush=True)
    with ThreadPoolExecutor(at_once) as pool:
        made = list(pool.map(lambda trial: attempt(wheel, *trial), trials))
    for trial in made:
        print(f"== Python {text_of(trial.python)}, torch {text_of(trial.torch)}\n{trial.output}")
    print(table(made))
    if failed := sum(not trial.passed for trial in made):
        sys.exit(f"smoke: {failed} of {len(made)} installations failed")


if __name__ == "__main__":
    main()
