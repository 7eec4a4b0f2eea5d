"""Builds the fuzz target of the C++ entry points (fuzz_case.h) under AddressSanitizer and UndefinedBehaviorSanitizer.

    python csrc/fuzz/build.py            # build/fuzz/cpu/fuzz, over the kernels of the CPU
    python csrc/fuzz/build.py hostsim    # build/fuzz/hostsim/fuzz, over the simulated CUDA kernels
    build/fuzz/cpu/fuzz --seed 1 --seconds 60

Needs g++ and ninja. A build is incremental. The kernels of hostsim are the objects of its asan build, whole.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("hostsim_build", REPO / "csrc" / "hostsim" / "build.py")
assert _spec is not None and _spec.loader is not None
hostsim_build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostsim_build)

FLAGS = [
    "-std=c++17", "-Og", "-g1", "-fopenmp-simd", "-fno-omit-frame-pointer", "-Wall", "-Wextra",
    "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all",
    # What AddressSanitizer sees too; without them the build takes a third of the time.
    "-fno-sanitize=null,object-size,vptr,pointer-overflow,alignment",
    "-Wno-maybe-uninitialized",  # g++ warns of its own instrumentation
]  # fmt: skip
KINDS = ("cpu", "hostsim")


def _hostsim_objects() -> list[Path]:
    folder = Path(hostsim_build.build("asan")).parent
    names = [hostsim_build._object_name(source) for source in hostsim_build.sources(REPO / "csrc")]
    without = ("obj/hostsim_bind_", "obj/hostsim_module", "obj/hostsim_primitives_")  # Python's
    return [folder / name for name in names if not name.startswith(without)]


def build(
    kind: str = "cpu", source_root: Path = REPO / "csrc", out_dir: Path | None = None, reuse: Sequence[Path] = ()
) -> Path:
    """Builds and returns the path of the program.

    reuse: objects (of a finished build, `objects(kind)`) to link instead of compiling the sources that they are named
    after.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is one of {KINDS}, not {kind!r}")
    out_dir = REPO / "build" / "fuzz" / kind if out_dir is None else out_dir
    sources = [source_root / "fuzz" / "driver.cpp", source_root / "fuzz" / "fuzz_operations.cpp"]
    flags = [*FLAGS, *(f"-I{source_root / d}" for d in ("include", "."))]
    given = list(reuse)
    if kind == "cpu":
        sources += sorted((source_root / "cpu").rglob("*.cpp"))
    else:
        flags.append("-DCOSEGFLOW_FUZZ_HOSTSIM=1")
        given += _hostsim_objects()
    with hostsim_build._locked(out_dir):
        lines = [
            f"cxx = {os.environ.get('CXX', 'g++')}",
            f"flags = {' '.join(flags)}",
            "rule cpp",
            "  command = $cxx $flags -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            "  command = $cxx -fsanitize=address,undefined $in -o $out -ldl -pthread",
        ]
        kept = {path.name: path for path in given}
        linked = [path for path in given if path.name not in {f"{s.stem}.o" for s in sources}]
        for source in sources:
            name = f"{source.stem}.o"
            linked.append(kept.get(name, Path(name)))
            if name not in kept:
                lines.append(f"build {name}: cpp {source}")
        lines.append(f"build fuzz: link {' '.join(map(str, linked))}")
        hostsim_build._write_if_changed(out_dir / "build.ninja", "\n".join([*lines, ""]))
        jobs = os.environ.get("MAX_JOBS", str(min(4, os.cpu_count() or 1)))
        command = [hostsim_build._ninja(), "-C", str(out_dir), "-j", jobs]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"the fuzz target does not build ({' '.join(command)}):\n{done.stdout}{done.stderr}")
    return out_dir / "fuzz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=KINDS, default="cpu")
    print(build(parser.parse_args().kind))


if __name__ == "__main__":
    main()
