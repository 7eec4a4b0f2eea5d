"""Every operation forward and backward at small odd sizes: what the sanitizers watch and CUDA graphs capture.

python -m benchmarks.check.small_shapes --group match [--device cpu]

`CALLS` has one row for each way to call an operation; a new operation is a new row. The last line that this prints is
`small_shapes: N calls`, without which something went wrong.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import cosegflow
from cosegflow._operators import operators
from cosegflow.reference import accumulate_dtype

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
Inputs = dict[str, Tensor]
FINISHED = "small_shapes: "

PAIRS = (
    (1, 3, 1, 1, 2, 1),
    (2, 19, 5, 7, 6, 9),
    (2, 72, 9, 17, 11, 13),
    (1, 136, 3, 5, 16, 20),
    (1, 64, 16, 16, 16, 16),
)
"""(B, C, Ha, Wa, Hb, Wb): less than a tile, odd tails, more channels and columns than a stage holds, whole tiles."""
STREAMED = (*PAIRS, (1, 330, 9, 17, 11, 13))
"""Also more channels than Hopper's kernels keep the rows of in shared memory."""
VOLUMES = ((1, 1, 1, 1, 2), (2, 3, 5, 16, 17), (1, 2, 3, 33, 32), (2, 3, 5, 13, 21))


@dataclass(frozen=True)
class Call:
    """One way to call an operation."""

    group: str
    sizes: tuple[tuple[int, ...], ...]
    inputs: Callable[[tuple[int, ...], torch.Generator], Inputs]
    """Float32 on the CPU; then `FEATURES` take the dtype, the others its accumulator's."""
    run: Callable[[Inputs, bool], Any]
    """The operator with every output; the flag chooses the simple kernels."""
    deterministic: bool = False
    """Under torch.use_deterministic_algorithms."""


FEATURES = ("fa", "fb", "x", "corr", "values")


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _soft(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Weights in [0, 1), some 0."""
    return torch.relu(torch.rand(shape, generator=generator) - 0.2)


def _pair(size: tuple[int, ...], generator: torch.Generator) -> Inputs:
    b, c, ha, wa, hb, wb = size
    return {"fa": _random((b, c, ha, wa), generator), "fb": _random((b, c, hb, wb), generator)}


def _masked_pair(size: tuple[int, ...], generator: torch.Generator) -> Inputs:
    """With masks, the first image's targets all excluded where there are two, and a beta for each image."""
    b, _, ha, wa, hb, wb = size
    mask_a = (torch.rand((b, ha, wa), generator=generator) > 0.3).float()
    mask_b = _soft((b, hb, wb), generator)
    if b > 1:
        mask_b[0] = 0
    return {**_pair(size, generator), "mask_a": mask_a, "mask_b": mask_b, "beta": torch.linspace(4.0, 12.0, b)}


def _strided_pair(size: tuple[int, ...], generator: torch.Generator) -> Inputs:
    """Channels last, and a slice of something wider."""
    b, c, ha, wa, hb, wb = size
    fa = _random((b, c, ha, wa), generator).contiguous(memory_format=torch.channels_last)
    return {"fa": fa, "fb": _random((b, c, hb, wb + 3), generator)[..., 1:-2], "beta": torch.tensor(9.0)}


def _volume(size: tuple[int, ...], generator: torch.Generator) -> Inputs:
    return {"corr": _random(size, generator), "beta": torch.tensor(5.0)}


def _masked_volume(size: tuple[int, ...], generator: torch.Generator) -> Inputs:
    b, *_, hb, wb = size
    return {"corr": _random(size, generator), "mask_b": _soft((b, hb, wb), generator), "beta": torch.linspace(-2, 5, b)}


def _image(size: tuple[int, ...], generator: torch.Generator) -> Inputs:
    """A flow that also leaves the image, and is not a number once."""
    b, c, ho, wo, h, w = size
    flow = _random((b, 2, ho, wo), generator) * 3
    flow.view(-1)[0] = float("nan")
    return {"x": _random((b, c, h, w), generator), "flow": flow}


def _match(normalize: bool, *, precision: int = 0, portable: bool = False) -> Callable[[Inputs, bool], Any]:
    options = (0.0, False, precision, portable)
    return lambda t, simple: operators.match(
        t["fa"], t["fb"], t.get("mask_a"), t.get("mask_b"), t["beta"], normalize, simple, *options
    )


def _matched_in_window(t: Inputs, simple: bool) -> Any:
    return operators.match(t["fa"], t["fb"], t.get("mask_a"), t.get("mask_b"), t["beta"], True, simple, 2.5, True)


def _correlation(normalize: bool, relu: bool) -> Callable[[Inputs, bool], Any]:
    return lambda t, simple: (operators.correlation(t["fa"], t["fb"], normalize, relu, simple),)


def _soft_argmax(t: Inputs, simple: bool) -> Any:
    return operators.soft_argmax(t["corr"], t.get("mask_b"), t["beta"], simple)


def _soft_argmax_in_window(t: Inputs, simple: bool) -> Any:
    return operators.soft_argmax(t["corr"], t.get("mask_b"), t["beta"], simple, 2.5, True)


def _warp(mode: str, padding: str) -> Callable[[Inputs, bool], Any]:
    return lambda t, simple: operators.warp(t["x"], t["flow"], mode, padding, simple)


def _match_both(t: Inputs, simple: bool) -> Any:
    return operators.match_both(t["fa"], t["fb"], t.get("mask_a"), t.get("mask_b"), t["beta"], True, simple)


def _transferred(size: tuple[int, ...], generator: torch.Generator) -> Inputs:
    """A masked pair and more values than one pass of the fast kernel takes."""
    b, *_, hb, wb = size
    return {**_masked_pair(size, generator), "values": _random((b, 35, hb, wb), generator)}


def _transferred_at_once(size: tuple[int, ...], generator: torch.Generator) -> Inputs:
    """As many values as Hopper's own kernels take, in two passes."""
    b, *_, hb, wb = size
    return {**_masked_pair(size, generator), "values": _random((b, 11, hb, wb), generator)}


def _transfer(t: Inputs, simple: bool) -> Any:
    return operators.transfer(t["fa"], t["fb"], t["values"], t["mask_a"], t["mask_b"], t["beta"], True, simple)


def _window(size: tuple[int, ...], generator: torch.Generator) -> Inputs:
    """A pair with a flow that also leaves the image, and is not a number once."""
    return {**_pair(size, generator), "flow": _image((*size[:1], 1, *size[2:]), generator)["flow"]}


def _local(t: Inputs, simple: bool) -> Any:
    return (operators.local_correlation(t["fa"], t["fb"], t.get("flow"), 2, True, simple),)


def _flows(size: tuple[int, ...], generator: torch.Generator) -> Inputs:
    b, _, ha, wa, hb, wb = size
    return {"flow_ab": _random((b, 2, ha, wa), generator) * 2, "flow_ba": _random((b, 2, hb, wb), generator) * 2}


def _cycle(t: Inputs, simple: bool) -> Any:
    return operators.cycle_error(t["flow_ab"], t["flow_ba"], simple)


CALLS: dict[str, Call] = {
    "match masked": Call("match", STREAMED, _masked_pair, _match(True)),
    "match portable": Call("match", PAIRS, _masked_pair, _match(True, portable=True)),
    "match high": Call("match", PAIRS, _masked_pair, _match(True, precision=1)),
    "match medium": Call("match", PAIRS, _masked_pair, _match(True, precision=2)),
    "match strided": Call("match", PAIRS[:3], _strided_pair, _match(False)),
    "match window and index": Call("match", PAIRS[:3], _masked_pair, _matched_in_window),
    "correlation normalized": Call("correlation", PAIRS, _pair, _correlation(True, True)),
    "correlation strided": Call("correlation", PAIRS[:3], _strided_pair, _correlation(False, False)),
    "soft_argmax": Call("soft_argmax", VOLUMES, _volume, _soft_argmax),
    "soft_argmax masked": Call("soft_argmax", VOLUMES, _masked_volume, _soft_argmax),
    "soft_argmax window and index": Call("soft_argmax", VOLUMES, _masked_volume, _soft_argmax_in_window),
    "warp bilinear": Call("warp", PAIRS, _image, _warp("bilinear", "zeros")),
    "warp border": Call("warp", PAIRS[:3], _image, _warp("bilinear", "border"), deterministic=True),
    "warp nearest": Call("warp", PAIRS[:3], _image, _warp("nearest", "zeros")),
    "match_both": Call("match_both", STREAMED, _masked_pair, _match_both),
    "transfer": Call("transfer", PAIRS, _transferred, _transfer),
    "transfer at once": Call("transfer", STREAMED, _transferred_at_once, _transfer),
    "local_correlation": Call("local_correlation", PAIRS, _pair, _local),
    "local_correlation flow": Call("local_correlation", PAIRS[:3], _window, _local),
    "local_correlation bits": Call("local_correlation", PAIRS[1:3], _window, _local, deterministic=True),
    "cycle_error": Call("cycle_error", PAIRS, _flows, _cycle),
    "cycle_error bits": Call("cycle_error", PAIRS[:3], _flows, _cycle, deterministic=True),
}
PUBLIC: dict[str, Callable[[Inputs], tuple[Tensor, ...]]] = {
    "match masked": lambda t: cosegflow.match(t["fa"], t["fb"], t["mask_a"], t["mask_b"], beta=t["beta"])[:3],
    "match window and index": lambda t: cosegflow.match(
        t["fa"], t["fb"], t["mask_a"], t["mask_b"], beta=t["beta"], kernel_sigma=2.5, return_index=True
    ),
    "correlation normalized": lambda t: (cosegflow.correlation(t["fa"], t["fb"], normalize=True, relu=True),),
    "soft_argmax masked": lambda t: cosegflow.soft_argmax(t["corr"], t["mask_b"], beta=t["beta"])[:3],
    "warp bilinear": lambda t: cosegflow.warp(t["x"], t["flow"], return_valid=True),
    "match_both": lambda t: sum(
        (m[:3] for m in cosegflow.match_both(t["fa"], t["fb"], t["mask_a"], t["mask_b"], beta=t["beta"])), ()
    ),
    "transfer at once": lambda t: (
        cosegflow.transfer(t["fa"], t["fb"], t["values"], t["mask_a"], t["mask_b"], beta=t["beta"]),
    ),
    "transfer": lambda t: (
        cosegflow.transfer(t["fa"], t["fb"], t["values"], t["mask_a"], t["mask_b"], beta=t["beta"]),
    ),
    "local_correlation flow": lambda t: (cosegflow.local_correlation(t["fa"], t["fb"], 2, t["flow"], normalize=True),),
    "cycle_error": lambda t: cosegflow.cycle_error(t["flow_ab"], t["flow_ba"]),
}
"""The public functions, on the inputs of the call of the same name."""
GROUPS = tuple(dict.fromkeys(call.group for call in CALLS.values()))
ALL = "all"
"""All groups in one process."""


def place(call: Call, size: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
    """The inputs on the device, with gradients wherever the operator gives any."""
    tensors = call.inputs(size, torch.Generator().manual_seed(seed))
    acc = accumulate_dtype(dtype)
    placed = {k: v.to(dtype if k in FEATURES else acc).to(device) for k, v in tensors.items()}
    return {k: v.requires_grad_(k != "mask_a") for k, v in placed.items()}


def with_gradients(outputs: Sequence[Tensor], inputs: Inputs) -> list[Tensor]:
    """The outputs, then the gradients of a fixed combination of them by the inputs that have any."""
    # confidence and the mask of valid pixels have no gradient; a log-sum-exp of nothing is minus infinity.
    terms = [torch.where(torch.isfinite(o), o, 0).double().square().sum() for o in outputs if o.requires_grad]
    leaves = [v for v in inputs.values() if v.requires_grad]
    gradients = torch.autograd.grad(torch.stack(terms).sum(), leaves, allow_unused=True)
    return [*(o.detach() for o in outputs), *(g for g in gradients if g is not None)]


def problems(group: str, quick: bool = False) -> Iterator[tuple[str, Call, tuple[int, ...], torch.dtype, bool]]:
    """(name, call, size, dtype, simple) of a group."""
    for name, call in CALLS.items():
        if group in (call.group, ALL):
            for size in call.sizes[:2] if quick else call.sizes:
                for dtype in DTYPES:
                    for simple in (False, True):
                        yield name, call, size, dtype, simple


def run(group: str, device: torch.device, quick: bool) -> int:
    """Runs a group; the number of calls.

    Raises:
        AssertionError: a result is not a number.
    """
    count = 0
    for name, call, size, dtype, simple in problems(group, quick):
        torch.use_deterministic_algorithms(call.deterministic)
        inputs = place(call, size, dtype, device)
        for tensor in with_gradients(call.run(inputs, simple), inputs):
            # On the CPU, so that the sanitizers see a copy of every byte and no kernel of torch's.
            found = tensor.cpu()
            assert not (found.is_floating_point() and bool(found.isnan().any())), f"NaN: {name} {size} {dtype}"
        count += 1
    return count


def main(arguments: list[str] | None = None) -> int:
    """Runs one group."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=(*GROUPS, ALL), required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="two sizes of each")
    options = parser.parse_args(arguments)
    count = run(options.group, torch.device(options.device), options.quick)
    print(f"{FINISHED}{count} calls", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
