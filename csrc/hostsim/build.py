"""Builds the Python module `cosegflow_hostsim`: the CUDA kernels compiled by g++ for the CPU.

    python csrc/hostsim/build.py --variant asan

Needs g++, ninja and pybind11, no CUDA toolkit. Variants:

- plain: optimised, fibers switched by hand-written assembly (x86-64);
- asan: AddressSanitizer and UndefinedBehaviorSanitizer; run Python with LD_PRELOAD set to libasan (`sanitizer_env`);
- ucontext: the portable fibers, otherwise as plain;
- quick: for the few files that a planted bug changes, beside objects of plain.

A build is incremental, and safe against others that run at the same time (a file lock per output folder).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

REPO = Path(__file__).resolve().parents[2]
MODULE = "cosegflow_hostsim"

# fmt: off
COMMON = [
    "-std=c++17", "-fPIC", "-Wall", "-Wextra", "-Werror",
    "-Wno-unknown-pragmas",  # #pragma unroll
    "-ffp-contract=off",
    "-fno-gnu-unique",  # two builds may be loaded into one process
    "-fno-strict-aliasing",  # shared memory is reinterpreted freely, as nvcc allows
]
VARIANTS = {
    "plain": ["-O2"],
    "asan": ["-Og", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
             # What AddressSanitizer sees too; with them and -O1 the build takes four times as long.
             "-fno-sanitize=null,object-size,vptr,pointer-overflow",
             "-Wno-maybe-uninitialized"],  # g++ warns of its own instrumentation
    "ucontext": ["-O2", "-DCOSEGFLOW_HOSTSIM_UCONTEXT=1"],
    "quick": ["-Og", "-Wno-maybe-uninitialized"],  # compiles in half the time
}
# fmt: on
# Fast paths of fmaf and of float16 that any x86-64 of the last ten years has; without them fmaf is a slow call.
FAST_CPU = {"avx2", "fma", "f16c", "bmi2"}


def _cpu_flags() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return ["-mavx2", "-mfma", "-mf16c", "-mbmi2"] if set(flags) >= FAST_CPU else []


def _operation_of(cu: Path, operations: Iterable[str]) -> str | None:
    """The operation that csrc/cuda/<file or folder> belongs to, by the longest matching prefix of its name."""
    if cu.parts[0] == "primitives":
        return None  # what every operation may use
    fits = [op for op in operations if cu.parts[0] == op or cu.parts[0].startswith((op + "_", op + "."))]
    return max(fits, key=len, default=None)


def sources(source_root: Path, ops: Sequence[str] | None = None, extra: Sequence[str] = ()) -> list[Path]:
    """The files to compile, relative to `source_root` (csrc). `ops`: only these operations (see `build`)."""
    hostsim = sorted(p.relative_to(source_root) for p in (source_root / "hostsim").glob("*.cpp"))
    hostsim += sorted(p.relative_to(source_root) for p in (source_root / "hostsim").glob("*.cu"))
    kernels = sorted(p.relative_to(source_root) for p in (source_root / "cuda").rglob("*.cu"))
    bound = [p.stem[len("bind_") :] for p in hostsim if p.stem.startswith("bind_")]
    # One header per operation. What has a binding but no header (primitives, pack) is shared by operations.
    known = {p.stem for p in (source_root / "include" / "cosegflow").glob("*.h")}
    if ops is not None:
        unknown = set(ops) - set(bound)
        if unknown:
            raise ValueError(f"no csrc/hostsim/bind_<op>.cpp for {sorted(unknown)}; there are {sorted(bound)}")
        ops = {*ops, *(base for base in bound for op in ops if op.startswith(base + "_"))}  # match_both builds on match
        keep = ops | {"runtime"}
        hostsim = [p for p in hostsim if not p.stem.startswith("bind_") or p.stem[len("bind_") :] in keep]
        hostsim = [p for p in hostsim if p.suffix != ".cu" or p.stem.split("_")[0] in {op.split("_")[0] for op in keep}]
        kernels = [p for p in kernels if _operation_of(p.relative_to("cuda"), known) in (keep | {None})]
    return hostsim + kernels + [Path(e) for e in extra if Path(e) not in kernels]


def _write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _bind_all(names: Sequence[str]) -> str:
    """A source that calls every bind_<name>, in whichever of three namespaces it is defined (weak references)."""
    # Without pybind11's header, which takes longer to compile than all the rest.
    out = ["#include <stdexcept>", "namespace pybind11 {", "class module_;", "}"]
    for name in names:
        declaration = f"__attribute__((weak)) void bind_{name}(pybind11::module_&);"
        out += [declaration, f"namespace cosegflow {{ {declaration} }}"]
        out += [f"namespace cosegflow::hostsim {{ {declaration} }}"]
    entry = "void cosegflow_hostsim_bind_all(pybind11::module_& m)"
    out += [f"{entry};", f"{entry} {{"]
    for name in names:
        for namespace in ("", "cosegflow", "cosegflow::hostsim"):
            out.append(f"  if (&{namespace}::bind_{name} != nullptr) {namespace}::bind_{name}(m); else")
        message = f"hostsim/bind_{name}.cpp does not define bind_{name}(pybind11::module_&)"
        out.append(f'    throw std::runtime_error("{message}");')
    return "\n".join([*out, "}", ""])


def _object_name(source: Path) -> str:
    return "obj/" + "_".join(source.parts) + ".o"


def _ninja_file(source_root: Path, out_dir: Path, variant: str, files: Sequence[Path], reuse: dict[Path, Path]) -> str:
    import pybind11

    flags = COMMON + _cpu_flags() + VARIANTS[variant]
    include = [f"-I{source_root / d}" for d in ("hostsim", ".", "include", "cuda")]
    python = [f"-isystem {p}" for p in (pybind11.get_include(), sysconfig.get_paths()["include"])]
    link = [f for f in VARIANTS[variant] if f.startswith("-fsanitize")]
    lines = [
        f"cxx = {os.environ.get('CXX', 'g++')}",
        f"flags = {' '.join(flags + include)}",
        f"python = {' '.join(python)}",
        "rule cpp",
        "  command = $cxx $flags $extra -x c++ -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = g++ $in",
        "rule link",
        f"  command = $cxx -shared -Wl,-Bsymbolic {' '.join(link)} $in -o $out -ldl -pthread",
        "  description = link $out",
    ]
    objects = []
    for source in [*files, None]:
        path = out_dir / "bind_all.cpp" if source is None else source_root / source
        if source in reuse:
            objects.append(str(reuse[source]))
            continue
        target = _object_name(Path("bind_all.cpp") if source is None else source)
        objects.append(target)
        lines.append(f"build {target}: cpp {path}")
        if path.stem.startswith("bind_") or path.stem == "module":
            # pybind11 wants hidden symbols (kernels keep default visibility: messages name them through dladdr). Its
            # glue need not be fast, but it is slow to optimise.
            cheap = "-fno-sanitize=all" if variant == "asan" else "-O0"
            lines.append(f"  extra = $python -fvisibility=hidden {cheap}")
    lines += [f"build {module_filename()}: link {' '.join(objects)}", f"default {module_filename()}", ""]
    return "\n".join(lines)


def module_filename() -> str:
    return MODULE + sysconfig.get_config_var("EXT_SUFFIX")


def _ninja() -> str:
    """The ninja of the Python package of that name, or the one on PATH."""
    try:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        found = shutil.which("ninja")
        if found is None:
            raise RuntimeError("hostsim needs ninja: pip install ninja") from None
        return found


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _dependents(out_dir: Path, source_root: Path, changed: set[Path]) -> set[str]:
    """Names of the objects in `out_dir` that were compiled from one of the files `changed` (relative to csrc)."""
    command = [_ninja(), "-C", str(out_dir), "-t", "deps"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    absolute = {str((source_root / c).resolve()) for c in changed}
    stale, target = set(), ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            target = line.split(":")[0]
        elif line.strip() and str((out_dir / line.strip()).resolve()) in absolute:
            stale.add(target)
    return stale


def build(
    variant: str = "plain",
    source_root: Path | str = REPO / "csrc",
    out_dir: Path | str | None = None,
    ops: Sequence[str] | None = None,
    extra_sources: Sequence[str] = (),
    reuse: Path | str | None = None,
    changed: Iterable[Path | str] = (),
    jobs: int | None = None,
    verbose: bool = False,
) -> Path:
    """Builds and returns the path of the module.

    ops: compile only these operations, that is bind_<op>.cpp and the csrc/cuda files whose first path component is
    <op>, <op>_... or <op>.cu; with an operation come those that its name extends (match with match_both). Files that
    belong to no operation are always taken. extra_sources adds files (relative to
    `source_root`). reuse: the folder of a finished build of this variant (quick: of plain) from the original sources;
    its objects are linked as they are unless they depend on a file in `changed` (relative to `source_root`).
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is one of {sorted(VARIANTS)}, not {variant!r}")
    source_root = Path(source_root).resolve()
    out_dir = Path(out_dir).resolve() if out_dir is not None else REPO / "build" / "hostsim" / variant
    files = sources(source_root, ops, extra_sources)
    if jobs is None:
        jobs = int(os.environ.get("MAX_JOBS", min(4, os.cpu_count() or 1)))
    with _locked(out_dir):
        kept: dict[Path, Path] = {}
        if reuse is not None:
            reuse = Path(reuse).resolve()
            stale = _dependents(reuse, REPO / "csrc", {Path(c) for c in changed})
            for file in files:
                done = reuse / _object_name(file)
                if done.exists() and _object_name(file) not in stale:
                    kept[file] = done
        names = sorted(f.stem[len("bind_") :] for f in files if f.stem.startswith("bind_"))
        _write_if_changed(out_dir / "bind_all.cpp", _bind_all(names))
        _write_if_changed(out_dir / "build.ninja", _ninja_file(source_root, out_dir, variant, files, kept))
        command = [_ninja(), "-C", str(out_dir), "-j", str(jobs)]
        result = subprocess.run(command, capture_output=not verbose, text=True)
        if result.returncode != 0:
            output = "" if verbose else result.stdout + result.stderr
            raise RuntimeError(f"hostsim does not build ({' '.join(command)}):\n{output}")
    return out_dir / module_filename()


def import_module(path: Path | str) -> ModuleType:
    """Imports a built module from its path, without touching sys.modules or sys.path."""
    loader = importlib.machinery.ExtensionFileLoader(MODULE, str(path))
    spec = importlib.util.spec_from_loader(MODULE, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def load() -> ModuleType:
    """The module that COSEGFLOW_HOSTSIM_MODULE names, else the plain build, brought up to date."""
    named = os.environ.get("COSEGFLOW_HOSTSIM_MODULE")
    return import_module(named if named else build())


def sanitizer_env() -> dict[str, str]:
    """What to add to the environment of a Python that imports the asan variant."""

    def library(name: str) -> str:
        command = ["g++", f"-print-file-name={name}"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        return str(Path(found).resolve())

    return {
        # libstdc++ too: libasan looks for the function that throws exceptions when it starts, and Python has none.
        "LD_PRELOAD": f"{library('libasan.so')}:{library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=sorted(VARIANTS), default="plain")
    parser.add_argument("--ops", nargs="*", help="only these operations")
    parser.add_argument("--out-dir", type=Path)
    parser.add_argument("--jobs", type=int)
    args = parser.parse_args()
    print(build(args.variant, out_dir=args.out_dir, ops=args.ops, jobs=args.jobs, verbose=True))


if __name__ == "__main__":
    sys.exit(main())
