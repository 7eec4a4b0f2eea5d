"""cycle_error for `backends.py`: the autograd function around the simulated kernels."""

import torch
from backends import hostsim_module, to_numpy, to_torch


class CycleErrorFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, flow_ab, flow_ba, deterministic, simple):
        ctx.save_for_backward(flow_ab, flow_ba)
        ctx.which = (deterministic, simple)
        error, valid = (to_torch(o) for o in hostsim_module().cycle_error(to_numpy(flow_ab), to_numpy(flow_ba), simple))
        ctx.mark_non_differentiable(valid)
        return error, valid

    @staticmethod
    def backward(ctx, grad_error, _):
        flow_ab, flow_ba = ctx.saved_tensors
        grads = hostsim_module().cycle_error_backward(
            to_numpy(grad_error), to_numpy(flow_ab), to_numpy(flow_ba), *ctx.needs_input_grad[:2], *ctx.which
        )
        return to_torch(grads[0], flow_ab.dtype), to_torch(grads[1], flow_ba.dtype), None, None
