"""Which kernels count as verified on hardware: from the committed results of gpu-check alone."""

import json

import torch

from benchmarks.check import self_check, tests_stage, verified
from benchmarks.check.result import OUT_OF_TIME
from cosegflow.ops._self_check import CASES, case_name


def verified_from(folder, *results):
    for at, result in enumerate(results):
        (folder / f"gpu_check_{at}.json").write_text(json.dumps(result))
    found = verified.verified(folder, "kernels")
    for at in range(len(results)):
        (folder / f"gpu_check_{at}.json").unlink()
    return found


def a_result(date="2026-01-01", bad_test=False, disagrees=None, **changes):
    checks = {}
    for path in ("portable", "hopper"):
        for op in ("match", "local_correlation"):
            for case in CASES.get((op, path), ()):
                key = f"{op} {path} {case_name(*case)}"
                status = "disagrees" if disagrees == key else "agrees"
                checks[key] = {"op": op, "path": path, "case": case_name(*case), "status": status}
    rows = {
        key: {"status": "failed" if bad_test else "passed", "counts": {"passed": 3}}
        for key in ("test_match.py", "test_match.py portable")
    }
    common = {"arch": "sm_90", "kernels": "kernels", "quick": False, "select": None, "provenance": {"date": date}}
    return {**common, "self_check": checks, "tests": rows, **changes}


ALL = [("local_correlation", "portable", "sm_90"), ("match", "hopper", "sm_90"), ("match", "portable", "sm_90")]


def test_verified_needs_agreement_and_all_tests(tmp_path):
    assert verified_from(tmp_path) == []
    assert verified_from(tmp_path, a_result()) == ALL
    assert verified_from(tmp_path, a_result(disagrees="match portable float16")) == ALL[:2]
    assert verified_from(tmp_path, a_result(disagrees="match hopper float32 high")) == [ALL[0], ALL[2]]
    assert verified_from(tmp_path, a_result(bad_test=True)) == []
    waiting = {"test_match.py": {"status": OUT_OF_TIME}}
    for change in ({"kernels": "others"}, {"kernels": None}, {"arch": None}, {"select": "warp"}, {"quick": True},
                   {"tests": waiting}, {"tests": {}}, {"self_check": {}}):  # fmt: skip
        result = {**a_result(), **change}
        assert verified_from(tmp_path, result) == [], change
        assert verified_from(tmp_path, a_result(), {**a_result("2026-02-02"), **change}) == ALL, change
    assert verified_from(tmp_path, a_result("2026-02-02", bad_test=True), a_result()) == []
    two_machines = verified_from(tmp_path, a_result(), a_result(arch="sm_80"))
    assert two_machines == sorted((op, path, arch) for op, path, _ in ALL for arch in ("sm_80", "sm_90"))


def test_portable_kernels_need_a_run_of_their_own_where_others_stand_before_them(tmp_path):
    result = a_result()
    del result["tests"]["test_match.py portable"]
    assert verified_from(tmp_path, result) == ALL[:2]
    result["self_check"] = {k: row for k, row in result["self_check"].items() if row["path"] == "portable"}
    assert verified_from(tmp_path, {**result, "arch": "sm_80"}) == [("correlation", "portable", "sm_80"),
                                                                    ("match", "portable", "sm_80")]  # fmt: skip


def test_the_runs_of_gpu_check_are_those_that_count():
    assert tests_stage.steps_of("test_match.py", "sm_90") == ["test_match.py", "test_match.py portable"]
    assert tests_stage.steps_of("test_match.py", "sm_80") == ["test_match.py"]
    assert tests_stage.steps_of("test_warp.py", "sm_90") == ["test_warp.py"]
    assert tests_stage.steps_of("test_match.py", None) == ["test_match.py"]
    everything = {f"{op} {path} {case_name(*case)}" for (op, path), cases in CASES.items() for case in cases}
    assert set(self_check.all_keys("sm_90")) == everything
    assert set(self_check.all_keys("sm_80")) == {key for key in everything if " hopper " not in key}
    for key in ("match portable float32 medium", "correlation portable float16"):
        row = self_check.check(key, torch.device("cpu"), small=True)  # two runs of one kernel
        assert row["status"] == "agrees" and f"{row['op']} {row['path']} {row['case']}" == key


def test_the_committed_table_is_up_to_date(capsys):
    assert verified.main(["--check"]) == 0, capsys.readouterr().err


def test_the_table_is_python():
    entries = [("match", "hopper", "sm_90"), ("match", "portable", "sm_80")]
    names: dict = {}
    exec(verified.source(entries), names)
    assert names["VERIFIED"] == frozenset(entries)
    exec(verified.source([]), names)
    assert names["VERIFIED"] == frozenset()
