"""`python -m benchmarks.joint`: a training step of the joint model with our operations and with plain torch.

The same model, losses and data; only the operations differ (`plain`). A step is forward, losses, backward and an
optimiser's step with a learning rate of 0, so that every step does the same work. Times: A B A B in one process; peak
memory: one step in a process of its own, beyond what was there before it, after a small step.
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import progress, rows
from .command import BenchError, choose_device
from .measure import memory
from .plain import instead_of_ours
from .provenance import provenance

OURS, PLAIN = "cosegflow", "eager"
BATCH = 4
MEMORY_RUNS = 3


def make_step(
    stride: int, size: int, backbone: str, batch: int, device: torch.device
) -> tuple[Any, Callable[[], Tensor]]:
    """The module and a function that makes one step and returns its loss; gradients stay in the parameters."""
    from cosegflow.data.composer import ComposedPairs
    from cosegflow.data.sources import load_library
    from cosegflow.data.training import TrainingSamples, collate_training
    from cosegflow.demo import ComposedSource
    from cosegflow.joint.model import ModelConfig
    from cosegflow.joint.module import JointModule, TrainConfig

    torch.manual_seed(0)
    module = JointModule(ModelConfig(backbone=backbone, stride=stride, image_size=size), TrainConfig()).to(device)
    composed = ComposedPairs(load_library("none"), batch, seed=0, size=(size, size))
    samples = TrainingSamples(ComposedSource([composed[i] for i in range(batch)]), seed=0)
    given = collate_training([samples[i] for i in range(batch)])
    fields: dict[str, Any] = {k: v.to(device) for k, v in given._asdict().items() if isinstance(v, Tensor)}
    moved = given._replace(**fields)
    optimiser = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.0)

    def step() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        loss = module.training_step(moved, 0)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return module, step


def _as(peer: str) -> Any:
    return instead_of_ours() if peer == PLAIN else nullcontext()


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    """Copies, in float64."""
    return {k: p.grad.double().clone() for k, p in module.named_parameters() if p.grad is not None}


def compare(module: torch.nn.Module, step: Callable[[], Tensor]) -> tuple[float, float]:
    """How far the two are apart: |difference of the losses| / |loss|, and ||difference|| / ||g|| of all gradients."""
    found = {}
    for peer in (OURS, PLAIN):
        with _as(peer):
            found[peer] = float(step()), gradients(module)
    (loss, ours), (other, plain) = found[OURS], found[PLAIN]
    difference = sum(float((ours[k] - plain[k]).square().sum()) for k in ours) ** 0.5
    length = sum(float(g.square().sum()) for g in plain.values()) ** 0.5
    return abs(loss - other) / abs(other), difference / length


def time_in_turn(step: Callable[[], Tensor], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each, in turn."""
    found: dict[str, list[float]] = {OURS: [], PLAIN: []}
    gc.collect()
    gc.disable()
    try:
        with progress.bar(2 * repeats) as advance:
            for _ in range(repeats):
                for peer, seconds in found.items():
                    with _as(peer):
                        if device.type == "cuda":
                            torch.cuda.synchronize(device)
                        start = time.perf_counter()
                        step()
                        if device.type == "cuda":
                            torch.cuda.synchronize(device)
                        seconds.append(time.perf_counter() - start)
                    advance(peer)
    finally:
        gc.enable()
    return found


def own_peak(options: argparse.Namespace, peer: str, stride: int) -> float:
    """Peak bytes of one step in this process."""
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    with _as(peer):
        _, small = make_step(stride, 64, options.backbone, 1, device)
        small()  # what is loaded and made once is not counted
        _, step = make_step(stride, options.size, options.backbone, options.batch, device)
        if device.type == "cuda":
            return memory.peak_cuda(lambda: (step(),), device)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = memory._status("VmRSS")
        step()
        return float(max(0, memory._status("VmHWM") - before))


def peak_of(options: argparse.Namespace, peer: str, stride: int) -> float:
    """The median of a few child processes, each with one step."""
    command = [sys.executable, "-m", f"{__package__}.joint", "--peak-of", peer, "--stride", str(stride)]
    for name in ("size", "batch", "backbone", "device", "threads"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name))]
    peaks = []
    for _ in range(1 if options.quick else MEMORY_RUNS):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"--stride {stride}: {peer}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
        peaks.append(float(json.loads(done.stdout.splitlines()[-1])))
    return sorted(peaks)[len(peaks) // 2]


def measure(options: argparse.Namespace, stride: int, device: torch.device, origin: dict[str, Any]) -> list[rows.Row]:
    """Two rows, ours and plain torch's; prints what they say."""
    module, step = make_step(stride, options.size, options.backbone, options.batch, device)
    loss_error, gradient_error = compare(module, step)
    seconds = time_in_turn(step, options.repeats, device)
    side = options.size // stride
    found = []
    for peer, taken in seconds.items():
        ordered = sorted(taken)
        last = len(ordered) - 1
        p20, median, p80 = (1e3 * ordered[round(q * last)] for q in (0.2, 0.5, 0.8))
        peak = None if options.no_memory else peak_of(options, peer, stride) / 1e6
        row: rows.Row = {
            "work": "joint_step", "direction": "both", "batch": options.batch,
            "channels": module.model.adapter.up.out_channels,
            "a": f"{side}x{side}", "b": f"{side}x{side}", "dtype": "float32", "layout": "contiguous",
            "beta": module.model.config.beta, "peer": peer, "status": "ok", "p20_ms": p20, "median_ms": median,
            "p80_ms": p80, "repeats": len(taken), "memory_mb": peak, "peer_version": torch.__version__, **origin,
        }  # fmt: skip
        row["error_rel"] = gradient_error if peer == OURS else None
        found.append(row)
        print(f"stride {stride}, {peer:9s} {median:8.1f} ms a step (20 to 80 %: {p20:.1f} to {p80:.1f})", end="")
        print("" if peak is None else f", {peak:7.1f} MB")
    ours, plain = found
    said = f"stride {stride}: plain torch takes {plain['median_ms'] / ours['median_ms']:.2f} times as long"
    if ours["memory_mb"] is not None:
        said += f" and {plain['memory_mb'] / ours['memory_mb']:.2f} times the memory"
    print(f"{said}; gradients differ by {gradient_error:.1e}, the loss by {loss_error:.1e} (relative)")
    return found


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joint", description=__doc__)
    parser.add_argument(
        "--stride", type=int, action="append", choices=(8, 4), help="may be given again (default: both)"
    )
    parser.add_argument("--size", type=int, help="of the square images, a multiple of 16 (default: 240)")
    parser.add_argument("--batch", type=int, help=f"pairs (default: {BATCH})")
    parser.add_argument("--backbone", help="default: efficientnet-lite0")
    parser.add_argument("--repeats", type=int, help="steps of each (default: 15)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--quick", action="store_true", help="96 x 96 pixels, 2 pairs, 3 repeats, random weights")
    parser.add_argument("--csv", type=Path, help="the CSV's path (default: bench/joint_DEVICE_TIME.csv)")
    parser.add_argument("--peak-of", choices=(OURS, PLAIN), help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures, prints, and writes a CSV after each stride; 0.

    Raises:
        BenchError: an option that cannot be used.
    """
    options = make_parser().parse_args(argv)
    quick = (96, 2, "tiny", 3)
    usual = (240, BATCH, "efficientnet-lite0", 15)
    for name, value in zip(("size", "batch", "backbone", "repeats"), quick if options.quick else usual, strict=True):
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in ("size", "batch", "repeats", "threads"):
        value = getattr(options, name)
        if value is not None and (value < 1 or (name == "size" and value % 16)):
            need = "a multiple of 16" if name == "size" else "at least 1"
            raise BenchError(f"--{name}: need {need}, got {value}")
    if options.peak_of:
        print(json.dumps(own_peak(options, options.peak_of, options.stride[0])))
        return 0
    device = choose_device(options.device)
    options.device = str(device)
    if options.threads:
        torch.set_num_threads(options.threads)
    path: Path = options.csv or Path("bench") / f"joint_{device.type}_{datetime.now().strftime('%Y-%m-%d_%H%M%S')}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = provenance(device, " ".join(["python -m benchmarks.joint", *(sys.argv[1:] if argv is None else argv)]))
    print(f"{origin['device_name']}, {torch.get_num_threads()} threads, torch {torch.__version__}; ", end="")
    print(f"{options.batch} pairs of {options.size} x {options.size} pixels, {options.backbone}, dense matcher")
    found: list[rows.Row] = []
    for stride in options.stride or (8, 4):
        found += measure(options, stride, device, origin)
        rows.write(found, path)
    print(path)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"python -m benchmarks.joint: error: {error}")
