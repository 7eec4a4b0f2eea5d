"""Programs that the tests run."""

import subprocess
from typing import Any


def run(*command: object, **options: Any) -> str:
    """What a command prints; it must end well. `options` are those of subprocess.run."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
