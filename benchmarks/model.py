"""What match's Hopper kernels and their peers take at the limits of the chip: the model behind docs/kernels/match.md.

    python -m benchmarks.model           # writes the tables of that document
    python -m benchmarks.model --check   # prints what differs and fails

Nothing here is measured. Counts of operations and bytes are divided by what the data sheet of the GPU says; a peer is
charged with its product at the full rate of the tensor cores and with its passes over the volume at the full
bandwidth, one after the other, and nothing else. Our kernel is charged twice: as if product and softmax overlapped
fully, and as if product and softmax did not overlap at all. What it will take lies between, and above where a limit is
not reached.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from . import documents
from .case import Case

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "kernels" / "match.md"


@dataclass(frozen=True)
class Gpu:
    """A chip by its data sheet; per multiprocessor and clock where nothing else is said."""

    name: str = "H200"
    multiprocessors: int = 132
    clock: float = 1.83e9
    """Hz: that at which 4096 FLOP a clock are the data sheet's 989 TFLOP/s."""
    half_flops: int = 4096
    float32_flops: int = 256
    instructions: int = 128
    """Of threads: four schedulers of 32."""
    exponentials: int = 16
    shared_bytes: int = 128
    """Of shared memory, whoever reads or writes; a load into registers counts each lane's bytes."""
    bandwidth: float = 4.8e12
    """Bytes of device memory a second."""
    cache: float = 9.7e12
    """Bytes a second of the second-level cache, of a set up to 40 MB: not in the data sheet but measured by others."""

    def seconds(self, clocks: float) -> float:
        """Of work that is spread evenly over the multiprocessors."""
        return clocks / self.multiprocessors / self.clock


H200 = Gpu()
ROWS, COLUMNS, DEPTH = 256, 128, 64
"""The kernel's tile and slab (csrc/cuda/hopper/tile_shape.cuh)."""
RESIDENT = 4
"""Slabs of rows that stay in shared memory for all columns."""
INSTRUCTIONS = {"match": 8.8, "match_both": 17.8}
"""A thread's instructions for a score, softmax and all, counted in the SASS (tests/test_sass.py compares match's)."""
EXPONENTIALS: dict[str, float] = {"match": 1, "match_both": 1.2}
SHUFFLES = {"match": 0.0, "match_both": 28 / 32}
"""Of a score: 4 sums of 8 columns take 7 each, for 32 scores of a thread (both_softmax.cuh)."""
TERMS = {"highest": 1, "high": 3, "medium": 1}


def _padded(n: float, step: int) -> int:
    return ceil(n / step) * step


@dataclass(frozen=True)
class Ours:
    """Seconds that the parts of a call take at the limit of a unit each."""

    pack: float
    """Bytes of device memory: packing and, in match_both, the states of columns."""
    product: float
    softmax: float
    shared: float
    """Shared memory: operands of the products, copies into it, the columns' numbers."""
    cache: float
    """Slabs from the second-level cache."""

    @property
    def limit(self) -> str:
        """The unit that alone takes longest, beside packing."""
        return max(("product", "softmax", "shared", "cache"), key=lambda unit: getattr(self, unit))

    @property
    def overlapped(self) -> float:
        """Each unit hides behind the slowest."""
        return self.pack + getattr(self, self.limit)

    @property
    def apart(self) -> float:
        """The softmax hides behind nothing."""
        return self.pack + max(self.product, self.cache) + self.softmax


def ours(case: Case, work: str = "match", precision: str = "highest", gpu: Gpu = H200) -> Ours:
    """A forward of `match` or `match_both` on halves, or on float32 at `precision` "high" or "medium"."""
    pixels = [case.foreground * h * w for h, w in (case.a, case.b)]
    tiles = case.batch * ceil(pixels[0] / ROWS) * ceil(pixels[1] / COLUMNS)
    tiles = _padded(tiles, gpu.multiprocessors)  # who has one more decides
    depth = TERMS[precision] * _padded(case.channels, 8)
    slabs = ceil(depth / DEPTH)
    scores = ROWS * COLUMNS
    size = 4 if case.dtype == "float32" else 2
    packed = case.batch * sum(pixels) * (case.channels * size + depth * 2)
    if work == "match_both":  # a state of 16 bytes for each column and 128 rows, written and read
        packed += 2 * 16 * case.batch * ceil(pixels[0] / 128) * pixels[1]
    softmax = max(INSTRUCTIONS[work] / gpu.instructions, EXPONENTIALS[work] / gpu.exponentials)
    slab_bytes = 2 * DEPTH * (COLUMNS + (ROWS if slabs > RESIDENT else 0))  # that a tile moves
    operand_bytes = 2 * DEPTH * (ROWS + ROWS // 64 * COLUMNS)  # each product of 64 rows reads all columns
    shared = slabs * (operand_bytes + slab_bytes) + scores // 4 * 16  # 16 bytes for 4 scores
    shared += int(scores * SHUFFLES[work] * 4)  # 32 lanes a clock, as if each moved 4 bytes
    if work == "match_both":  # a state of 16 bytes for each column and warp, written and read
        shared += 2 * 16 * COLUMNS * 8
    return Ours(
        pack=packed / gpu.bandwidth,
        product=gpu.seconds(tiles * 2 * scores * slabs * DEPTH / gpu.half_flops),
        softmax=gpu.seconds(tiles * scores * softmax),
        shared=gpu.seconds(tiles * shared / gpu.shared_bytes),
        cache=tiles * slabs * slab_bytes / gpu.cache,
    )


def eager(case: Case, score_bytes: int, passes: int = 4, gpu: Gpu = H200) -> float:
    """Seconds of a product and passes over its volume: one writes it, softmax reads and writes, the last one reads."""
    scores = case.batch * case.a[0] * case.a[1] * case.b[0] * case.b[1]
    rate = gpu.float32_flops if case.dtype == "float32" else gpu.half_flops
    return gpu.seconds(2 * scores * case.channels / rate) + passes * score_bytes * scores / gpu.bandwidth


@dataclass(frozen=True)
class Row:
    """A comparison that the project aims at."""

    what: str
    peer: float
    mine: Ours
    asked: float

    def cells(self) -> list[str]:
        """For the table: limits, ratios, and how much of its own limit the kernel needs for what is asked."""
        need = self.asked * self.mine.overlapped / self.peer
        times = [f"{1e6 * t:.0f}" for t in (self.peer, self.mine.overlapped, self.mine.apart)]
        ratios = [f"{self.peer / t:.1f}" for t in (self.mine.overlapped, self.mine.apart)]
        return [self.what, *times, *ratios, f"{self.asked:g}", f"{need:.2f}"]


def rows() -> list[Row]:
    """What is asked of the forward, at B=8 and N=64x64."""
    base = Case(batch=8, dtype="bfloat16")
    found = []
    for size, name, asked in ((2, "half", (3, 2.2, 1.25, 1.15)), (4, "float32", (5, 4, 1.8, 1.5))):
        for channels, ratio in zip((128, 256, 768, 1024), asked, strict=True):
            case = replace(base, channels=channels)
            found.append(Row(f"C={channels}, eager with {name} scores", eager(case, size), ours(case), ratio))
    case = replace(base, channels=256)
    for channels in (256, 768):
        twice = replace(base, channels=channels)
        found.append(
            Row(f"C={channels}, match_both, two calls", 2 * ours(twice).overlapped, ours(twice, "match_both"), 1.6)
        )
    single = replace(case, dtype="float32")
    found.append(
        Row("C=256, float32 high, eager highest", eager(single, 4), ours(single, precision="high"), 2.5),
    )
    masked = replace(case, foreground=0.3)
    found.append(Row("C=256, foreground 0.3 in both, dense", ours(case).overlapped, ours(masked), 6))
    return found


HEADER = ("work", "peer, us", "ours, us", "no overlap", "ratio", "no overlap", "asked", "needed of the limit")


def parts() -> str:
    """The parts of a call at the sizes of the sweep."""
    body = []
    for channels in (64, 128, 256, 512, 768, 1024):
        case = Case(batch=8, channels=channels, dtype="bfloat16")
        mine = ours(case)
        units = (mine.pack, mine.product, mine.softmax, mine.shared, mine.cache)
        flops = 2 * 8 * 4096**2 * channels
        rates = [f"{flops / seconds / 989.4e12:.2f}" for seconds in (mine.overlapped, mine.overlapped - mine.pack)]
        times = [f"{1e6 * t:.0f}" for t in (*units, mine.overlapped)]
        body.append([str(channels), *times, mine.limit, *rates])
    header = (
        "C", "pack, us", "product", "softmax", "shared memory", "cache", "all, us", "limit", "of 989 TFLOP/s",
        "without packing",
    )  # fmt: skip
    return documents.markdown_table(header, body)


BLOCKS = {"limits": parts, "targets": lambda: documents.markdown_table(HEADER, [row.cells() for row in rows()])}


def expected(path: Path = DOCUMENT) -> str:
    """The document as the model says."""
    text = path.read_text(encoding="utf-8")
    return documents.fill(text, path, tuple(BLOCKS), lambda name: BLOCKS[name]())


def check(path: Path = DOCUMENT) -> list[str]:
    """What differs, as lines of a diff."""
    text = path.read_text(encoding="utf-8")
    new = expected(path)
    return [] if new == text else documents.changed_lines(text, new, path)


def publish(path: Path = DOCUMENT) -> list[Path]:
    """Writes the document; the path if it changed."""
    return [path] if documents.write(path, expected(path)) else []


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__)
    parser.add_argument("--check", action="store_true", help="print what differs and fail, instead of writing")
    arguments = parser.parse_args()
    advice = "run `python -m benchmarks.model` and commit what it writes"
    return documents.run(check if arguments.check else None, publish, advice, "benchmarks.model")


if __name__ == "__main__":
    sys.exit(main())
