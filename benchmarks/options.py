"""The options of `cosegflow bench`; light, because every run of `cosegflow` reads them."""

import argparse
from pathlib import Path

from .case import DIRECTIONS, DTYPES

SETS = ("quick", "cpu", "gpu", "sweep")
REPEATS = 50
DEFAULT_BUDGET_S = 2.0
QUICK_BUDGET_S = 0.1


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command; their defaults are decided in `main`."""
    parser.add_argument("--works", help="names separated by commas, or 'all' (default)")
    parser.add_argument("--sizes", action="append", metavar="SET|SIZE", help=(
        f"a set ({', '.join(SETS)}) or a size such as B=8,C=256,N=64x64,bfloat16,foreground=0.3; may be given again "
        "(default: the set that fits the device)"
    ))  # fmt: skip
    parser.add_argument("--directions", help=f"of {', '.join(DIRECTIONS)} (default: all)")
    parser.add_argument("--peers", default="default", help="names, 'default' or 'all' (default: default)")
    parser.add_argument("--dtype", help=f"override the sizes': one of {', '.join(DTYPES)}")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="of timing per contestant and step")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"readings that suffice (default: {REPEATS})")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and budgets: under a minute")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for the CSV and report.html")
    parser.add_argument("--csv", type=Path, help="the CSV's path (default: OUT/bench_DEVICE_TIME.csv)")
    parser.add_argument("--list", action="store_true", help="list works, sizes and peers, and stop")
