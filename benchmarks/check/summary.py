"""The short plain-text table at the end: what passed, what did not, what is left to run."""

from collections import Counter
from typing import Any

from .result import OUT_OF_TIME, Result
from .stages import brief

GOOD = {
    "self_check": {"agrees"},
    "tests": {"passed"},
    "sanitize": {"clean", "refused", "dry run"},
    "bench": {"done"},
}


def failed(result: Result) -> list[tuple[str, str, str]]:
    """(section, key, status) of what failed; refused tools and steps that were not run did not."""
    return [s for s in result.statuses() if s[2] not in GOOD[s[0]] and s[2] != OUT_OF_TIME]


def left(result: Result) -> list[tuple[str, str, str]]:
    """What had no time."""
    return [s for s in result.statuses() if s[2] == OUT_OF_TIME]


def exit_code(result: Result) -> int:
    """1 where something failed, 3 where something is left to run, else 0."""
    return 1 if failed(result) else (3 if left(result) else 0)


def _count(rows: dict[str, Any]) -> str:
    return ", ".join(f"{n} {status}" for status, n in Counter(r["status"] for r in rows.values()).items())


def bench_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Ours against the fastest right peer, a line for each work, direction and size."""
    if not rows:
        return []
    from ..table import OURS, group, limit_text, significant  # here, because a run without benchmarks does without it

    lines = ["bench: ms of cosegflow, of the fastest right peer, their ratio, % of the limit, error (!: wrong)"]
    for one in group(rows):
        ours = next((line for line in one.lines if line.peer == OURS), None)
        best = one.line(one.best) if one.best else None
        if ours is None or not ours.ok:
            own = f"{ours.row['status']}: {ours.row.get('reason')}"[:100] if ours else "absent"
        else:
            own = f"{significant(ours.row['median_ms'])} ms"
        theirs = f"{best.peer} {significant(best.row['median_ms'])} ms" if best else "no peer"
        ratio = f"{significant(ours.ratio)}x" if ours and ours.ratio else "-"
        error = ours.row.get("error_max") if ours else None
        shown = "-" if error is None else f"{error:.1e}{' !' if ours and ours.wrong else ''}"
        limit = limit_text(ours.row) if ours else "-"
        lines.append(f"  {one.work} {one.direction} {one.case}: {own}, {theirs}, {ratio}, {limit}, {shown}")
    return lines


def self_check_lines(rows: dict[str, Any]) -> list[str]:
    """One line for an operation's path that agrees in all cases, else one for each case."""
    lines = []
    for op in dict.fromkeys(" ".join(key.split()[:2]) for key in rows):
        of_op = {key: row for key, row in rows.items() if key.split()[:2] == op.split()}
        if all(row["status"] == "agrees" for row in of_op.values()):
            seen = ", ".join(f"{row['case']} {row['difference']}" for row in of_op.values())
            lines.append(f"self-check: {op}: agrees; largest relative difference: {seen}")
            continue
        for key, row in of_op.items():
            seen = f", largest relative difference {row['difference']}" if "difference" in row else ""
            reason = f": {brief(row['reason'])}" if row.get("reason") else ""
            lines.append(f"self-check: {key}: {row['status']}{seen}{reason}")
    return lines


def text(result: Result) -> str:
    """The table; its most important lines last, since a long log is cut at its head."""
    data = result.data
    lines: list[str] = []
    lines += bench_lines(data["bench"]["rows"])
    where = f"{data['device_name']} {data['arch'] or ''}".strip()
    lines += [f"{where}, torch {data['torch']}, commit {data['commit'][:10]}"]
    lines += [f"bench: {_count(data['bench']['steps'])}"] if data["bench"]["steps"] else []
    for name, row in data["sanitize"].items():
        if row["status"] not in ("clean", "dry run", OUT_OF_TIME):
            lines.append(f"sanitize: {name}: {row['status']}: {row.get('summary') or brief(row.get('reason', ''))}")
            lines += [f"    {part}"[:200] for error in row.get("errors", [])[:2] for part in error[:4]]
    if data["sanitize"]:
        lines.append(f"sanitize: {_count(data['sanitize'])}")
    for name, row in data["tests"].items():
        if "counts" in row:
            counts = ", ".join(f"{n} {what}" for what, n in row["counts"].items() if n)
            lines.append(f"tests: {name}: {row['status']}: {counts} ({row['seconds']} s)")
            lines += [f"    {f['test']}: {' | '.join(f['last'])}"[:400] for f in row["failures"][:10]]
        else:
            lines.append(f"tests: {name}: {row['status']}")
    lines += self_check_lines(data["self_check"])
    bad, rest = failed(result), left(result)
    if data["kernels"] is None:
        lines.append("the binaries are not of this checkout's csrc: this result verifies no kernel")
    lines += [f"FAILED: {section}: {key}: {status}" for section, key, status in bad]
    if rest:
        lines.append(f"{len(rest)} steps had no time: the same command again goes on with them")
    lines.append("gpu-check: " + ("failed" if bad else "not finished" if rest else "passed") + f": {result.path}")
    return "\n".join(lines)
