"""What nvcc made of the kernels: the code for each GPU that lies in the library that was built."""

import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest

import cosegflow
from cosegflow import _library

LIBRARY = Path(cosegflow.__file__).parent / "libcosegflow.so"


def tool(name: str) -> str:
    """cuobjdump or nvdisasm, from PATH or from the package nvidia-cuda-<name>; skips the test where there is none."""
    packaged = Path(sysconfig.get_paths()["purelib"]).glob(f"nvidia/*/bin/{name}")
    found = shutil.which(name) or next((str(path) for path in packaged), None)
    if found is None:
        pytest.skip(f"needs {name}: pip install nvidia-cuda-{name}")
    return found


def require(architecture: str) -> None:
    """Skips the test where the library has no code for `architecture`, such as sm_90a."""
    built = _library.build_info().get("arch_list") or ""
    number = architecture.removeprefix("sm_")
    if f"{number[:-1]}.{number[-1]}" not in built and f"{number[0]}.{number[1:]}" not in built:
        pytest.skip(f"the kernels were built for {built or 'no GPU'}, not for {architecture}")


@dataclass(frozen=True)
class Resources:
    """A kernel's needs: its name with template arguments, registers of a thread, bytes of its stack."""

    kernel: str
    signature: str
    source: str
    architecture: str
    registers: int
    stack: int


@lru_cache
def resources() -> tuple[Resources, ...]:
    """Those of every kernel in the library, for every architecture that it was built for."""
    command = [tool("cuobjdump"), "--dump-resource-usage", str(LIBRARY)]
    mangled = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = subprocess.run(["c++filt"], input=mangled, capture_output=True, text=True, check=True).stdout
    return tuple(_parse(text))


def _parse(text: str) -> Iterator[Resources]:
    architecture = source = signature = ""
    for line in text.splitlines():
        if line.startswith("arch = "):
            architecture = line.removeprefix("arch = ")
        elif line.startswith("identifier = "):
            source = Path(line.removeprefix("identifier = ")).name
        elif line.startswith(" Function "):
            signature = line.removeprefix(" Function ").rstrip(":")
        elif use := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            name = re.search(r"(\w+_kernel)\b", signature)
            assert name, signature
            stack = int(use[2]) + int(use[3])
            yield Resources(name[1], signature, source, architecture, int(use[1]), stack)


def disassembly(folder: Path, architecture: str, sources: Iterable[str]) -> str:
    """nvdisasm's text of the code that these files of csrc/cuda (their stems) were compiled to."""
    require(architecture)
    nvdisasm = tool("nvdisasm")
    command = [tool("cuobjdump"), "--extract-elf", "all", str(LIBRARY)]
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    files = [folder / f"{source}.{architecture}.cubin" for source in sources]
    return "".join(
        subprocess.run([nvdisasm, "-c", file], check=True, capture_output=True, text=True).stdout for file in files
    )
