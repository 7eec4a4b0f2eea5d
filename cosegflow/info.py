"""`python -m cosegflow.info`: versions, what was built, for which architectures, and which backends work here."""

import platform
import sys

import torch

from cosegflow import _arch_list, _library
from cosegflow._version import __version__


def cuda_status() -> tuple[bool, str]:
    """Whether the CUDA kernels can run here, and why not."""
    build = _library.build_info()
    if not _library.is_available():
        return False, "the compiled kernels could not be loaded"
    if not build.get("cuda"):
        return False, f"built without CUDA kernels: {build.get('cuda_reason', 'no build record')}"
    if torch.version.cuda is None:
        return False, f"torch {torch.__version__} is a CPU build"
    if not torch.cuda.is_available():
        return False, "torch sees no CUDA device (driver, nvidia-smi, CUDA_VISIBLE_DEVICES)"
    return True, ", ".join(
        f"{torch.cuda.get_device_name(i)} (sm_{''.join(map(str, torch.cuda.get_device_capability(i)))})"
        for i in range(torch.cuda.device_count())
    )


def _architectures(arch_list: str | None) -> str:
    lack = _arch_list.lack(arch_list or "")
    return f"{arch_list or '-'}{'' if lack is None else f' ({lack})'}"


def report() -> str:
    """The text that the command prints."""
    build = _library.build_info()
    works, why = cuda_status()
    error = _library.load_error()
    lines = [
        f"cosegflow        {__version__}",
        f"torch            {torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        f"threads          {torch.get_num_threads()}",
        f"python           {platform.python_version()}, {platform.platform()}",
        f"built with       torch {build.get('torch', '?')}, stable ABI of torch {build.get('torch_target', '?')}",
        f"CUDA kernels     {'nvcc ' + build['cuda'] if build.get('cuda') else 'not built'}"
        f" ({build.get('cuda_reason', 'no build record')})",
        f"architectures    {_architectures(build.get('arch_list'))}",
        f"backend cpu      {'works' if error is None else f'does not work: {error}'}",
        f"backend cuda     {'works: ' if works else 'does not work: '}{why}",
    ]
    return "\n".join(lines)


def main() -> int:
    """Prints the report; returns 0 where the kernels could be loaded, else 1."""
    print(report())
    return 0 if _library.is_available() else 1


if __name__ == "__main__":
    sys.exit(main())
