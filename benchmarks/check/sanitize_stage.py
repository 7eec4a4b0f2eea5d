"""compute-sanitizer over the small shapes: its command lines, and what its output means.

The tool is that of --sanitizer, else of the package nvidia-cuda-sanitizer-api, PATH, CUDA_HOME or the usual folder.
Releases before 2026.4 may report cp.async with zero-fill falsely (memcheck, initcheck); the package is newer.
Each group runs once without a tool ('plain'), so that a failure of ours is not taken for one of a tool.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .process import Done
from .small_shapes import ALL, FINISHED, GROUPS

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
PLAIN = "plain"
ERRORS_FOUND = 86
"""The exit code that the tool is asked for."""
NAMESPACE = "cosegflow"
"""Part of the mangled and of the demangled name of every kernel of ours."""
TRACKS_OTHERS = "--initcheck-track-filtered-global-memory"
"""Where a release lacks this option, initcheck with a filter takes what torch's kernels wrote for uninitialised."""

SUMMARY = re.compile(r"=+ (ERROR SUMMARY: (\d+) errors?|RACECHECK SUMMARY: (\d+) hazards? displayed.*)")
REFUSED = (
    "Device not supported", "Unable to find injection library", "Internal Sanitizer", "Failed to initialize",
    "Unsupported architecture", "is not supported on this device", "No attachable process found", "Could not fork",
    "Could not execvp", "Filter ill-formed", "unrecognised option", "Failed to parse options",
    "Target application terminated before first instrumented API call", "Tool exited abnormally",
)  # fmt: skip


def find_tool(given: Path | None) -> str | None:
    """The path of compute-sanitizer, or None."""
    if given is not None:
        return str(given)
    name = "compute-sanitizer"
    packages = [Path(p) / "nvidia" / cuda / "bin" for p in sys.path if p for cuda in ("cu13", "cuda_sanitizer_api")]
    toolkits = [Path(os.environ[v]) / "bin" for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)]
    toolkits += [Path("/usr/local/cuda/bin"), Path("/usr/local/cuda/compute-sanitizer")]

    def first(folders: list[Path]) -> str | None:
        return next((str(f / name) for f in folders if os.access(f / name, os.X_OK)), None)

    return first(packages) or shutil.which(name) or first(toolkits)


def describe_tool(tool: str) -> tuple[str, str]:
    """Its version and its help text; '' where it does not answer."""

    def ask(option: str) -> str:
        try:
            done = subprocess.run([tool, option], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout + done.stderr

    version = re.search(r"Version (.+)", ask("--version"))
    return version[1] if version else "", ask("--help")


def program(group: str, device: str, quick: bool) -> list[str]:
    """What is watched."""
    command = [sys.executable, "-m", "benchmarks.check.small_shapes", "--group", group, "--device", device]
    return [*command, *(["--quick"] if quick else [])]


def command_of(tool: str, check: str, help_text: str, port: int, watched: list[str]) -> list[str]:
    """The command line of one check; only options that every release since 2022 has, and those that `--help` names."""
    options = ["--tool", check, "--error-exitcode", str(ERRORS_FOUND), "--target-processes", "application-only"]
    options += ["--port", str(port), "--print-limit", "50", "--launch-timeout", "120"]
    options += ["--show-backtrace", "device" if "Only device backtrace" in help_text else "no"]
    if check == "memcheck":
        options += ["--report-api-errors", "no"]  # a call that fails raises in the program
    if check != "initcheck" or TRACKS_OTHERS in help_text:
        options += ["--kernel-name", f"kernel_substring={NAMESPACE}"]
    return [tool, *options, *watched]


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """Each tensor in an allocation of its own, so that one step beyond its end is seen."""
    return {**base, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


@dataclass(frozen=True)
class Block:
    """One finding: the lines of the tool from one that is not indented to the next."""

    lines: tuple[str, ...]

    @property
    def foreign(self) -> bool:
        """Whether it names where it was found, and that is no kernel of ours."""
        at = [line for line in self.lines if re.match(r"(at|and) .*\+0x|.* access at ", line)]
        return bool(at) and not any(NAMESPACE in line for line in self.lines)

    @property
    def is_finding(self) -> bool:
        """Whether it is about the program, not about the tool."""
        return self.lines[0].startswith(("Invalid", "Uninit", "Barrier", "Divergent", "Error: Race", "Warning: Race"))


def blocks(output: str) -> list[Block]:
    """The findings in the tool's output."""
    found: list[list[str]] = []
    for line in output.splitlines():
        if not (match := re.match(r"=========(.*)", line)):
            continue
        text = match[1]
        if re.match(r"\s{3,}\S", text):
            if found:
                found[-1].append(text.strip())
        elif text.strip() and "SUMMARY" not in text and text.strip() != "COMPUTE-SANITIZER":
            found.append([text.strip()])
    return [Block(tuple(lines)) for lines in found]


def judge(done: Done) -> dict[str, Any]:
    """A row from how a check ended: 'clean', 'errors', 'refused', 'timeout' or 'failed' (the program, not the tool)."""
    row: dict[str, Any] = {"exit": done.exit, "seconds": round(done.seconds, 1)}
    if done.exit is None:
        return {**row, "status": "timeout", "reason": " | ".join(done.tail(2))}
    finished = re.search(rf"^{FINISHED}\d+ calls", done.output, re.MULTILINE) is not None
    summaries = [m for line in done.output.splitlines() if (m := SUMMARY.match(line))]
    refusal = next((line for line in done.output.splitlines() if any(r in line for r in REFUSED)), None)
    if refusal is not None and not finished:
        return {**row, "status": "refused", "reason": refusal.strip("= ")[:300]}
    found = blocks(done.output)
    ours = [b for b in found if not b.foreign]
    findings = {"status": "errors", "errors": [list(b.lines[:8]) for b in ours[:5]]}
    if not summaries:
        if any(b.is_finding for b in ours):
            return {**row, **findings}
        # Nothing of ours ends the program before the tool's last line: the plain run of this group has passed.
        return {**row, "status": "refused", "reason": f"no summary; {' | '.join(done.tail(3))}"[:600]}
    row["summary"] = summaries[-1][1]
    count = sum(int(m[2] or m[3]) for m in summaries)
    row["foreign"] = len(found) - len(ours)
    if count > row["foreign"]:
        return {**row, **findings}
    if not finished:
        return {**row, "status": "failed", "reason": " | ".join(done.tail(4))[:600]}
    return {**row, "status": "clean"}


def judge_plain(done: Done) -> dict[str, Any]:
    """The row of a run without a tool."""
    row: dict[str, Any] = {"exit": done.exit, "seconds": round(done.seconds, 1)}
    if done.exit is None:
        return {**row, "status": "timeout", "reason": " | ".join(done.tail(2))}
    status = "clean" if done.exit == 0 and FINISHED in done.output else "failed"
    return {**row, "status": status, **({} if status == "clean" else {"reason": " | ".join(done.tail(4))[:600]})}


def all_keys(quick: bool) -> list[str]:
    """'tool group', the plain runs first, then the checks in the order of what they can find; quick: no groups."""
    return [f"{tool} {group}" for tool in (PLAIN, *TOOLS) for group in ((ALL,) if quick else GROUPS)]
