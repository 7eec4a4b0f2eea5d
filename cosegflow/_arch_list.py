"""TORCH_CUDA_ARCH_LIST: what to build for, and what a list lacks. Needs no torch: setup.py runs this file.

wgmma and TMA exist in code for `9.0a` alone: in a build for `9.0` a Hopper GPU runs the kernels of Ampere.
"""

import re
from collections.abc import Iterable

DEFAULT = "8.0+PTX;9.0a"
"""Where no GPU is visible. Later ones compile the PTX of 8.0 for themselves, which that of 9.0a does not allow."""
NAMES = {"hopper": "9.0+PTX"}
"""The names of architectures that torch takes in place of numbers, where they matter here."""


def entries(arch_list: str) -> list[str]:
    """The entries of a list, such as ['8.0+PTX', '9.0a']."""
    return [NAMES.get(entry.lower(), entry) for entry in re.split(r"[;\s]+", arch_list) if entry]


def has_sm90a(arch_list: str) -> bool:
    """Whether a build for this list has the kernels of Hopper."""
    return any(entry.removesuffix("+PTX") == "9.0a" for entry in entries(arch_list))


def macros(arch_list: str) -> list[str]:
    """What nvcc is told of the list: host code cannot see it otherwise, and chooses the kernels."""
    return ["-DCOSEGFLOW_SM90A=1"] if has_sm90a(arch_list) else []


def choose(capabilities: Iterable[tuple[int, int]], newest: tuple[int, int] | None = None) -> str:
    """The list for a machine whose visible GPUs have these compute capabilities; `DEFAULT` where there are none.

    Torch would choose 9.0 for a Hopper GPU. The lowest architecture from 8.0 on also comes as PTX, for GPUs that this
    machine does not have; the code of 9.0a runs on no other, so with Hopper alone there is that of 8.0 besides.

    Args:
        capabilities: (major, minor), in any order.
        newest: the newest that nvcc knows; a GPU beyond it compiles the PTX for itself.
    """
    known = sorted({c for c in capabilities if newest is None or c <= newest})
    if not known:
        return DEFAULT
    names = ["9.0a" if c == (9, 0) else f"{c[0]}.{c[1]}" for c in known]
    others = [at for at, c in enumerate(known) if c >= (8, 0) and c != (9, 0)]
    if others:
        names[others[0]] += "+PTX"
    else:
        names.insert(names.index("9.0a") if "9.0a" in names else len(names), "8.0+PTX")
    return ";".join(names)


def unknown(arch_list: str, known: Iterable[tuple[int, int]]) -> list[str]:
    """The entries of a list whose compute capability is not among those that nvcc compiles for."""
    numbers = {f"{major}.{minor}" for major, minor in known}
    found = [(entry, re.match(r"\d+\.\d+", entry)) for entry in entries(arch_list)]
    return [entry for entry, number in found if number is not None and number[0] not in numbers]


def lack(arch_list: str) -> str | None:
    """What a Hopper GPU misses in a build for this list, in one line; None where nothing."""
    if has_sm90a(arch_list) or not any(e.removesuffix("+PTX") == "9.0" for e in entries(arch_list)):
        return None
    return (
        f"TORCH_CUDA_ARCH_LIST={arch_list} names 9.0 but not 9.0a: no kernel uses Hopper's own tensor core "
        "instructions (wgmma); write 9.0a for 9.0"
    )
