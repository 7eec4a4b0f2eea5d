"""The stages of `make gpu-check`, each going through its steps until its share of the time is over."""

import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import sanitize_stage, self_check, tests_stage
from .process import Clock, Done, conduct, execute
from .result import OUT_OF_TIME, Result

STEP_S = {"self_check": 120.0, "tests": 400.0, "sanitize": 240.0, "bench": 150.0}
"""How long one step may take; longer is a timeout, and a failure."""
LEAST_S = 5.0
"""A step is not begun with less than this."""
SANITIZERS_AT_ONCE = 3
FIRST_PORT = 49152


def brief(reason: str) -> str:
    """The last of the lines of a reason, which is where an exception is named."""
    return reason.split(" | ")[-1][:200]


@dataclass
class Context:
    """What all stages share."""

    device: str
    quick: bool
    select: str | None
    peers: str
    sanitizer: Path | None
    environment: dict[str, str]
    elsewhere: Path
    """The working folder of children: not the checkout, whose folders would shadow the wheel."""
    result: Result
    command: str

    def say(self, line: str) -> None:
        """Progress."""
        print(line, flush=True)

    def put(self, section: str, key: str, row: dict[str, Any]) -> None:
        """Keeps a step's outcome and says it."""
        self.result.put(section, key, row)
        seconds = f" ({row['seconds']} s)" if "seconds" in row else ""
        reason = f": {brief(row['reason'])}" if row.get("reason") else ""
        self.say(f"{section}: {key}: {row['status']}{seconds}{reason}")

    def left(self, section: str, keys: Iterable[str]) -> list[str]:
        """The steps without an outcome; they are written as such, since this run may be cut short."""
        found = [k for k in keys if not self.result.finished(section, k)]
        self.result.steps(section).update({k: {"status": OUT_OF_TIME} for k in found})
        self.result.save()
        return found

    def run(self, section: str, command: list[str], clock: Clock, environment: dict[str, str]) -> Done | None:
        """Runs one step in what is left; None where that was not enough."""
        limit = min(STEP_S[section], clock.left())
        if limit < LEAST_S:
            return None
        try:
            done = execute(command, limit, environment, self.elsewhere)
        except OSError as failure:
            done = Done(127, f"{command[0]}: {failure.strerror}", 0.0)
        return None if done.exit is None and limit < STEP_S[section] else done


def run_self_check(context: Context, clock: Clock) -> None:
    """Each fast path against its simple kernel."""
    request = {"device": context.device, "small": context.device == "cpu"}
    todo = context.left("self_check", self_check.all_keys(context.result.data["arch"]))
    reports = conduct(
        "benchmarks.check.self_check", request, todo, clock, STEP_S["self_check"], context.environment,
        context.elsewhere,
    )  # fmt: skip
    for key, status, value in reports:
        if status == "done":
            row = value
        elif status == "out of time":
            row = {"status": OUT_OF_TIME}
        else:
            row = {"status": status, "reason": " | ".join(value)[:600]}
        context.put("self_check", key, row)


def run_tests(context: Context, clock: Clock) -> None:
    """The test suite, file by file."""
    files = {f.name: f for f in tests_stage.files()}
    environment = {**context.environment, **tests_stage.THREADS, "COSEGFLOW_TEST_BACKENDS": context.device}
    chosen = list(files)
    if context.select and any(not context.result.finished("tests", k) for k in files):
        command = tests_stage.collect_command(list(files.values()), context.select)
        done = context.run("tests", command, clock, environment)
        found = tests_stage.collected(done) if done is not None else {}
        chosen = [k for k in files if k in found]
        if not chosen:
            status = OUT_OF_TIME if done is None else "failed"
            context.put("tests", "selection", {"status": status, "reason": f"-k {context.select} selects nothing"})
    steps = [k for name in chosen for k in tests_stage.steps_of(name, context.result.data["arch"])]

    def step(key: str) -> None:
        name, *portable = key.split()
        report = context.elsewhere / f"{'-'.join(key.split())}.xml"
        command = tests_stage.command_of(files[name], report, context.select, context.device)
        done = context.run("tests", command, clock, {**environment, "COSEGFLOW_PORTABLE": "1" if portable else "0"})
        if done is None:
            row: dict[str, Any] = {"status": OUT_OF_TIME}
        elif key == tests_stage.SMOKE:
            row = tests_stage.judge_smoke(done)
        else:
            row = tests_stage.judge(done, report, context.select)
        context.put("tests", key, row)

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // (tests_stage.WORKERS + 1))) as pool:
        list(pool.map(step, context.left("tests", steps)))


def sanitize_commands(context: Context, tool: str | None, help_text: str) -> dict[str, list[str]]:
    """The command line of each step; of a tool that is missing, as it would be."""
    commands = {}
    for at, key in enumerate(sanitize_stage.all_keys(context.quick)):
        check, group = key.split()
        watched = sanitize_stage.program(group, context.device, context.quick)
        if check != sanitize_stage.PLAIN:
            # Runs at the same time need ports of their own.
            port = FIRST_PORT + 20 * at
            watched = sanitize_stage.command_of(tool or "compute-sanitizer", check, help_text, port, watched)
        commands[key] = watched
    return commands


def run_sanitize(context: Context, clock: Clock) -> None:
    """The sanitizers over each group of small shapes."""
    tool = sanitize_stage.find_tool(context.sanitizer)
    version, help_text = sanitize_stage.describe_tool(tool) if tool else ("", "")
    context.result.data["sanitizer"] = {"path": tool, "version": version}
    if context.device == "cuda":
        context.say(f"compute-sanitizer: {tool or 'not found'} {version}".rstrip())
    commands = sanitize_commands(context, tool, help_text)
    environment = sanitize_stage.environment(context.environment)
    todo = context.left("sanitize", commands)

    def step(key: str) -> None:
        check, group = key.split()
        if check != sanitize_stage.PLAIN:
            plain = context.result.steps("sanitize").get(f"{sanitize_stage.PLAIN} {group}", {"status": OUT_OF_TIME})
            if context.device == "cpu" and context.sanitizer is None:
                context.put("sanitize", key, {"status": "dry run", "command": " ".join(commands[key])})
                return
            if plain["status"] == OUT_OF_TIME:
                context.put("sanitize", key, {"status": OUT_OF_TIME})
                return
            if plain["status"] != "clean":
                context.put("sanitize", key, {"status": "refused", "reason": f"the plain run: {plain['status']}"})
                return
            if tool is None:
                context.put("sanitize", key, {"status": "refused", "reason": "compute-sanitizer was not found"})
                return
        done = context.run("sanitize", commands[key], clock, environment)
        if done is None:
            row: dict[str, Any] = {"status": OUT_OF_TIME}
        else:
            row = (sanitize_stage.judge_plain if check == sanitize_stage.PLAIN else sanitize_stage.judge)(done)
        context.put("sanitize", key, row)

    workers = max(1, min(SANITIZERS_AT_ONCE, (os.cpu_count() or 1) // 2))
    for plain in (True, False):
        some = [k for k in todo if k.startswith(sanitize_stage.PLAIN) == plain]
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(step, some))


def our_failure(rows: list[dict[str, Any]]) -> str | None:
    """Why the rows of one step are a failure of ours: no time, or a wrong answer; None where they are not."""
    from ..table import OURS, error_text, group

    for line in (line for one in group(rows) for line in one.lines if line.peer == OURS):
        if not line.ok:
            return f"{line.row['status']}: {line.row.get('reason')}"[:600]
        if line.wrong:
            return f"wrong: largest error {error_text(line)}"
    return None


def run_bench(context: Context, clock: Clock) -> None:
    """The benchmarks, by priority; rows are appended as they come."""
    from . import bench_stage  # here: what is wrong with a peer is no matter of the other stages

    bench = context.result.data["bench"]
    keys = [bench_stage.CEILINGS, *bench_stage.steps(context.device, context.quick, context.peers)]
    request: dict[str, Any] = {
        "device": context.device, "quick": context.quick, "peers": context.peers, "command": context.command,
        "ceilings": None,
    }  # fmt: skip
    if any(not context.result.finished("bench", k) for k in keys):
        bench["steps"].pop(bench_stage.CEILINGS, None)  # those of an earlier call may be of another machine
    todo = context.left("bench", keys)
    reports = conduct(
        "benchmarks.check.bench_stage", request, todo, clock, STEP_S["bench"], context.environment, context.elsewhere
    )
    started = time.monotonic()
    for key, status, value in reports:
        seconds = round(time.monotonic() - started, 1)
        started = time.monotonic()
        if status == "out of time":
            row: dict[str, Any] = {"status": OUT_OF_TIME}
        elif status != "done":
            row = {"status": status, "seconds": seconds, "reason": " | ".join(value)[:600]}
        elif key == bench_stage.CEILINGS:
            bench["ceilings"] = request["ceilings"] = value
            row = {"status": "done", "seconds": seconds}
        else:
            bench["rows"] += value
            why = our_failure(value)
            row = (
                {"status": "failed", "seconds": seconds, "reason": why}
                if why
                else {"status": "done", "seconds": seconds}
            )
        context.put("bench", key, row)
        if key == bench_stage.CEILINGS and status != "done":
            return  # no row could say how far from the limit it is


STAGES: dict[str, tuple[Callable[[Context, Clock], None], float]] = {
    "self_check": (run_self_check, 0.3),
    "tests": (run_tests, 0.5),
    "sanitize": (run_sanitize, 0.5),
    "bench": (run_bench, 1.0),
}
"""By name, in order, with the share of what is left of the time; the last one that runs gets all of it."""


def run_stages(context: Context, only: str | None, seconds: float) -> None:
    """Runs the stages; the self-check always, since everything else builds on it."""
    clock = Clock(seconds)
    chosen = [name for name in STAGES if only is None or name in (only, "self_check")]
    for name in chosen:
        function, fraction = STAGES[name]
        function(context, clock if name == chosen[-1] else clock.share(fraction))


def make_context(**fields: Any) -> tuple[Context, "functools.partial[None]"]:
    """A context with a temporary working folder, and what removes that."""
    folder = tempfile.TemporaryDirectory(prefix="cosegflow-check-")
    return Context(elsewhere=Path(folder.name), **fields), functools.partial(folder.cleanup)
