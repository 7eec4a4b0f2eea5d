"""One command for a machine with a GPU; see `benchmarks/check/command.py`, or --help.

python3 benchmarks/gpu_check.py --wheel dist/cosegflow-*.whl
"""

import signal
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]


def stop(number: int, _: object) -> NoReturn:
    """Ends like Ctrl-C does, so that children are killed."""
    raise SystemExit(128 + number)


def main() -> int:
    """Imports `benchmarks` from this checkout, and then leaves `cosegflow` to whatever --wheel or --installed say."""
    signal.signal(signal.SIGTERM, stop)
    sys.path[:] = [p for p in sys.path if Path(p).resolve() not in (ROOT, ROOT / "benchmarks")]
    sys.path.insert(0, str(ROOT))
    from benchmarks.check import command

    sys.path.remove(str(ROOT))
    sys.path.append(str(ROOT))
    return command.main()


if __name__ == "__main__":
    sys.exit(main())
