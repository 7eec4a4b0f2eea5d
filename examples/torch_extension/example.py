"""Builds match_and_warp.cpp, an operator in C++ that calls cosegflow's, and compares it with the same calls in Python.

    python examples/torch_extension/example.py

Needs a C++ compiler and ninja, and neither nvcc nor cosegflow's headers.
"""

from pathlib import Path

import torch
from torch.utils.cpp_extension import load

import cosegflow  # first: it registers the operators that the extension looks up


def main() -> None:
    """Raises AssertionError where a result or a gradient differs."""
    load("flow_tools", [str(Path(__file__).with_name("match_and_warp.cpp"))], is_python_module=False)
    torch.manual_seed(0)
    fa, fb, image = (torch.randn(2, channels, 9, 11, requires_grad=True) for channels in (16, 16, 3))
    beta = torch.tensor([10.0], requires_grad=True)
    inputs = fa, fb, image, beta

    flow, warped = torch.ops.flow_tools.match_and_warp(fa, fb, image, beta)
    expected_flow = cosegflow.match(fa, fb, beta=beta).flow
    expected = cosegflow.warp(image, expected_flow)
    assert torch.equal(flow, expected_flow) and torch.equal(warped, expected)

    weights = torch.randn_like(warped)
    gradients = torch.autograd.grad((warped * weights).sum(), inputs)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    for name, found, wanted in zip(("fa", "fb", "image", "beta"), gradients, expected_gradients, strict=True):
        assert wanted.abs().sum() > 0 and torch.equal(found, wanted), name
    print(f"flow_tools.match_and_warp: flow {tuple(flow.shape)}, results and gradients as in Python")


if __name__ == "__main__":
    main()
