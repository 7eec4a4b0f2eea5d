"""Operations on a stream and on a device that are not the current default.

Without a GPU the same bodies run without a stream, so that they are known to run.
"""

import contextlib

import pytest
import torch
from errors import EPS, assert_close

from benchmarks.check.small_shapes import CALLS, PUBLIC, place, with_gradients

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
SLEEP_CYCLES = 50_000_000  # some 30 ms: whatever does not wait for the stream comes first
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])


def work(name, inputs):
    return with_gradients(PUBLIC[name](inputs), inputs)


class SideStream:
    """A stream that is busy; the caller's stream waits for it at `join`."""

    def __init__(self):
        self.stream = torch.cuda.Stream() if CUDA else None

    @contextlib.contextmanager
    def busy(self):
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(SLEEP_CYCLES)
            yield

    def join(self):
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)


def compare(found, expected, dtype, what):
    for one, other in zip(found, expected, strict=True):
        # Sums of atomics come in any order, so equal bits cannot be asked for.
        assert_close(one.float().cpu(), other.float().cpu(), 8 * EPS[dtype], what)


@DTYPES
@pytest.mark.parametrize("name", PUBLIC)
def test_side_stream(name, dtype):
    """The inputs get their contents on a busy stream: a kernel on any other stream would read zeros."""
    inputs = place(CALLS[name], CALLS[name].sizes[2], dtype, DEVICE, seed=3)
    expected = work(name, inputs)
    late = {k: torch.zeros_like(v).requires_grad_(v.requires_grad) for k, v in inputs.items()}
    side = SideStream()
    with side.busy():
        with torch.no_grad():
            for key, tensor in late.items():
                tensor.copy_(inputs[key])
        found = work(name, late)
    side.join()
    compare(found, expected, dtype, name)


@DTYPES
@pytest.mark.parametrize("name", PUBLIC)
def test_inputs_freed_while_the_stream_is_busy(name, dtype):
    """record_stream keeps the memory: what is allocated next on the default stream does not overwrite it."""
    inputs = place(CALLS[name], CALLS[name].sizes[2], dtype, DEVICE, seed=4)
    expected = [t.clone() for t in work(name, inputs)]
    sizes = [(v.shape, v.dtype) for v in inputs.values()]
    side = SideStream()
    with side.busy():
        found = work(name, inputs)
        if side.stream is not None:
            for tensor in inputs.values():
                tensor.record_stream(side.stream)
    del inputs
    garbage = [torch.full(shape, float("nan"), dtype=kind, device=DEVICE) for shape, kind in sizes for _ in range(4)]
    side.join()
    compare(found, expected, dtype, name)
    assert all(bool(g.isnan().all()) for g in garbage)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
@DTYPES
@pytest.mark.parametrize("name", PUBLIC)
def test_second_device(name, dtype):
    """Tensors of cuda:1 while cuda:0 is current: computed there, and the current device stays."""
    torch.cuda.set_device(0)
    size = CALLS[name].sizes[2]
    expected = work(name, place(CALLS[name], size, dtype, torch.device("cuda", 0), seed=5))
    found = work(name, place(CALLS[name], size, dtype, torch.device("cuda", 1), seed=5))
    assert torch.cuda.current_device() == 0
    assert {t.device.index for t in found} == {1}
    compare(found, expected, dtype, name)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
def test_inputs_on_two_devices_are_refused():
    name = "match masked"
    inputs = place(CALLS[name], CALLS[name].sizes[1], torch.float32, torch.device("cuda", 0))
    with pytest.raises(ValueError, match="device"):
        PUBLIC[name]({**inputs, "fb": inputs["fb"].detach().to("cuda:1")})
