"""Every public operation in a CUDA graph: captured once, replayed on new contents, equal to an eager call.

Without a GPU the same bodies run with a stand-in that repeats the work, so that they are known to run.
"""

import os

import forked
import pytest
import torch
from errors import EPS, assert_close

import cosegflow
from benchmarks.check.small_shapes import CALLS, PUBLIC, place, with_gradients

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def work(name, inputs, backward):
    """Outputs and, with `backward`, gradients of a public operation."""
    if not backward:
        with torch.no_grad():
            return list(PUBLIC[name](inputs))
    return with_gradients(PUBLIC[name](inputs), inputs)


class Rerun:
    """A stand-in for a captured graph where there is no GPU."""

    def __init__(self, function):
        self.function, self.results = function, function()

    def replay(self):
        for kept, new in zip(self.results, self.function(), strict=True):
            kept.copy_(new)


class Captured:
    """A captured graph and the tensors that its replays write."""

    def __init__(self, function):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            function()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.results = function()

    def replay(self):
        self.graph.replay()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("name", PUBLIC)
def test_replay_on_new_contents(name, backward, dtype):
    if CUDA:
        cosegflow.warmup()
    size = CALLS[name].sizes[2]
    static = place(CALLS[name], size, dtype, DEVICE, seed=0)
    graph = (Captured if CUDA else Rerun)(lambda: work(name, static, backward))
    for seed in (1, 2):
        fresh = place(CALLS[name], size, dtype, DEVICE, seed)
        with torch.no_grad():
            for key, tensor in static.items():
                tensor.copy_(fresh[key])
        graph.replay()
        # Sums of atomics come in any order, so equal bits cannot be asked for.
        for found, expected in zip(graph.results, work(name, fresh, backward), strict=True):
            assert_close(found.float().cpu(), expected.float().cpu(), 8 * EPS[dtype], f"{name}, contents {seed}")


def test_captures_differ_between_contents():
    """What the test above compares depends on the contents."""
    name = "match masked"
    first, second = (work(name, place(CALLS[name], CALLS[name].sizes[2], torch.float32, DEVICE, s), 0) for s in (1, 2))
    assert (first[0] - second[0]).abs().max().item() > 0.1


FIRST_CALL = """
import contextlib, warnings, torch, cosegflow
from benchmarks.check.small_shapes import CALLS, PUBLIC, place, with_gradients
warnings.simplefilter("error", RuntimeWarning)
name, device = {name!r}, {device!r}
inputs = place(CALLS[name], CALLS[name].sizes[1], torch.float16, torch.device(device))
with torch.cuda.graph(torch.cuda.CUDAGraph()) if device == "cuda" else contextlib.nullcontext():
    results = with_gradients(PUBLIC[name](inputs), inputs)
print("captured", len(results))
"""


@pytest.mark.parametrize("name", PUBLIC)
def test_capture_as_the_first_call_of_a_process(name):
    """Without warmup() no check runs during capture, the simple kernels are captured, and nothing fails."""
    status, said = forked.run(FIRST_CALL.format(name=name, device=DEVICE.type), os.environ, timeout=240)
    assert status == 0 and said.startswith("captured "), said
