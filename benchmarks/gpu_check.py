"""One command for a machine with a GPU: the test suite on `cuda`, then `match` and `warp` against eager PyTorch.

    python3 benchmarks/gpu_check.py --wheel dist/cosegflow-*.whl

Needs a python3 with torch >= 2.10 and pytest; installs nothing: the wheel is unpacked into a temporary folder. Without
--wheel the installed cosegflow is used. Results go to one JSON file, rewritten after every step, so that an interrupted
run keeps what it measured. `--device cpu` rehearses every step that needs no GPU.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def output_of(command: list[str]) -> str | None:
    """The first line that a command prints, or None where it cannot run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def provenance(device: str) -> dict[str, Any]:
    """Where and with what the numbers were made."""
    import torch

    from benchmarks.provenance import cpu_name

    cuda = device == "cuda"
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "commit": output_of(["git", "rev-parse", "HEAD"]),
        "modified": bool(output_of(["git", "status", "--porcelain", "--untracked-files=no"])),
        "device": torch.cuda.get_device_name() if cuda else cpu_name(),
        "driver": output_of(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]) if cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def run_tests(device: str, environment: dict[str, str], select: str | None) -> dict[str, Any]:
    """Runs the test suite on one backend; counts and the last lines."""
    files = [str(f) for f in sorted((ROOT / "tests").glob("test_*.py")) if "(backend" in f.read_text()]
    command = [sys.executable, "-m", "pytest", *files, "-q", "-p", "no:cacheprovider"]
    command += ["-k", select] if select else []
    with tempfile.TemporaryDirectory() as elsewhere:  # so that the source folder does not shadow the wheel
        started = time.monotonic()
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=elsewhere,
            env={**environment, "COSEGFLOW_TEST_BACKENDS": device},
        )
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout[-2000:])}
    failures = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return {
        "exit": done.returncode,
        "seconds": round(time.monotonic() - started, 1),
        "counts": counts,
        "failures": failures[:50],
        "tail": (done.stdout + done.stderr).splitlines()[-5:],
    }


def time_of(work: Any, device: str, budget: float) -> dict[str, float]:
    """Median, p20 and p80 in milliseconds, with a cold L2 cache on CUDA."""
    import torch

    for _ in range(3):
        work()
    times: list[float] = []
    flush = torch.empty(256 << 20, dtype=torch.uint8, device=device) if device == "cuda" else None
    stop = time.monotonic() + budget
    while len(times) < 5 or (time.monotonic() < stop and len(times) < 100):
        if flush is None:
            started = time.perf_counter()
            work()
            times.append((time.perf_counter() - started) * 1e3)
            continue
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    times.sort()
    return {f"p{q}_ms": round(times[min(len(times) - 1, len(times) * q // 100)], 4) for q in (20, 50, 80)}


def works(device: str, quick: bool) -> list[dict[str, Any]]:
    """What is timed: sizes and dtypes of match and warp."""
    dtypes = ["float32"] if device == "cpu" else ["float32", "bfloat16", "float16"]
    side, image = (16, 64) if quick else (64, 512)
    rows = [
        {"op": "match", "dtype": dtype, "batch": 1 if quick else 4, "channels": channels, "side": side}
        for dtype in dtypes
        for channels in ((64,) if quick else (64, 256, 1024))
    ]
    rows += [{"op": "warp", "dtype": t, "batch": 1, "channels": c, "side": image} for t in dtypes for c in (3, 64)]
    return rows


def measure(row: dict[str, Any], device: str, budget: float) -> dict[str, Any]:
    """Times one row, ours and eager, forward and forward+backward, with the error of both against float64."""
    import torch

    import cosegflow
    from benchmarks import eager

    generator = torch.Generator().manual_seed(0)
    shape = (row["batch"], row["channels"], row["side"], row["side"])
    dtype = getattr(torch, row["dtype"])
    first = torch.randn(shape, generator=generator)
    if row["op"] == "match":
        # Correlated features, so that the softmax has a peak as it has in use.
        second = (first.roll((3, 5), (2, 3)) + 0.5 * torch.randn(shape, generator=generator)).to(device, dtype)
        contestants: dict[str, Any] = {"cosegflow": lambda a, b: cosegflow.match(a, b).flow, "eager": eager.match}
        exact_of: Any = eager.match
    else:
        second = (torch.randn(row["batch"], 2, *shape[2:], generator=generator) * 5).to(device)
        contestants = {"cosegflow": cosegflow.warp, "eager": eager.warp}
        exact_of = cosegflow.reference.warp
    a, b = first.to(device, dtype).requires_grad_(), second.requires_grad_()
    with torch.no_grad():
        exact = exact_of(a.double(), b.double())
        exact = exact if isinstance(exact, torch.Tensor) else exact[0]
    result: dict[str, Any] = dict(row)
    for name, function in contestants.items():
        try:
            with torch.no_grad():
                error = (function(a, b).double() - exact).abs().max().item()
                result[name] = {"error": error, "forward": time_of(lambda f=function: f(a, b), device, budget)}

            def both(f: Any = function) -> None:
                a.grad = b.grad = None
                out = f(a, b)
                out.backward(torch.ones_like(out))

            result[name]["forward_backward"] = time_of(both, device, budget)
        except Exception as failure:  # a contestant that fails is a row that says so
            result[name] = {"failed": f"{type(failure).__name__}: {failure}"[:300]}
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Command-line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="a prebuilt wheel; default: the installed cosegflow")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", choices=("tests", "bench"), help="one stage alone")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for a rehearsal")
    parser.add_argument("--select", help="pytest -k expression for the tests")
    parser.add_argument(
        "--out", type=Path, help="result file; default: benchmarks/results/gpu_check_<device>_<date>.json"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where everything that ran passed."""
    options = parse(arguments)
    environment = dict(os.environ)
    unpacked = tempfile.TemporaryDirectory()
    if options.wheel is not None:
        if not options.wheel.is_file():
            print(f"gpu_check: --wheel: no such file: {options.wheel}", file=sys.stderr)
            return 2
        zipfile.ZipFile(options.wheel).extractall(unpacked.name)
        environment["PYTHONPATH"] = unpacked.name
        sys.path.insert(0, unpacked.name)
    sys.path.append(str(ROOT))  # for the package `benchmarks`; after the wheel
    import torch

    from benchmarks.provenance import save

    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu_check: torch sees no CUDA device; --device cpu rehearses without one", file=sys.stderr)
        return 2
    result: dict[str, Any] = {"provenance": provenance(options.device)}
    stamp = result["provenance"]["date"][:10]
    name = re.sub(r"\W+", "-", result["provenance"]["device"]).strip("-").lower()
    path = options.out or ROOT / "benchmarks" / "results" / f"gpu_check_{name}_{stamp}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    save(result, path)  # an unwritable folder is found before the first measurement
    failed = False
    if options.only != "bench":
        result["tests"] = run_tests(options.device, environment, options.select)
        failed |= result["tests"]["exit"] != 0
        save(result, path)
        print("tests:", *result["tests"]["tail"][-1:], *result["tests"]["failures"], sep="\n  ")
    if options.only != "tests":
        result["bench"] = []
        print(f"{'op':6} {'dtype':9} {'C':>5} {'side':>5}  forward ms (ours, eager)  forward+backward ms (ours, eager)")
        for row in works(options.device, options.quick):
            measured = measure(row, options.device, 0.05 if options.quick else 1.0)
            result["bench"].append(measured)
            save(result, path)
            cells = [
                measured[who].get(what, {}).get("p50_ms", "failed")
                for what in ("forward", "forward_backward")
                for who in ("cosegflow", "eager")
            ]
            failed |= "failed" in measured["cosegflow"]
            print(f"{row['op']:6} {row['dtype']:9} {row['channels']:5} {row['side']:5} ", *cells, sep="  ")
    print(f"written: {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
