"""The HTML reports in a real browser: nothing fails, every picture loads, and they can be read on a telephone."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the joint extra is not installed")
pytest.importorskip("matplotlib", reason="the joint extra is not installed")

from browser import DESKTOP, NAMES, PHONE, Browser, find_browser, problems
from test_bench_report import report as benchmarks
from test_bench_report import sample

from cosegflow.joint.pictures import pair_cells
from cosegflow.joint.predict import Prediction
from cosegflow.report import Example, Row, write_report


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        message = f"no browser: none of {', '.join(NAMES)} on PATH (apt-get install chromium), no COSEGFLOW_BROWSER"
        if os.environ.get("COSEGFLOW_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def demo_report(folder: Path) -> Path:
    """The demo's report of two pairs whose predictions are invented."""
    image = torch.rand(3, 240, 240)
    mask = torch.zeros(1, 240, 240)
    mask[:, 60:180, 80:200] = 1
    found = Prediction(torch.full((1, 2, 240, 240), 7.0), mask, mask, torch.rand(1, 240, 240))
    before = Row("before training (pretrained, no learning)", (0.1, 0.2, 0.3), 12.0, 0.4)
    after = Row("after joint training, no annotation", (0.2, 0.3, 0.2), 11.0, None)
    examples = [Example(f"{i}. cat (IoU in a 0.50)", pair_cells(image, image, found, 0)) for i in range(2)]
    notes = [
        "A long path: /tmp/a/very/long/folder/name/that/has/no/space/and/goes/on/and/on/until/it/is/wider/than/a/phone"
    ]
    write_report(folder, "cosegflow: joint matching", notes, [before, after], (before, after), examples)
    return folder / "index.html"


def benchmark_report(folder: Path) -> Path:
    """`cosegflow bench`'s report of invented rows."""
    benchmarks.write_report([row for row in sample() if row["direction"] == "forward"], folder / "report.html")
    return folder / "report.html"


@pytest.mark.parametrize("make", [demo_report, benchmark_report])
def test_reports_in_a_browser(make, browser, tmp_path):
    page = make(tmp_path)
    assert page.read_text().count("<img") >= 6
    for width in (PHONE, DESKTOP):
        found = problems(browser, page, width)
        assert found == [], f"at {width} px"


HEAD = "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'><h1>A page</h1>"
BROKEN = {
    "picture not loaded: gone.png": HEAD + "<img src=gone.png>",
    "failed to load: net::ERR_FILE_NOT_FOUND": HEAD + "<img src=gone.png>",
    "exception: ReferenceError: nothing is not defined": HEAD + "<script>nothing()</script>",
    "console: ": HEAD + "<script>console.error('no')</script>",
    "overflow: ": HEAD + "<table><tr>" + "<td style='min-width: 4em'>x" * 12 + "</table>",
    "overflow: 980": "<!doctype html><h1>No viewport</h1>",
    "text of 9 px: small": HEAD + "<p style='font-size: 9px'>small",
    "picture at 0.10": HEAD + "<img style='width: 40px' src=\"data:image/svg+xml,"
    "<svg xmlns='http://www.w3.org/2000/svg' width='400' height='9'/>\">",
    "blank": "<!doctype html><meta name=viewport content='width=device-width'><body>",
}  # fmt: skip


def test_the_checks_find_what_is_wrong(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(HEAD)
    assert problems(browser, page, PHONE) == []
    for expected, text in BROKEN.items():
        page.write_text(text)
        found = problems(browser, page, PHONE)
        assert any(line.startswith(expected) for line in found), (expected, found)
