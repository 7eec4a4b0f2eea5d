"""What nvcc made of the Hopper kernels: the instructions that are meant to be there are, and local memory is not."""

import re
from collections import Counter
from pathlib import Path

import built_kernels
import pytest

from benchmarks.model import INSTRUCTIONS

CUDA = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
SOURCES = [*sorted(p.stem for p in CUDA.rglob("*_hopper_cuda.cu")), "gradient_product_cuda"]
SCORES = 128  # of a thread in a tile: 4 rows x 32 columns


def instructions(text: str) -> dict[str, list[str]]:
    """Kernel (mangled) -> its instructions, without predicates."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if section := re.search(r"\.text\.(\S+):", line):
            found[section[1]] = current = []
        elif code := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;", line):
            current.append(code[1])
    return found


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> dict[str, list[str]]:
    """Every kernel of the sources for Hopper that uses the pipeline."""
    text = built_kernels.disassembly(tmp_path_factory.mktemp("sass"), "sm_90a", SOURCES)
    return {name: code for name, code in instructions(text).items() if "hopper_kernel" in name}


def mix(code: list[str]) -> Counter[str]:
    """How often each instruction occurs, by its name before the first dot."""
    return Counter(line.split()[0].split(".")[0] for line in code)


def after_product(code: list[str]) -> list[str]:
    """What runs between a tile's last product and the release of its columns, without the block that a branch skips.

    Two arrivals end it: that which gives the last stage back, and that which gives the columns back.
    """
    waits = [i for i, line in enumerate(code) if line.startswith("WARPGROUP.DEPBAR.LE gsb0, 0x0")]
    arrivals = [i for i, line in enumerate(code) if line.startswith("SYNCS.ARRIVE") and i > waits[0]]
    return code[arrivals[0] + 1 : arrivals[1]]


def test_there_are_kernels(kernels):
    names = {re.search(r"\d([a-z_]+)_hopper_kernel", name)[1] for name in kernels}
    assert names == {
        "match", "match_both", "transfer", "correlation", "match_backward", "match_both_backward", "transfer_backward",
        "gradient_product",
    }  # fmt: skip


def test_intended_instructions(kernels):
    for name, code in kernels.items():
        counts = mix(code)
        # One loop, unrolled once; the gradient products have one for each of the two.
        assert counts["HGMMA"] == 8 * loops(name), f"{name}: 4 steps of depth times 2 halves of the rows"
        assert counts["UTMALDG"] >= 2, f"{name}: tiles of a and of b by TMA"
        assert counts["UBLKCP"] >= 2 or re.search("correlation|gradient_product", name), (
            f"{name}: the numbers of columns by bulk copies"
        )
        assert counts["SYNCS"] >= 10 and counts["USETMAXREG"] == 2, name
        assert counts["HMMA"] == 0, f"{name}: a product on the slower path"


def test_nothing_in_local_memory(kernels):
    """The sums for masks and beta of a backward have a strip's numbers there, and a few reads of them a tile."""
    for name, code in kernels.items():
        local = [line for line in code if re.match(r"(LDL|STL)\b", line)]
        if "_backward_hopper_kernel" in name and "Lb1E" in name:
            first = next(i for i, line in enumerate(code) if line.startswith("HGMMA"))
            end = next(i for i, line in enumerate(code) if i > first and line.startswith("USETMAXREG"))
            local = [line for line in code[first:end] if re.match(r"(LDL|STL)\b", line)]
            few = 9 if "match_both" in name else 2
            assert len(local) <= few and not any(line.startswith("STL") for line in local), f"{name}: {local}"
            continue
        assert not local, f"{name}: {local[:5]}"


def loops(name: str) -> int:
    """Loops of products that a kernel has."""
    return 2 if "gradient_product" in name else 1


def test_products_are_not_serialised(kernels):
    """One wait for the newest group but one in the loop, one for all after it: what ptxas adds would show."""
    for name, code in kernels.items():
        waits = [line for line in code if line.startswith("WARPGROUP.DEPBAR")]
        assert len(waits) == 2 * loops(name), f"{name}: {waits}"


def test_softmax_of_match(kernels):
    """One exponential a score, nothing that guards it, and no more instructions than the model says."""
    plain = {name: code for name, code in kernels.items() if re.search(r"14?\d*match_hopper_kernel.*VariantE0E", name)}
    assert len(plain) == 2  # float16 and bfloat16
    for name, code in plain.items():
        counts = mix(after_product(code))
        assert counts["MUFU"] == SCORES, name
        assert counts["LDS"] == SCORES // 4, f"{name}: 16 bytes for 4 scores"
        assert counts["FMNMX"] == SCORES, name
        rare = SCORES  # the norms of rows where beta is huge
        assert sum(counts.values()) - rare <= INSTRUCTIONS["match"] * SCORES, f"{name}: {counts}"


def test_stores_of_correlation(kernels):
    """16 bytes at a time, which nobody reads soon, and no more instructions than docs/kernels/correlation.md says."""
    halves = {
        name: code
        for name, code in kernels.items()
        if re.search("correlation_hopper_kernelINS_(8BFloat16|4Half)ES", name)
    }
    assert len(halves) == 4  # both types, from planes and from packed rows
    for name, code in halves.items():
        last_wait = next(i for i, line in enumerate(code) if line.startswith("WARPGROUP.DEPBAR.LE gsb0, 0x0"))
        stores = [i for i, line in enumerate(code) if line.startswith("STG.E.EF.128")]
        assert len(stores) == 2 * SCORES // 8, f"{name}: with relu and without"
        one_way = code[last_wait : stores[SCORES // 8 - 1] + 1]
        counts = mix(one_way)
        assert counts["SHFL"] == counts["F2FP"] == SCORES // 2, f"{name}: {counts}"
        assert len(one_way) <= 5.6 * SCORES, f"{name}: {counts}"


def test_loads_of_warp(tmp_path):
    """Channels last: 16 bytes a tap and a store, from global memory and not from wherever a pointer may lead."""
    text = built_kernels.disassembly(tmp_path, "sm_90a", ["warp_forward_cuda", "warp_gather_cuda"])
    kernels = instructions(text)
    for kernel, loads in (("warp_forward_channels", 4), ("warp_gather_channels", 2)):
        found = {name: code for name, code in kernels.items() if kernel in name}
        assert len(found) == 4  # types
        for name, code in found.items():
            wide = Counter(line.split()[0] for line in code)
            assert wide["LDG.E.128"] >= loads and wide["STG.E.128"] >= 1, f"{name}: {wide}"
            assert not any(re.match(r"(LD|ST)(\.|\s)", line) for line in code), f"{name}: generic addresses"
