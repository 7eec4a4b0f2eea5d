"""Which kernels count as verified on hardware: from the committed results of gpu-check alone."""

import json

from benchmarks.check import verified
from benchmarks.check.result import OUT_OF_TIME


def verified_from(folder, *results):
    for at, result in enumerate(results):
        (folder / f"gpu_check_{at}.json").write_text(json.dumps(result))
    found = verified.verified(folder, "kernels")
    for at in range(len(results)):
        (folder / f"gpu_check_{at}.json").unlink()
    return found


def a_result(date="2026-01-01", bad_test=False, disagrees=None, **changes):
    checks = {
        f"{op} {dtype}": {"op": op, "dtype": dtype, "status": "disagrees" if disagrees == (op, dtype) else "agrees"}
        for op in ("match", "correlation")
        for dtype in ("float16", "bfloat16", "float32", "float64")
    }
    tests = {"test_match.py": {"status": "failed" if bad_test else "passed", "counts": {"passed": 3}}}
    common = {"arch": "sm_90", "kernels": "kernels", "quick": False, "select": None, "provenance": {"date": date}}
    return {**common, "self_check": checks, "tests": tests, **changes}


def test_verified_needs_agreement_and_all_tests(tmp_path):
    both = [("correlation", "sm_90"), ("match", "sm_90")]
    assert verified_from(tmp_path) == []
    assert verified_from(tmp_path, a_result()) == both
    assert verified_from(tmp_path, a_result(disagrees=("match", "float16"))) == both[:1]
    assert verified_from(tmp_path, a_result(bad_test=True)) == []
    waiting = {"test_match.py": {"status": OUT_OF_TIME}}
    for change in ({"kernels": "others"}, {"kernels": None}, {"arch": None}, {"select": "warp"}, {"quick": True},
                   {"tests": waiting}, {"tests": {}}, {"self_check": {}}):  # fmt: skip
        assert verified_from(tmp_path, a_result(**change)) == [], change
        assert verified_from(tmp_path, a_result(), a_result("2026-02-02", **change)) == both, change
    assert verified_from(tmp_path, a_result("2026-02-02", bad_test=True), a_result()) == []
    two_machines = verified_from(tmp_path, a_result(), a_result(arch="sm_80"))
    assert two_machines == [(op, arch) for op in ("correlation", "match") for arch in ("sm_80", "sm_90")]


def test_the_committed_table_is_up_to_date(capsys):
    assert verified.main(["--check"]) == 0, capsys.readouterr().err


def test_the_table_is_python():
    pairs = [("match", "sm_80"), ("match", "sm_90")]
    names: dict = {}
    exec(verified.source(pairs), names)
    assert names["VERIFIED"] == frozenset(pairs)
    exec(verified.source([]), names)
    assert names["VERIFIED"] == frozenset()
