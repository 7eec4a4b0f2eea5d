"""`cosegflow.match_both` on the CPU against two calls of `cosegflow.match`: ratios, and the difference of results.

    python -m benchmarks.match_both_cpu [--threads 2] [--repeats 9]

Both are timed in turn in one process (A B A B ...); on a shared machine the ratio means much and the times little.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import cosegflow
from benchmarks.match_cpu import gradients, interleaved, largest_error

CASES = [(16, 64, False), (64, 64, False), (256, 64, False), (256, 64, True), (1024, 32, False)]


def measure(channels: int, side: int, masked: bool, repeats: int) -> None:
    """Prints forward, and forward and backward, of one case."""
    generator = torch.Generator().manual_seed(0)
    fa, fb = (torch.randn((1, channels, side, side), generator=generator).requires_grad_() for _ in range(2))
    weight = torch.randn((1, 4, side, side), generator=generator)
    masks = [torch.rand((1, side, side), generator=generator) * 0.9 + 0.1 if masked else None for _ in range(2)]

    def twice() -> Tensor:
        ab, ba = cosegflow.match(fa, fb, *masks), cosegflow.match(fb, fa, *reversed(masks))
        return torch.cat((ab.flow, ba.flow), 1)

    def both() -> Tensor:
        ab, ba = cosegflow.match_both(fa, fb, *masks)
        return torch.cat((ab.flow, ba.flow), 1)

    def with_gradient(function: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: gradients(function(), (fa, fb), weight)

    def without_gradient(function: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return torch.no_grad()(lambda: (function(),))

    wraps: dict[str, Any] = {"forward": without_gradient, "forward + backward": with_gradient}
    for name, wrap in wraps.items():
        twice_s, both_s = interleaved(wrap(twice), wrap(both), repeats)
        difference = largest_error(wrap(both)(), tuple(r.double() for r in wrap(twice)()))
        print(
            f"{name:<19} {channels:>5} {f'{side}x{side}':>7} {'soft' if masked else 'none':>5} {twice_s * 1e3:>9.1f}"
            f" {both_s * 1e3:>9.1f} {twice_s / both_s:>7.2f} {difference:>12.1e}",
            flush=True,
        )


def main() -> None:
    """Parses the arguments and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'':<19} {'C':>5} {'a = b':>7} {'masks':>5} {'twice ms':>9} {'both ms':>9} {'ratio':>7} {'difference':>12}")
    for case in CASES:
        measure(*case, arguments.repeats)


if __name__ == "__main__":
    main()
