"""What every benchmark's result file needs: the machine's name, and a write that cannot be left half done."""

import json
import platform
from pathlib import Path
from typing import Any


def cpu_name() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def save(result: dict[str, Any], path: Path) -> None:
    """Written beside, then renamed: an interrupted run leaves the last whole file."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(path)
