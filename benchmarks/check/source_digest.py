"""What the compiled package was built from; setup.py loads this file by its path, so it imports nothing of ours."""

import hashlib
from pathlib import Path

FOLDERS = ("common", "cpu", "cuda", "include", "torch")
SUFFIXES = (".cpp", ".cu", ".cuh", ".h")


def source_digest(root: Path) -> str:
    """A short hash of the names and contents of all that is compiled below root/csrc."""
    found = {file.relative_to(root).as_posix(): file for name in FOLDERS for file in (root / "csrc" / name).rglob("*")}
    total = hashlib.sha256()
    for name in sorted(found):
        if found[name].suffix in SUFFIXES:
            total.update(name.encode() + b"\0" + found[name].read_bytes() + b"\0")
    return total.hexdigest()[:16]
