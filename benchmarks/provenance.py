"""Where and with what a number was made."""

import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent


def cpu_name() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def output_of(*command: str) -> str | None:
    """What a command prints, or None where it cannot run or fails; '' where it prints nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def built_from() -> str:
    """The commit that the installed package was built from, where its build knew."""
    import cosegflow

    try:
        info = json.loads((Path(cosegflow.__file__).parent / "_build_info.json").read_text())
    except (OSError, ValueError):
        return ""
    return str(info.get("commit") or "")


def provenance(device: torch.device, command: str | None = None) -> dict[str, Any]:
    """The columns `rows.PROVENANCE`."""
    import cosegflow

    cuda = device.type == "cuda"
    ours = output_of("git", "rev-parse", "--show-toplevel") == str(HERE.parent)  # not a repository around a venv
    status = output_of("git", "status", "--porcelain", "--untracked-files=no") if ours else None
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command or " ".join(["python", *sys.argv]),
        "commit": (output_of("git", "rev-parse", "HEAD") if ours else None) or built_from(),
        "modified": None if status is None else bool(status),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if cuda else cpu_name(),
        "driver": output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "cosegflow": cosegflow.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def save(result: dict[str, Any], path: Path) -> None:
    """JSON, written beside, then renamed: an interrupted run leaves the last whole file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, path)
