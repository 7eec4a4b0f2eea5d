"""The model of match's Hopper kernels, and the document that it writes."""

from dataclasses import replace

import pytest

from benchmarks import model
from benchmarks.case import Case

CASE = Case(batch=8, channels=256, dtype="bfloat16")


def test_the_document_says_what_the_model_says():
    assert model.check() == []


def test_a_changed_document_is_noticed(tmp_path):
    path = tmp_path / "match.md"
    path.write_text(
        model.DOCUMENT.read_text(encoding="utf-8").replace("| 1024 | 56 |", "| 1024 | 5 |"), encoding="utf-8"
    )
    assert model.check(path)
    assert model.publish(path) == [path]
    assert model.check(path) == [] and model.publish(path) == []


def test_counts_by_hand():
    """4096 tiles on 132 multiprocessors are 32 for some; 512 FLOP a score; 2 x 8 x 4096 x 256 halves in and out."""
    mine = model.ours(CASE)
    assert mine.product == pytest.approx(32 * 132 * 256 * 128 * 512 / 989.4e12, rel=1e-3)
    assert mine.shared == pytest.approx(32 * (4 * (96 + 16) + 128) * 1024 / 128 / 1.83e9)
    assert mine.limit == "shared" and mine.overlapped == mine.pack + mine.shared
    assert mine.pack == pytest.approx(2 * 8 * 4096 * 256 * 4 / 4.8e12)
    assert mine.overlapped < mine.apart
    assert model.eager(CASE, 4) - model.eager(CASE, 2) == pytest.approx(8 * 8 * 4096**2 / 4.8e12)


def test_what_costs_more():
    assert model.ours(replace(CASE, foreground=0.3)).overlapped < 0.2 * model.ours(CASE).overlapped
    single = replace(CASE, dtype="float32")
    high, medium = (model.ours(single, precision=name).product for name in ("high", "medium"))
    assert high == pytest.approx(3 * medium)
    assert model.ours(CASE, "match_both").softmax > model.ours(CASE).softmax
