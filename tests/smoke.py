"""A short check of an installed wheel, without pytest: `python tests/smoke.py`, from outside the source folder.

Runs every operation forward and backward on the CPU against the plain-torch reference, and, beside a CUDA build of
torch (no GPU needed), checks that the symbol that gives the current stream can be found.
"""

import ctypes
import os
import sys

import torch

import cosegflow
from cosegflow import info, reference
from cosegflow.ops._precision import float32_precision


def check(name: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Exits with a message where the two differ; a NaN differs."""
    error = (actual - expected).abs().max().item()
    if not error <= 1e-4 * max(1.0, expected.abs().max().item()):
        sys.exit(f"smoke: {name}: error {error}")
    print(f"  {name}: error {error:.1e}")


def check_precision() -> None:
    """A compiled function follows torch's precision of float32 products: the guard is of this torch's Dynamo.

    torch 2.10 has no such guard: there "medium" is compiled as "high" (ops/_precision.py).
    """
    device = torch.device("cuda", 0)  # none is needed
    medium = 1 if torch.__version__.startswith("2.10.") else 2
    compiled = torch.compile(lambda x: x * float32_precision(x.dtype, device), backend="eager", fullgraph=True)
    for expected, name in ((0, "highest"), (1, "high"), (medium, "medium"), (1, "high")):
        torch.set_float32_matmul_precision(name)
        got = int(compiled(torch.ones(1)))
        if got != expected:
            sys.exit(f"smoke: under the precision {name} a compiled function has number {got}, needs {expected}")
    torch.set_float32_matmul_precision("highest")
    print("  a change of precision recompiles")


def main() -> None:
    """Exits with a message at the first failure."""
    print(info.report())
    torch.manual_seed(0)
    fa, fb = torch.randn(2, 19, 6, 7, requires_grad=True), torch.randn(2, 19, 5, 8)
    mask_b = (torch.rand(2, 5, 8) - 0.3).clamp(min=0)
    matches = cosegflow.match(fa, fb, mask_b=mask_b, beta=10.0)
    expected = reference.match(fa, fb, None, mask_b, torch.tensor(10.0))
    check("match", matches.flow, expected.flow)
    (ours,) = torch.autograd.grad(matches.flow.square().sum(), fa)
    (theirs,) = torch.autograd.grad(expected.flow.square().sum(), fa)
    check("match backward", ours, theirs)
    volume = cosegflow.correlation(fa, fb, normalize=True)
    check("correlation", volume, reference.correlation(fa, fb, True))
    check("soft_argmax", cosegflow.soft_argmax(volume, mask_b, beta=10.0).flow, expected.flow)
    window = cosegflow.match(fa, fb, mask_b=mask_b, beta=10.0, kernel_sigma=2.0, return_index=True)
    expected = reference.match_indexed(fa, fb, None, mask_b, torch.tensor(10.0), True, 2.0)
    check("kernel_sigma", window.flow, expected.flow)
    check("return_index", window.index.float(), expected.index.float())
    check("warp", cosegflow.warp(fb, matches.flow), reference.warp(fb, matches.flow)[0])
    window = reference.local_correlation(fa, fb, 2, matches.flow.detach())
    check("local_correlation", cosegflow.local_correlation(fa, fb, 2, matches.flow), window)
    check_precision()
    if torch.version.cuda is not None:
        library = ctypes.CDLL("libtorch_cuda.so", mode=os.RTLD_LAZY | os.RTLD_NOLOAD)
        if not hasattr(library, "aoti_torch_get_current_cuda_stream"):
            sys.exit("smoke: libtorch_cuda.so has no aoti_torch_get_current_cuda_stream")
        print("  the current stream's symbol resolves")
    print("smoke: passed")


main()
