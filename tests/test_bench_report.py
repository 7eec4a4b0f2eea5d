"""Tables, plots, report.html and the generated parts of README and docs, from invented rows."""

import io
import math
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import plots, publish, report, rows, table  # noqa: E402
from benchmarks.case import Case, columns  # noqa: E402

NAN = math.nan
SLOWER = {"cosegflow": 1.0, "eager": 2.5, "sdpa": 0.5, "kornia": 3.0}


def row(peer: str, case: Case, direction: str = "forward", device: str = "cpu", **changes):
    """One invented row: times grow with the size, `sdpa` is fast and wrong."""
    median = 1e-4 * SLOWER[peer] * case.channels * case.a[0] * case.a[1]
    made = dict.fromkeys(rows.COLUMNS) | columns(case)
    made |= {
        "work": "match", "direction": direction, "peer": peer, "peer_version": "1.0", "status": "ok",
        "p20_ms": 0.9 * median, "median_ms": median, "p80_ms": 1.1 * median, "repeats": 50,
        "error_max": 0.5 if peer == "sdpa" else 1e-5, "error_rel": 0.1 if peer == "sdpa" else 1e-6, "memory_mb": 12.5,
        "limit_ms": 0.1, "limit_by": "matrix", "limit_fraction": 0.25 / SLOWER[peer],
        "date": "2030-01-02T03:04:05+00:00", "command": "cosegflow bench --works match", "commit": "0123456789abcdef",
        "modified": False, "device": device, "device_name": "Imaginary 9000", "torch": "9.9.9", "cosegflow": "0.0.0",
        "python": "3.99", "threads": 2,
    }  # fmt: skip
    return made | changes


def refused(peer: str, case: Case, status: str, reason: str, direction: str = "forward", **changes):
    """A row without a time."""
    empty = dict.fromkeys(rows.MEASURED) | {"limit_fraction": None}
    return row(peer, case, direction, **empty, status=status, reason=reason, **changes)


def sizes() -> list[Case]:
    """A sweep over N and one over C."""
    grids = [Case(channels=256, a=(n, n), b=(n, n)) for n in (16, 32, 64)]
    return [*grids, Case(channels=64, a=(64, 64), b=(64, 64))]


def sample(device: str = "cpu"):
    """Two directions, four sizes, every kind of row."""
    found = []
    for case in sizes():
        for direction in ("forward", "both"):
            found += [row(peer, case, direction, device) for peer in ("cosegflow", "sdpa")]
            large = case.a[0] == 64 and case.channels == 256
            eager = (
                refused("eager", case, "out of memory", "more than 3.0 GB", direction, device=device)
                if large
                else row("eager", case, direction, device)
            )
            found += [eager, refused("kornia", case, "missing", "No module named 'kornia'", direction, device=device)]
    return found


def rich_text(found, width: int = 120, **options) -> str:
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=width, **options)
    table.print_table(found, console)
    return console.file.getvalue()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the documents' blocks, empty, and no results."""
    (tmp_path / "docs").mkdir()
    (tmp_path / publish.RESULTS).mkdir(parents=True)
    blocks = "\n".join(f"<!-- measured: {name} -->\n<!-- end -->\n" for name in publish.BLOCKS if "match" not in name)
    (tmp_path / "docs/benchmarks.md").write_text(f"# Benchmarks\n\n{blocks}\ntail\n")
    (tmp_path / "README.md").write_text("# head\n\n<!-- measured: match_cpu -->\nold\n<!-- end -->\n\ntail\n")
    return tmp_path


def run(checkout: Path, *options: str) -> int:
    return publish.main(["--root", str(checkout), *options])


# The table


@pytest.mark.parametrize("text", [table.plain, rich_text])
def test_table_shows_contestants_ratios_and_wrong_answers(text):
    shown = text(sample())
    lines = [re.sub(r"\s+", " ", line).strip() for line in shown.splitlines()]
    assert "match, forward (cpu, 2 threads)" in lines and "match, both (cpu, 2 threads)" in lines
    at = lines.index("B=1,C=256,N=16x16,float32")
    # The best peer is eager: sdpa is faster, and wrong.
    assert lines[at + 1].startswith("cosegflow 6.55 (5.90..7.21) 2.50 eager 1.0e-05 12.5 25 matrix")
    assert lines[at + 2].startswith("sdpa 3.28 (2.95..3.60) 0.500 5.0e-01 ! ")
    assert lines[at + 3].startswith("eager 16.4 (14.7..18.0) 2.50 1.0e-05 12.5 ")
    assert lines[at + 4] == "kornia missing: No module named 'kornia'"
    assert "eager out of memory: more than 3.0 GB" in lines


def test_wrong_answers_are_red_and_reasons_survive_a_narrow_terminal():
    coloured = rich_text(sample(), force_terminal=True, color_system="standard")
    assert re.search(r"\x1b\[1;31m *5\.0e-01 !", coloured)
    narrow = re.sub(r"\s+", " ", rich_text(sample(), width=64))
    assert "missing: No module named 'kornia'" in narrow and "5.0e-01 !" in narrow


def test_nan_is_shown_and_marked_and_no_best_peer():
    case = sizes()[0]
    found = [row("cosegflow", case), row("eager", case, error_max=NAN)]
    (one,) = table.group(found)
    ours, eager = one.lines
    assert (ours.wrong, eager.wrong) == (False, True) and one.best is None and ours.ratio is None
    assert table.error_text(eager) == "NaN !"
    assert "NaN !" in table.plain(found) and "NaN !" in rich_text(found)
    both = table.group([row("cosegflow", case, error_max=NAN), row("eager", case, error_max=math.inf)])[0]
    assert all(line.wrong for line in both.lines)


@pytest.mark.parametrize(
    ("error", "errors", "wrong"),
    [(None, [1.0], False), (1.25, [1.25, 0.125], False), (1.26, [0.125, 1.26], True), (0.0, [0.0], False),
     (1e-9, [0.0, 1e-9], True), (NAN, [NAN], True), (math.inf, [math.inf], True), (1.0, [NAN, 1.0], False)],
)  # fmt: skip
def test_is_wrong(error, errors, wrong):
    assert table.is_wrong(error, errors) is wrong


def test_groups_keep_devices_threads_and_sizes_apart_and_the_first_of_equal_rows():
    case = sizes()[0]
    found = [row("cosegflow", case), row("cosegflow", case, threads=1), row("cosegflow", case, device="cuda")]
    found += [row("cosegflow", Case(channels=256, a=(16, 16), b=(16, 16), foreground=0.3)), row("cosegflow", case)]
    found[-1]["median_ms"] = 77.0
    first = found[0]["median_ms"]
    groups = table.group(found)
    assert [g.where for g in groups] == ["cpu, 2 threads", "cpu, 2 threads", "cpu, 1 threads", "cuda"]
    assert groups[0].lines[0].row["median_ms"] == first
    found[0]["status"] = "failed"
    assert table.group(found)[0].lines[0].row["median_ms"] == 77.0


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (NAN, "NaN"), (0.0, "0"), (1234.5, "1230"), (9.996, "10.00"), (0.012345, "0.0123")]
)
def test_significant(value, text):
    assert table.significant(value) == text


def test_rows_without_a_time_and_no_rows():
    found = [refused("cosegflow", sizes()[0], "failed", "ValueError: a\nb [bold]")]
    for shown in (table.plain(found), rich_text(found)):
        assert re.search(r"cosegflow +failed: ValueError: a b \[bold\]\n", shown)
    assert table.plain([]) == "no rows" and rich_text([]) == "no rows\n"


def test_table_without_rich(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    table.print_table(sample())
    assert capsys.readouterr().out == table.plain(sample()) + "\n"


# Plots


def test_charts_hold_the_rows():
    made = {chart.name.removeprefix("match_float32_cpu_2_threads_"): chart for chart in plots.charts(sample())}
    assert list(made) == ["time_n", "time_c", "memory_n", "limit_n", "limit_c", "survival"]
    direction, series = made["time_n"].panels[0]
    assert direction == "forward" and [s.peer for s in series] == ["cosegflow", "eager", "sdpa"]
    assert series[0].x == (256, 1024, 4096) and series[1].x == (256, 1024)
    assert series[0].y == pytest.approx([6.5536, 26.2144, 104.8576])
    assert series[2].wrong == (True, True, True) and not any(series[0].wrong)
    assert made["time_n"].ticks == ((256, "16x16"), (1024, "32x32"), (4096, "64x64"))
    bars = {bar.peer: (bar.survived, bar.failed) for bar in made["survival"].bars}
    assert bars == {"cosegflow": (4096, 0), "eager": (1024, 4096), "sdpa": (4096, 0)}


def test_no_chart_with_fewer_than_two_points():
    assert plots.charts([]) == []
    assert plots.charts([row("cosegflow", sizes()[0]), row("eager", sizes()[0])]) == []
    assert plots.charts([row("cosegflow", sizes()[0]), refused("cosegflow", sizes()[1], "failed", "x")]) == []


def test_figures_are_drawn():
    pytest.importorskip("matplotlib")
    drawn = plots.plots(sample())
    assert len(drawn) == 6
    name, title, figure = drawn[0]
    assert name.endswith("time_n") and "time against N" in title
    assert [at.get_title() for at in figure.axes] == ["forward", "both"]
    ours = next(line for line in figure.axes[0].get_lines() if line.get_label() == "cosegflow")
    assert ours.get_linewidth() > 2 and list(ours.get_xdata()) == [256, 1024, 4096]


def test_svg_is_repeatable_and_carries_the_digest():
    pytest.importorskip("matplotlib")
    chart = plots.charts(sample())[0]
    text = plots.svg(chart)
    assert text == plots.svg(chart) and "<dc:date>" not in text
    assert plots.digest_in(text) == plots.digest(chart) and plots.digest_in("<svg/>") is None
    changed = sample()
    changed[0]["median_ms"] *= 1.001
    assert plots.digest(plots.charts(changed)[0]) != plots.digest(chart)


# report.html


def test_report_is_self_contained_and_escaped(tmp_path):
    pytest.importorskip("matplotlib")
    found = sample()
    found[3]["reason"] = "<script>alert(1)</script> & co"
    found[0]["device_name"] = "<b>chip</b>"
    report.write_report(found, tmp_path / "report.html")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    text = (tmp_path / "report.html").read_text()
    assert "http" not in text and "<link" not in text and "@import" not in text and "url(" not in text
    sources = re.findall(r'src="([^"]{,25})', text)
    assert len(sources) == 6 and set(sources) == {"data:image/svg+xml;base64"}
    assert text.count("<script>") == 1 and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in text
    assert "&lt;b&gt;chip&lt;/b&gt;" in text and "<b>chip" not in text
    for shown in ("9.9.9", "0123456789abcdef", "2030-01-02T03:04:05+00:00", "cosegflow bench --works match"):
        assert shown in text
    assert text.count(" class=wrong>5.0e-01 !</td>") == 8


def test_report_of_nothing_and_without_matplotlib(tmp_path, monkeypatch):
    report.write_report([], tmp_path / "report.html")
    assert "No rows." in (tmp_path / "report.html").read_text()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = report.html(sample())
    assert "matplotlib is not installed" in text and "16.4 (14.7..18.0)" in text


# README and docs


def test_publish_without_results(checkout, capsys):
    assert run(checkout, "--check") == 1
    assert run(checkout) == 0 and run(checkout, "--check") == 0
    readme, docs = ((checkout / path).read_text() for path in publish.DOCUMENTS)
    assert readme == f"# head\n\n<!-- measured: match_cpu -->\n{publish.NO_CPU}\n<!-- end -->\n\ntail\n"
    assert publish.NO_CPU in docs and "No GPU result is committed yet." in docs
    assert not (checkout / publish.PICTURES).exists()


def test_publish_writes_and_check_finds_what_was_edited(checkout, capsys):
    pytest.importorskip("matplotlib")
    result = checkout / publish.RESULTS / "bench_cpu_2030-01-02.csv"
    rows.write(sample(), result)
    assert run(checkout) == 0 and run(checkout, "--check") == 0
    readme = (checkout / "README.md").read_text()
    assert "| match, forward, B=1, C=256, N=16x16, float32 | 16.4 ms | 6.55 ms | 2.50 | 1.0e-05 | 1.0e-05 |" in readme
    assert "N=64x64, float32 | out of memory | 105 ms | - | - | 1.0e-05 | - | 12.5 |" in readme
    assert (
        "2030-01-02: Imaginary 9000, 2 threads, torch 9.9.9; commit 012345678; `cosegflow bench --works match`"
        in readme
    )
    docs = (checkout / "docs/benchmarks.md").read_text()
    assert "5.0e-01 !" in docs and "| kornia | missing: No module named 'kornia' |" in docs
    links = re.findall(r"\]\(images/bench/(\S+)\)", docs)
    pictures = checkout / publish.PICTURES
    assert len(links) == 6 and {p.name for p in pictures.iterdir()} == set(links)
    assert run(checkout) == 0
    capsys.readouterr()

    (checkout / "README.md").write_text(readme.replace("6.55 ms", "5.55 ms"))
    assert run(checkout, "--check") == 1
    out = capsys.readouterr().out
    assert "5.55 ms" in out and "6.55 ms" in out and "docs/benchmarks.md" not in out
    assert run(checkout) == 0 and (checkout / "README.md").read_text() == readme

    edited = result.read_text().replace("6.5536", "6.6536", 1)
    assert edited != result.read_text()
    result.write_text(edited)
    assert run(checkout, "--check") == 1
    out = capsys.readouterr().out
    assert "README.md" in out and "docs/benchmarks.md" in out
    assert "match_float32_cpu_2_threads_time_n.svg: shows other data" in out and "limit_n.svg" not in out


def test_check_looks_at_the_digests_of_the_pictures(checkout, capsys):
    pytest.importorskip("matplotlib")
    rows.write(sample(), checkout / publish.RESULTS / "bench_cpu_2030-01-02.csv")
    assert run(checkout) == 0
    first, second, third = sorted((checkout / publish.PICTURES).iterdir())[:3]
    digest = plots.digest_in(first.read_text())
    first.write_text(f"<svg>drawn otherwise; sha256 of the data: {digest}</svg>")
    assert run(checkout, "--check") == 0  # the drawing may differ, the data not
    first.write_text(first.read_text().replace(digest, "0" * 64))
    second.write_text("<svg/>")
    third.unlink()
    (checkout / publish.PICTURES / "old.svg").write_text("<svg/>")
    capsys.readouterr()
    assert run(checkout, "--check") == 1
    lines = sorted(capsys.readouterr().out.splitlines())
    assert [line.rpartition("/")[2] for line in lines] == [
        f"{first.name}: shows other data than the results", f"{second.name}: shows other data than the results",
        f"{third.name}: missing", "old.svg: no document shows it",
    ]  # fmt: skip
    assert run(checkout) == 0 and run(checkout, "--check") == 0
    assert not (checkout / publish.PICTURES / "old.svg").exists()


def test_newest_file_of_the_device(checkout):
    pytest.importorskip("matplotlib")
    case = sizes()[0]
    results = checkout / publish.RESULTS
    # By the date in the rows: names and times of files say nothing.
    rows.write([row("cosegflow", case, median_ms=111.0, date="2031-01-01T00:00:00+00:00")], results / "bench_cpu_a.csv")
    rows.write([row("cosegflow", case, median_ms=222.0)], results / "bench_cpu_b.csv")
    rows.write([row("cosegflow", case, device="cuda", median_ms=333.0)], results / "bench_chip.csv")
    assert run(checkout) == 0
    readme, docs = ((checkout / path).read_text() for path in publish.DOCUMENTS)
    assert "111 ms" in readme and "222" not in readme + docs
    assert "333 (" in docs and "No GPU result" not in docs and "333" not in readme


def test_fullest_file_of_the_day_and_no_rehearsal(checkout):
    case = sizes()[0]
    results = checkout / publish.RESULTS
    two = [row("cosegflow", case, median_ms=111.0), row("eager", case)]
    rows.write(two, results / "bench_cpu_a.csv")
    rows.write([row("cosegflow", case, date="2030-01-02T23:00:00+00:00")], results / "bench_cpu_b.csv")
    quick = [row("cosegflow", case, date="2031-01-01T00:00:00+00:00", command="cosegflow bench --quick")]
    rows.write(quick, results / "bench_cpu_c.csv")
    found = publish.newest(checkout, publish.BLOCKS["works_cpu"])
    assert [(r["peer"], r["median_ms"]) for r in found] == [(r["peer"], r["median_ms"]) for r in two]


def test_gpu_check_rows(checkout):
    pytest.importorskip("matplotlib")
    import json

    found = [{**r, "driver": "580.1", "cuda": "13.0"} for r in sample("cuda")]
    found[0]["error_max"] = NAN
    name = checkout / publish.RESULTS / "gpu_check_imaginary_2030-01-02.json"
    name.write_text(json.dumps({"tests": {}, "bench": {"rows": found}}))
    assert run(checkout) == 0 and run(checkout, "--check") == 0
    docs = (checkout / "docs/benchmarks.md").read_text()
    assert "Imaginary 9000, driver 580.1, CUDA 13.0, torch 9.9.9" in docs and "NaN !" in docs
    assert "match_float32_cuda_time_n.svg" in docs and publish.NO_CPU in docs


def test_result_file_whose_rows_all_failed(checkout):
    found = [refused("cosegflow", sizes()[0], "failed", "RuntimeError: a|b <c>", modified=True)]
    rows.write(found, checkout / publish.RESULTS / "bench_cpu_x.csv")
    assert run(checkout) == 0 and run(checkout, "--check") == 0
    readme, docs = ((checkout / path).read_text() for path in publish.DOCUMENTS)
    assert "| - | failed | - | - | - | - | - |" in readme and "with local changes" in readme
    assert "| cosegflow | failed: RuntimeError: a\\|b &lt;c> |" in docs


@pytest.mark.parametrize(
    ("readme", "message"),
    [("<!-- measured: speed -->\n<!-- end -->\n", "unknown block 'speed'; valid: match_cpu"),
     ("<!-- measured: match_cpu -->\n", "needs its '<!-- end -->'"),
     ("<!-- measured: match_cpu -->\n<!-- measured: works_cpu -->\n<!-- end -->\n", "needs its '<!-- end -->'"),
     (None, "need a checkout of cosegflow, found no README.md")],
)  # fmt: skip
def test_documents_that_cannot_be_filled(checkout, capsys, readme, message):
    path = checkout / "README.md"
    path.unlink() if readme is None else path.write_text(readme)
    assert run(checkout) == 2 and run(checkout, "--check") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(message in line for line in lines)


def test_a_file_with_other_columns_is_named(checkout, capsys):
    (checkout / publish.RESULTS / "bench_cpu_x.csv").write_text("a,b\n1,2\n")
    assert run(checkout) == 2
    assert "bench_cpu_x.csv: not a result file" in capsys.readouterr().err


def test_the_committed_documents_match_the_committed_results(capsys):
    assert publish.main(["--check"]) == 0, capsys.readouterr().out
