"""What every operator's registration shares: the double backward.

Design. An operator `op` and its `op_backward` are both C++ kernels; autograd connects them from Python
(`torch.library.register_autograd`), so AOTAutograd can trace both. The derivative of `op_backward` (the double
backward) is taken by differentiating the plain-torch reference twice: rare, correct, and it keeps no kernel.
Rejected: autograd.Function around the kernels, because torch.compile of 2.13 fails on nested ones; and C++ autograd,
which the stable ABI does not have.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cosegflow.ops._autocast import without_autocast
from cosegflow.reference import accumulate_dtype


def sum_to_beta(per_image: Tensor, beta: Tensor) -> Tensor:
    """The gradient of beta from its gradients per image."""
    return per_image.sum().reshape(beta.shape) if beta.numel() == 1 else per_image


def fake_matches(like: Tensor, shape: Sequence[int], want_index: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Fake flow, lse, confidence, index and score for sources of `shape` (B, Ha, Wa)."""
    dtype = accumulate_dtype(like.dtype)
    batch, height, width = shape
    peak_shape = tuple(shape) if want_index else (0,)
    return (
        like.new_empty((batch, 2, height, width), dtype=dtype),
        like.new_empty(tuple(shape), dtype=dtype),
        like.new_empty(tuple(shape), dtype=dtype),
        like.new_empty(peak_shape, dtype=torch.int64),
        like.new_empty(peak_shape, dtype=dtype),
    )


def second_derivative(
    forward: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor | None],
    grad_grads: Sequence[Tensor | None],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Differentiates the backward of `forward`.

    The backward maps (inputs, grad_outputs) to one gradient per input. Given the gradients `grad_grads` with respect to
    those (None where there is none), returns the gradients with respect to the inputs and to the grad_outputs.

    Args:
        forward: differentiable plain-torch function of the inputs.
        inputs: floating tensors.
        grad_outputs: one per output of `forward`; None means no gradient came through that output.
        grad_grads: one per input.
    """
    higher_order = torch.is_grad_enabled()  # create_graph=True was asked of the double backward: keep its own graph

    def variable(t: Tensor) -> Tensor:
        # A view is a node of its own, so that one tensor passed as two inputs gets two gradients.
        return t.view_as(t) if higher_order and t.requires_grad else t.detach().requires_grad_()

    with torch.enable_grad(), without_autocast(inputs[0]):
        xs = [variable(x) for x in inputs]
        gs = [None if g is None else variable(g) for g in grad_outputs]
        outputs = forward(*xs)
        used = [(o, g) for o, g in zip(outputs, gs, strict=True) if g is not None and o.requires_grad]
        if not used:
            return [None] * len(xs), [None] * len(gs)
        grads = torch.autograd.grad(
            [o for o, _ in used], xs, [g.to(o.dtype) for o, g in used], create_graph=True, allow_unused=True
        )
        pairs = [(g, gg) for g, gg in zip(grads, grad_grads, strict=True) if g is not None and gg is not None]
        pairs = [(g, gg) for g, gg in pairs if g.requires_grad]
        wanted = [*xs, *(g for g in gs if g is not None)]
        if not pairs:
            return [None] * len(xs), [None] * len(gs)
        result = iter(
            torch.autograd.grad(
                [g for g, _ in pairs],
                wanted,
                [gg.to(g.dtype) for g, gg in pairs],
                create_graph=higher_order,
                allow_unused=True,
            )
        )
        for_inputs: list[Tensor | None] = [next(result) for _ in xs]
        for_grads: list[Tensor | None] = [None if g is None else next(result) for g in gs]
    return for_inputs, for_grads
