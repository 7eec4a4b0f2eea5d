"""Builds libcosegflow (the kernels, torch-free) and cosegflow._C (its binding to PyTorch's stable ABI).

Environment: COSEGFLOW_FORCE_CUDA=1 (no nvcc is an error), COSEGFLOW_CPU_ONLY=1 (no CUDA kernels even with nvcc),
TORCH_CUDA_ARCH_LIST (default: the visible GPUs, 9.0a for Hopper; ``8.0+PTX;9.0a`` where there are none), CUDA_HOME,
MAX_JOBS.
"""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent.resolve()
TORCH_TARGET = "0x020a000000000000"  # the stable ABI of torch 2.10
ARCH_LIST = runpy.run_path(
    str(ROOT / "cosegflow" / "_arch_list.py")
)  # not imported: the package needs what is built here

# pip's build isolation hides the torch that is installed beside us, which is the one that will load the kernels.
sys.path.append(sysconfig.get_path("purelib"))
# The ninja of an environment that was not activated.
os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")))
try:
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    sys.exit(
        f"cosegflow needs PyTorch to build, and importing it failed: {error}\nInstall it, then cosegflow:\n"
        "    pip install 'torch>=2.10' setuptools wheel ninja\n"
        "    pip install --no-build-isolation ."
    )
if [int(number) for number in re.findall(r"\d+", torch.__version__)[:2]] < [2, 10]:
    sys.exit(f"cosegflow needs torch >= 2.10 to build, got {torch.__version__}: pip install 'torch>=2.10'")


def flag(name: str) -> bool:
    """Whether the environment variable is set to something that means yes."""
    return os.environ.get(name, "").lower() not in ("", "0", "off", "no", "false")


def find_cuda() -> tuple[Path | None, str]:
    """The CUDA toolkit's folder or None, and why."""
    if flag("COSEGFLOW_CPU_ONLY"):
        return None, "COSEGFLOW_CPU_ONLY is set"
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        candidates.append(str(Path(nvcc).resolve().parent.parent))  # nvcc on PATH may be a wrapper script elsewhere
    candidates += ["/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda"]
    for candidate in filter(None, candidates):
        home = Path(candidate)
        if (home / "bin" / "nvcc").exists() and (home / "include" / "cuda_runtime.h").exists():
            return home, f"found the CUDA toolkit in {home}"
    return None, "no CUDA toolkit was found (nvcc with include/cuda_runtime.h); set CUDA_HOME if there is one"


CUDA_HOME, CUDA_REASON = find_cuda()
if CUDA_HOME is None and flag("COSEGFLOW_FORCE_CUDA"):
    sys.exit(f"COSEGFLOW_FORCE_CUDA is set, but {CUDA_REASON}.")


def cuda_version(home: Path) -> str:
    """The toolkit's version, such as '13.0'."""
    text = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+\.\d+)", text)
    return match.group(1) if match else "unknown"


def known_architectures(home: Path) -> list[tuple[int, int]]:
    """The compute capabilities that nvcc compiles for, ascending; [] where it does not tell."""
    done = subprocess.run([home / "bin" / "nvcc", "--list-gpu-arch"], capture_output=True, text=True)
    found = {int(n) for n in re.findall(r"compute_(\d+)", done.stdout)}
    return [divmod(n, 10) for n in sorted(found)] if done.returncode == 0 else []


def arch_list(home: Path) -> str:
    """What to build for: the user's TORCH_CUDA_ARCH_LIST, else by the visible GPUs."""
    known = known_architectures(home)
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if chosen in ("", "native"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        visible = [torch.cuda.get_device_capability(i) for i in range(count)]
        chosen = ARCH_LIST["choose"](visible, known[-1] if known else None)
    if known and (unknown := ARCH_LIST["unknown"](chosen, known)):
        sys.exit(
            f"nvcc {cuda_version(home)} in {home} does not compile for {', '.join(unknown)} (TORCH_CUDA_ARCH_LIST="
            f"{chosen}): name others ({', '.join(f'{a}.{b}' for a, b in known)}), or install another CUDA toolkit"
        )
    return chosen


def commit() -> str | None:
    """That of the checkout; None where this is not the top of one."""
    try:
        command = ["git", "rev-parse", "--show-toplevel", "HEAD"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    top, _, head = done.stdout.strip().rpartition("\n")
    return head if top and Path(top).resolve() == ROOT else None


def sources(*patterns: str) -> list[str]:
    """Paths below csrc/, relative to the project's root, in a fixed order."""
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in (ROOT / "csrc").glob(pattern))


def kernel_library() -> Extension:
    """libcosegflow: CPU kernels always, CUDA kernels with nvcc; hidden symbols, static cudart, no torch."""
    cxx = ["-O3", "-std=c++17", "-fvisibility=hidden", "-fopenmp-simd", "-g0", "-Wall", "-Wextra"]
    options: dict = {"extra_link_args": ["-Wl,--exclude-libs,ALL", "-Wl,-soname,libcosegflow.so", "-Wl,-z,defs"]}
    files = sources("cpu/**/*.cpp")
    if CUDA_HOME is not None:
        files += sources("cuda/**/*.cu")
        options.update(
            libraries=["cudart_static", "dl", "rt", "pthread"],
            library_dirs=[str(CUDA_HOME / "lib64")],
        )
    nvcc = ["-O3", "-std=c++17", "--compiler-options", "-fvisibility=hidden", "-lineinfo", "--threads", "1"]
    return Extension(
        "cosegflow.libcosegflow",
        files,
        include_dirs=[str(ROOT / "csrc" / d) for d in ("include", "cuda", ".")],
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        language="c++",
        **options,
    )


def binding() -> Extension:
    """cosegflow._C: schemas, checks, tensors to params; C++ only, so it builds in seconds."""
    macros = [("TORCH_TARGET_VERSION", TORCH_TARGET)]  # torch's builder adds Py_LIMITED_API=0x030A0000
    if CUDA_HOME is not None:
        macros.append(("COSEGFLOW_WITH_CUDA", "1"))
    return cpp_extension.CppExtension(
        "cosegflow._C",
        sources("torch/*.cpp"),
        include_dirs=[str(ROOT / "csrc" / d) for d in ("include", ".")],
        define_macros=macros,
        extra_compile_args={"cxx": ["-O2", "-fvisibility=hidden", "-g0", "-Wall"]},
        libraries=["cosegflow"],
        runtime_library_dirs=["$ORIGIN"],
        py_limited_api=True,
    )


class BuildKernels(cpp_extension.BuildExtension):
    """torch's builder, with a plain name for libcosegflow, our CUDA choice, and a record of what was built."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # One folder of objects for wheels and editable installs (setuptools gives the latter a temporary one), so that
        # whichever comes second only links.
        kind = "cpu" if CUDA_HOME is None else "cuda"
        self.build_temp = str(ROOT / "build" / f"objects-{kind}-torch{torch.__version__}-py{sys.version_info.minor}")

    def get_ext_filename(self, ext_name: str) -> str:
        if ext_name.endswith("libcosegflow"):
            return os.path.join(*ext_name.split(".")) + ".so"
        return super().get_ext_filename(ext_name)

    def require_compiler(self) -> None:
        """Exits where there is no C++ compiler: torch's builder would end in a traceback that does not say so."""
        chosen_by_torch = (os.environ.get("CXX", "c++").split() or ["''"])[0]  # compiles; setuptools' own links
        for name in (chosen_by_torch, self.compiler.compiler_cxx[0]):
            if shutil.which(name) is None:
                sys.exit(
                    f"cosegflow needs a C++17 compiler to build, and there is no {name}: install one (Debian, Ubuntu: "
                    "apt install g++), or set CXX to it"
                )

    def build_extensions(self) -> None:
        self.require_compiler()
        if CUDA_HOME is not None:
            cpp_extension.CUDA_HOME = str(CUDA_HOME)  # None under a CPU build of torch
            chosen = os.environ["TORCH_CUDA_ARCH_LIST"] = arch_list(CUDA_HOME)
            if why := ARCH_LIST["lack"](chosen):
                self.announce_loudly(why)
        else:
            self.announce_loudly(f"cosegflow is being built WITHOUT CUDA kernels: {CUDA_REASON}.")
        for extension in self.extensions:
            if extension.name == "cosegflow.libcosegflow" and CUDA_HOME is not None:
                # The dispatch asks it: a macro of nvcc's passes is not defined where host code is compiled.
                extension.extra_compile_args["nvcc"] += ARCH_LIST["macros"](chosen)
            if extension.name == "cosegflow._C":
                extension.library_dirs.append(str(Path(self.build_lib) / "cosegflow"))
        self.drop_stale_objects()
        super().build_extensions()
        package = Path(self.build_lib) / "cosegflow"
        self.write_build_info(package)
        shutil.copytree(ROOT / "csrc/include/cosegflow", package / "include/cosegflow", dirs_exist_ok=True)

    def copy_extensions_to_source(self) -> None:  # an editable install
        super().copy_extensions_to_source()
        shutil.copy(Path(self.build_lib) / "cosegflow" / "_build_info.json", ROOT / "cosegflow")

    def drop_stale_objects(self) -> None:
        """Under a CPU build of torch, ninja is told of no header that a .cu file includes: look at their times here."""
        folders = [ROOT / "csrc" / name for name in ("include", "common", "cuda")]
        headers = [p for folder in folders for pattern in ("*.h", "*.cuh") for p in folder.rglob(pattern)]
        newest = max(p.stat().st_mtime for p in headers)
        for compiled in Path(self.build_temp).rglob("csrc/cuda/**/*.o"):
            if compiled.stat().st_mtime < newest:
                compiled.unlink()

    def announce_loudly(self, what: str) -> None:
        """Says what this build lacks where pip shows it (-v); the build info has it too."""
        line = "*" * 100
        print(f"{line}\n{what}\n{line}", file=sys.stderr)

    def write_build_info(self, package: Path) -> None:
        """What `python -m cosegflow.info` reports about this build."""
        info = {
            "cuda": cuda_version(CUDA_HOME) if CUDA_HOME else None,
            "cuda_reason": CUDA_REASON,
            "arch_list": os.environ["TORCH_CUDA_ARCH_LIST"] if CUDA_HOME else None,
            "torch": torch.__version__,
            "torch_target": "2.10",
            "python": sys.version.split()[0],
            "commit": commit(),
            "sources": runpy.run_path(str(ROOT / "benchmarks/check/source_digest.py"))["source_digest"](ROOT),
        }
        package.mkdir(parents=True, exist_ok=True)
        path = package / "_build_info.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(info, indent=1) + "\n")
        temporary.replace(path)


setup(
    ext_modules=[kernel_library(), binding()],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
