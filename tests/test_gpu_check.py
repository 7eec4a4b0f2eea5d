"""`make gpu-check` without a GPU: a rehearsal of every stage, and how it resumes, runs out of time and fails."""

import ast
import json
import os
import subprocess
import sys
import textwrap
import time
import types
import zipfile
from pathlib import Path

import pytest
import torch

import cosegflow
from benchmarks.case import Case, columns
from benchmarks.check import bench_stage, command, packages, process, sanitize_stage, stages, summary, tests_stage
from benchmarks.check.process import Clock, Done, conduct, execute
from benchmarks.check.result import OUT_OF_TIME, Result
from benchmarks.check.small_shapes import CALLS, PUBLIC
from benchmarks.check.source_digest import source_digest

ROOT = Path(__file__).resolve().parents[1]
ENTRY = ROOT / "benchmarks" / "gpu_check.py"
FAKE_TOOL = """\
#!{python}
import sys
if "--version" in sys.argv or "--help" in sys.argv:
    print("Version 2025.3.1.0 (build 1)")
    sys.exit(0)
print("========= COMPUTE-SANITIZER")
if "initcheck" in sys.argv:
    print('========= Error: Device not supported. Please refer to the "Supported Devices" section')
    sys.exit(1)
print("small_shapes: 3 calls")
if "racecheck" in sys.argv:
    print("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)")
else:
    print("========= ERROR SUMMARY: 0 errors")
"""


def gpu_check(*options: object, **environment: str) -> subprocess.CompletedProcess:
    arguments = [sys.executable, str(ENTRY), *map(str, options)]
    return subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, **environment}, timeout=580)


@pytest.fixture
def fake_tool(tmp_path):
    path = tmp_path / "compute-sanitizer"
    path.write_text(FAKE_TOOL.format(python=sys.executable))
    path.chmod(0o755)
    return path


def test_rehearsal(tmp_path, fake_tool):
    """Every stage runs and is kept; a second call has nothing to do."""
    out = tmp_path / "result.json"
    options = ["--device", "cpu", "--quick", "--minutes", 9, "--select", "test_identity_and_shift", "--out", out]
    options += ["--sanitizer", fake_tool, "--peers", "cosegflow"]
    done = gpu_check(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert {row["status"] for row in result["self_check"].values()} == {"agrees"} and len(result["self_check"]) >= 12
    assert result["tests"]["test_warp.py"]["counts"]["passed"] >= 1
    statuses = {key: row["status"] for key, row in result["sanitize"].items()}
    assert {s for k, s in statuses.items() if k.startswith("initcheck")} == {"refused"}
    assert {s for k, s in statuses.items() if not k.startswith("initcheck")} == {"clean"}
    assert len(statuses) == 5
    assert result["bench"]["ceilings"]["copy"] > 0
    ok = [row["work"] for row in result["bench"]["rows"] if row["status"] == "ok"]
    for work in ("match", "warp", "correlation", "soft_argmax"):
        assert ok.count(work) == 3, work
    assert {row["peer"] for row in result["bench"]["rows"]} == {"cosegflow"}
    assert result["provenance"]["torch"] == torch.__version__ and result["build"]
    assert (result["kernels"] is None) == bool(packages.other_sources(ROOT))
    assert "gpu-check: passed" in done.stdout and "test_warp.py: passed" in done.stdout

    again = gpu_check(*options)
    assert again.returncode == 0 and "going on with" in again.stdout
    progress = again.stdout.split("\n\n")[0]
    assert "self_check:" not in progress and "sanitize:" not in progress and "bench:" not in progress
    kept = json.loads(out.read_text())
    assert {k: v for k, v in kept.items() if k != "provenance"} == {
        k: v for k, v in result.items() if k != "provenance"
    }


def test_out_of_time(tmp_path):
    """What has no time says so, the exit code asks for another call, and that call does only the rest."""
    out = tmp_path / "result.json"
    done = gpu_check("--device", "cpu", "--quick", "--only", "tests", "--minutes", 0.001, "--out", out)
    assert done.returncode == 3, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert {row["status"] for section in ("self_check", "tests") for row in result[section].values()} == {OUT_OF_TIME}
    assert len(result["tests"]) >= 6 and result["sanitize"] == {}
    for key, row in result["self_check"].items():
        row.update(status="agrees", difference="0", case=key.split(" ", 2)[2])
    for name, row in result["tests"].items():
        if name != "smoke.py":
            row.update(status="passed", counts={"passed": 1}, seconds=1, failures=[], skips={})
    out.write_text(json.dumps(result))
    done = gpu_check("--device", "cpu", "--quick", "--only", "tests", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    progress = done.stdout.split("\n\n")[0]
    assert "tests: smoke.py: passed" in progress and "test_warp.py" not in progress


# arguments


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--minutes", "0"], "--minutes: need a number above 0, got '0'"),
        (["--only", "speed"], "'tests', 'sanitize', 'bench'"),
        (["--wheel", "none.whl"], "--wheel: no such file: none.whl"),
        (["--wheel", "a.whl", "--installed"], "not allowed with"),
        (["--sanitizer", "/none"], "--sanitizer: no such program: /none"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--device", "cpu", "--only", "tests", "--out", "/proc/none/x.json"], "--out: cannot write /proc/none/x.json"),
        (["--device", "cpu", "--only", "bench", "--peers", "none"], "unknown peer none"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_bad_arguments_are_one_line(options, words, capsys):
    try:
        code = command.main(options)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and words in error and error.count("\n") == 1, error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = gpu_check()
    assert done.returncode == 2 and "torch sees no CUDA device" in done.stderr and done.stderr.count("\n") == 1


def test_not_a_result_file(tmp_path, capsys):
    out = tmp_path / "result.json"
    out.write_text('{"something": "else"}')
    assert command.main(["--device", "cpu", "--only", "tests", "--out", str(out)]) == 2
    assert "is not a result of this command" in capsys.readouterr().err
    assert out.read_text() == '{"something": "else"}'


# wheels


def test_wheels(tmp_path):
    wheel = tmp_path / "cosegflow-0.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("cosegflow/__init__.py", "print('of the wheel')\n")
    home, temporary = packages.locate(wheel, False, False, 1.0, {})
    environment = packages.environment_of(home)
    done = execute([sys.executable, "-c", "import cosegflow, benchmarks.case"], 60, environment, tmp_path)
    assert done.exit == 0 and done.output == "of the wheel\n"
    temporary.cleanup()
    assert not home.exists()
    for content, words in ((b"no archive", "not a wheel"), (None, "no wheel of cosegflow")):
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("other/__init__.py", "")
        if content is not None:
            wheel.write_bytes(content)
        with pytest.raises(packages.SetupError, match=words):
            packages.locate(wheel, False, False, 1.0, {})


def test_installed_finds_a_compiled_package():
    assert packages.is_built(packages.installed())


def test_a_build_that_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "BUILT", tmp_path)
    monkeypatch.setattr(packages, "is_built", lambda folder: False)
    failing = [sys.executable, "-c", "print('no nvcc'); raise SystemExit(1)"]
    monkeypatch.setattr(packages, "build_command", lambda folder: failing)
    with pytest.raises(packages.SetupError, match="building the wheel failed: no nvcc"):
        packages.locate(None, False, False, 60.0, dict(os.environ))
    with pytest.raises(packages.SetupError, match="past the time budget"):
        monkeypatch.setattr(packages, "build_command", lambda folder: ["sleep", "60"])
        packages.locate(None, False, False, 0.2, dict(os.environ))


def test_binaries_of_other_sources_verify_nothing(tmp_path):
    """The digest is that of the build, not of the checkout that happens to be there."""
    for name in ("common/a.h", "cpu/a.cpp", "cuda/match/a.cu", "include/a.h", "torch/a.cpp", "hostsim/a.cpp"):
        (tmp_path / "csrc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "csrc" / name).write_text(name)
    info = tmp_path / "cosegflow" / "_build_info.json"
    info.parent.mkdir()
    assert "does not record" in packages.other_sources(tmp_path, tmp_path)
    built = source_digest(tmp_path)
    info.write_text(json.dumps({"sources": built, "commit": "c0ffee"}))
    assert packages.other_sources(tmp_path, tmp_path) is None
    for name in ("hostsim/a.cpp", "cuda/notes.md"):  # not compiled
        (tmp_path / "csrc" / name).write_text("other")
        assert packages.other_sources(tmp_path, tmp_path) is None
    origin = {"commit": "1", "device_name": "chip", "torch": "2"}
    options = command.make_parser().parse_args(["--device", "cpu"])
    assert command.identity(options, tmp_path, origin)["kernels"] is None  # the real checkout has other sources
    info.write_text(json.dumps({"sources": source_digest(ROOT)}))
    assert command.identity(options, tmp_path, origin)["kernels"] == packages.kernel_digest(ROOT)
    for name in ("common/a.h", "cpu/a.cpp", "cuda/match/a.cu", "include/a.h", "torch/a.cpp"):
        info.write_text(json.dumps({"sources": source_digest(tmp_path)}))
        (tmp_path / "csrc" / name).write_text("changed")
        assert "is of csrc" in packages.other_sources(tmp_path, tmp_path), name


def load_setup(names):
    """Functions of setup.py, which cannot be imported without building."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    tree.body = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom) or getattr(n, "name", "") in names]
    tree.body = [n for n in tree.body if "setuptools" not in ast.unparse(n)]
    found: dict = {}
    exec(compile(tree, "setup.py", "exec"), found)
    return found


def test_the_build_records_its_commit(tmp_path):
    found = load_setup(("commit",))
    found["ROOT"] = tmp_path
    assert found["commit"]() is None
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found["commit"]() == head.stdout.strip()
    found["ROOT"] = tmp_path / "unpacked"
    found["ROOT"].mkdir()
    assert found["commit"]() is None  # that of somebody else's project around it


# benchmarks


def test_more_peers_are_more_steps():
    usual, everything = (bench_stage.steps("cpu", True, peers) for peers in ("default", "all"))
    assert list(everything)[: len(usual)] == list(usual) and "[" not in "".join(usual)
    added = list(everything.items())[len(usual) :]
    assert {step.peers for _, step in added} == {("cosegflow", "compile"), ("cosegflow", "flex")}
    assert all(key == f"{step} [{','.join(step.peers)}]" for key, step in added)
    assert not set(bench_stage.steps("cpu", True, "cosegflow")) & set(usual)


def a_row(**changes):
    case = columns(Case(channels=8, a=(4, 4), b=(4, 4)))
    row = {**case, "work": "match", "direction": "forward", "device": "cpu", "threads": 1, "peer": "cosegflow"}
    return {**row, "status": "ok", "median_ms": 1.0, "error_max": 1e-6, "error_rel": 1e-6, **changes}


@pytest.mark.parametrize("status", ["failed", "out of memory", "out of time", "unsupported", "missing"])
def test_ours_without_a_time_is_a_failure(status):
    assert stages.our_failure([a_row(status=status, reason="why", median_ms=None)]) == f"{status}: why"
    assert stages.our_failure([a_row(), a_row(peer="eager", status=status, reason="why", median_ms=None)]) is None


def test_ours_wrong_is_a_failure():
    wrong = a_row(error_max=0.5, error_rel=0.1)
    assert "wrong: largest error 5.0e-01" in stages.our_failure([a_row(peer="eager"), wrong])
    assert "NaN" in stages.our_failure([a_row(error_max=float("nan"), error_rel=float("nan"))])


def test_ceilings_are_measured_again(tmp_path, monkeypatch):
    context, cleanup = context_of(tmp_path)
    asked = []

    def fake(module, request, todo, *_):
        asked.append((request["ceilings"], list(todo)))
        for key in todo:
            yield process.Report(key, "done", {"copy": 1.0} if key == bench_stage.CEILINGS else [])

    monkeypatch.setattr(stages, "conduct", fake)
    stages.run_bench(context, Clock(60))
    last = list(context.result.steps("bench"))[-1]
    context.result.steps("bench")[last] = {"status": OUT_OF_TIME}
    stages.run_bench(context, Clock(60))
    stages.run_bench(context, Clock(60))
    assert asked[1:] == [(None, [bench_stage.CEILINGS, last]), (None, [])]
    cleanup()


def test_rehearsals_do_not_go_among_the_results():
    origin = {"device_name": "chip", "commit": "c0ffee", "date": "2030-01-02", "device": "cuda"}
    assert command.default_out(origin, True).parent == ROOT / "build"
    assert command.default_out(origin, False).parent == ROOT / "benchmarks" / "results"


# dry run


def dry(*options: str) -> int:
    return command.dry_run(command.make_parser().parse_args(["--dry-run", *options]), ROOT)


def test_dry_run_lists_every_step(capsys):
    assert dry("--device", "cuda", "--peers", "cosegflow") == 0
    text = capsys.readouterr().out
    for words in ("self_check: match portable float16", "tests/test_match.py", "test_cuda_graph.py",
                  "test_cuda_streams.py", "--tool racecheck", "kernel_substring=cosegflow",
                  "bench: match forward B="):  # fmt: skip
        assert words in text
    assert text.count("--tool initcheck") == len(sanitize_stage.GROUPS)


def test_dry_run_finds_what_is_missing(capsys, monkeypatch, tmp_path):
    files = tests_stage.files()
    broken = tmp_path / "test_cuda_broken.py"
    broken.write_text("import no_such_module\n")
    monkeypatch.setattr(tests_stage, "files", lambda: [files[0], ROOT / "tests" / "test_gone.py", broken])
    assert dry("--only", "tests") == 2
    error = capsys.readouterr().err
    assert "missing: tests/test_gone.py" in error and "pytest --collect-only" in error


# children


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_hanging_command_is_killed_with_its_children(tmp_path):
    code = "import subprocess, time; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); time.sleep(600)"
    started = time.monotonic()
    done = execute([sys.executable, "-c", code], 2, os.environ, tmp_path)
    assert done.exit is None and time.monotonic() - started < 30
    while alive(int(done.output)):  # killed, but perhaps not yet gone
        assert time.monotonic() - started < 30
        time.sleep(0.05)


CHILD = """
import os, sys, time
from benchmarks.check.process import serve
def step(key):
    print("noise on stdout")
    if key == "die": os._exit(7)
    if key == "raise": raise ValueError("what went wrong")
    if key == "hang": time.sleep(600)
    return key.upper()
def prepare(request):
    if request["broken"]: raise ValueError("no start")
    return step
serve(prepare)
"""


def conducted(tmp_path, keys, clock=60.0, limit=4.0, broken=False):
    (tmp_path / "some_child.py").write_text(CHILD)
    environment = {**packages.environment_of(ROOT), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    request = {"broken": broken}
    return list(conduct("some_child", request, keys, Clock(clock), limit, environment, tmp_path))


def test_a_step_that_dies_or_hangs_costs_only_itself(tmp_path):
    reports = conducted(tmp_path, ["a", "die", "b", "raise", "c", "hang", "d"])
    assert [(r.key, r.status) for r in reports] == [
        ("a", "done"), ("die", "failed"), ("b", "done"), ("raise", "failed"), ("c", "done"), ("hang", "timeout"),
        ("d", "done"),
    ]  # fmt: skip
    assert reports[0].value == "A" and "7" in reports[1].value[0] and "what went wrong" in reports[3].value[-1]


def test_a_child_that_does_not_start_fails_every_step(tmp_path):
    reports = conducted(tmp_path, ["a", "b"], broken=True)
    assert [(r.key, r.status) for r in reports] == [("a", "failed"), ("b", "failed")]
    assert "no start" in reports[0].value[-1]


def test_the_end_of_the_time_is_no_failure(tmp_path):
    reports = conducted(tmp_path, ["a", "hang", "b"], clock=3.0, limit=60.0)
    assert [(r.key, r.status) for r in reports] == [("a", "done"), ("hang", "out of time"), ("b", "out of time")]


# sanitizers


def test_the_plain_run_guards_the_tools(tmp_path, monkeypatch, fake_tool):
    """A failure of ours is not taken for one of the tool; a missing tool is refused."""
    context, cleanup = context_of(tmp_path, sanitizer=fake_tool)
    monkeypatch.setattr(sanitize_stage, "program", lambda *_: [sys.executable, "-c", "raise SystemExit('broken')"])
    stages.run_sanitize(context, Clock(60))
    rows = context.result.steps("sanitize")
    assert rows["plain all"]["status"] == "failed" and "broken" in rows["plain all"]["reason"]
    assert rows["memcheck all"] == {"status": "refused", "reason": "the plain run: failed"}
    assert summary.exit_code(context.result) == 1
    cleanup()

    context, cleanup = context_of(tmp_path, device="cuda")
    monkeypatch.setattr(sanitize_stage, "program", lambda *_: [sys.executable, "-c", "print('small_shapes: 1 calls')"])
    monkeypatch.setattr(sanitize_stage, "find_tool", lambda given: None)
    stages.run_sanitize(context, Clock(60))
    rows = context.result.steps("sanitize")
    assert rows["plain all"]["status"] == "clean"
    assert rows["racecheck all"] == {"status": "refused", "reason": "compute-sanitizer was not found"}
    assert summary.exit_code(context.result) == 0
    cleanup()


# results


IDENTITY = {
    "commit": "c0ffee", "device_name": "chip", "torch": "2", "arch": "sm_90", "device": "cpu", "quick": True,
    "select": None, "build": "1", "kernels": "2",
}  # fmt: skip


def context_of(tmp_path, **changes):
    result = Result(tmp_path / "context.json", IDENTITY, {"date": "2026-01-01"}, fresh=True)
    fields = {
        "device": "cpu", "quick": True, "select": None, "peers": "cosegflow", "sanitizer": None,
        "environment": packages.environment_of(ROOT), "result": result, "command": "test", **changes,
    }  # fmt: skip
    return stages.make_context(**fields)


def test_another_commit_starts_again_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "r.json"
    first = Result(path, IDENTITY, {}, fresh=False)
    first.put("tests", "a.py", {"status": "passed"})
    assert Result(path, IDENTITY, {}, fresh=False).finished("tests", "a.py")
    assert not Result(path, {**IDENTITY, "commit": "other"}, {}, fresh=False).finished("tests", "a.py")
    assert json.loads((tmp_path / "r.json.old").read_text())["tests"] == {"a.py": {"status": "passed"}}
    Result(path, IDENTITY, {}, fresh=True)
    assert json.loads(path.read_text())["tests"] == {}


def test_junit_reports(tmp_path):
    (tmp_path / "test_x.py").write_text(
        textwrap.dedent(
            """
            import pytest
            def test_good(): pass
            def test_bad(): assert 1 == 2, "not equal"
            @pytest.mark.skip(reason="no second GPU")
            def test_skipped(): pass
            @pytest.fixture
            def broken(): raise RuntimeError("no fixture")
            def test_error(broken): pass
            """
        )
    )
    report = tmp_path / "x.xml"
    plain = tests_stage.command_of(tmp_path / "test_x.py", report, None, "cpu")
    row = tests_stage.judge(execute(plain, 120, os.environ, tmp_path), report, None)
    assert row["status"] == "failed" and row["counts"] == {"passed": 1, "failed": 1, "errors": 1, "skipped": 1}
    assert row["skips"] == {"no second GPU": 1}
    assert "not equal" in " ".join(row["failures"][0]["last"]) and row["failures"][0]["test"] == "test_x::test_bad"
    missing = tests_stage.judge(Done(None, "....", 9.0), tmp_path / "none.xml", None)
    assert missing["status"] == "timeout" and missing["counts"]["passed"] == 0


def test_on_a_gpu_nothing_waits_for_the_simulator(tmp_path):
    """What is for hostsim alone is skipped, not built."""
    report = tmp_path / "x.xml"
    plain = tests_stage.command_of(ROOT / "tests" / "test_warp.py", report, "test_deterministic_gradient", "cuda")
    if "-n" in plain:  # one test needs no workers
        del plain[plain.index("-n") : plain.index("-n") + 2]
    row = tests_stage.judge(execute(plain, 120, packages.environment_of(ROOT), tmp_path), report, None)
    assert row["status"] == "passed" and set(row["skips"]) == {"hostsim is not what this run is about"}, row
    assert row["counts"]["passed"] == 0, row


def test_every_public_operation_has_its_small_shapes():
    functions = {n for n in cosegflow.__all__ if isinstance(getattr(cosegflow, n), types.FunctionType)}
    functions -= {"is_available", "warmup", "resize_flow"}  # resize_flow is plain torch around warp
    assert {name.split()[0] for name in PUBLIC} >= functions
    assert {call.group for call in CALLS.values()} >= functions
    assert set(PUBLIC) <= set(CALLS)


def test_the_last_lines_name_what_failed(tmp_path):
    context, cleanup = context_of(tmp_path)
    cleanup()
    result = context.result
    result.put("self_check", "match portable float16", {"status": "disagrees", "difference": "0.5", "op": "match"})
    result.put("tests", "test_match.py", {"status": OUT_OF_TIME})
    result.put("sanitize", "memcheck match", {"status": "refused", "reason": "Device not supported"})
    text = summary.text(result)
    assert "FAILED: self_check: match portable float16: disagrees" in text and text.splitlines()[-1].startswith(
        "gpu-check: failed"
    )
    assert "memcheck match: refused: Device not supported" in text and summary.exit_code(result) == 1
    result.put(
        "self_check",
        "match portable float16",
        {"status": "agrees", "difference": "0", "op": "match", "case": "float16"},
    )
    assert summary.exit_code(result) == 3 and "not finished" in summary.text(result)
    result.put("tests", "test_match.py", {"status": "timeout"})
    assert summary.exit_code(result) == 1
    assert process.last_lines("a\n\n  \nb\nc", 2) == ["b", "c"]
