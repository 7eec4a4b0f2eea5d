"""The report of the ablation: tables, plots and document from an invented CSV; pictures from tiny models."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("lightning")

from cosegflow.benchmarks.documents import DocumentError

from cosegflow.ablation import blocks, charts, picture_list, pictures, report
from cosegflow.ablation.errors import AblationError
from cosegflow.ablation.results import METRICS, Results, metric
from cosegflow.ablation.table import Measurement, write_table
from cosegflow.configuration import to_yaml
from cosegflow.joint.config import DataConfig, FitConfig
from cosegflow.joint.model import JointModel, ModelConfig

ROOT = Path(__file__).resolve().parents[1]
LEVEL = {
    "joint": 0.70, "match-only": 0.62, "coseg-only": 0.55, "supervised": 0.80, "untrained": 0.40, "zero-shot": 0.45,
    "without cycle": 0.66, "without gating": 0.71,
}  # fmt: skip
MASKLESS = ("match-only", "zero-shot")
SETTINGS = {"match-only": {"train.task": "match-only"}, "without cycle": {"train.weights.cycle": 0.0}}


def measurement(row: str, seed: int, dataset: str, name: str, value: float, condition: str = "") -> Measurement:
    """One invented line."""
    return Measurement(
        row, seed, dataset, name, condition, value, 96 if dataset else None,
        {"train.steps": 700} | SETTINGS.get(row, {}),
        "0123456789ab", "2030-01-02T03:04:05+00:00", "0123456789abcdef", False, "9.9.9", "8.8.8", "Imaginary 9000", 1,
    )  # fmt: skip


def sample() -> list[Measurement]:
    """Three seeds of the main rows, one of the others; joint is better by 0.08 in each seed."""
    made = []
    for row, level in LEVEL.items():
        trained = row not in ("untrained", "zero-shot")
        for seed in range(3 if trained and "without" not in row else 1):
            value = level + 0.01 * seed
            for what in METRICS:
                if what.of == "matching" or row not in MASKLESS:
                    shown = 10 * (1 - value) if what.unit == "px" else 1 - value if what.lower_is_better else value
                    made.append(measurement(row, seed, what.dataset, what.name, shown))
            for name in ("pck@0.05", "pck@0.1", "jaccard"):
                if row in MASKLESS and name == "jaccard":
                    continue
                for amount in (0, 4, 8):
                    for masks in (0, 1) if row not in MASKLESS else (0,):
                        harm = (0.005 if masks else 0.02) * amount
                        condition = f"clutter={amount},masks={masks}"
                        made.append(measurement(row, seed, "stamps", name, value - harm, condition))
            for k in range(5) if row not in MASKLESS and trained else ():
                for name in ("pck@0.05", "pck@0.1", "pck@0.15", "end_point_error", "jaccard", "consistency"):
                    made.append(measurement(row, seed, "stamps", name, value - 0.1 / (k + 1), f"rounds={k}"))
            if trained:
                run = {"train_seconds": 600.0 + 60 * seed, "step_seconds": 0.9, "steps": 700.0}
                made += [measurement(row, seed, "", name, value) for name, value in run.items()]
    return made


def lines(table: str) -> dict[str, list[str]]:
    """The cells of a markdown table by the first one; the first line that begins so."""
    found: dict[str, list[str]] = {}
    for line in table.splitlines():
        if line.startswith("| "):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            found.setdefault(cells[0], cells[1:])
    return found


@pytest.fixture
def site(tmp_path: Path) -> tuple[Path, Path]:
    """(CSV, docs) with the committed template."""
    write_table(tmp_path / "ablation.csv", sample())
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "results.md", tmp_path / "docs" / "results.md")
    return tmp_path / "ablation.csv", tmp_path / "docs"


def test_main_table_has_means_and_deviations_over_seeds():
    table = lines(blocks.main_table(Results(sample()), METRICS))
    assert list(table)[1:] == ["joint", "match-only", "coseg-only", "supervised", "untrained", "zero-shot"]
    assert table["joint"][0] == "3" and table["joint"][1] == "71.0 ± 1.0"
    assert table["joint"][4] == "2.90 ± 0.10"  # pixels
    assert table["zero-shot"][:2] == ["1", "45.0"]


def test_what_a_row_does_not_have_is_a_dash():
    header, *_ = (line for line in blocks.main_table(Results(sample()), METRICS).splitlines())
    columns = [cell.strip() for cell in header.strip("|").split(" | ")][1:]
    table = lines(blocks.main_table(Results(sample()), METRICS))
    dashes = {"match-only": "stamps Jaccard", "zero-shot": "Weizmann precision", "coseg-only": "stamps EPE, px"}
    for row, lacking in dashes.items():
        assert table[row][columns.index(lacking)] == "-"
    assert table["coseg-only"][columns.index("stamps consistency")] == "56.0 ± 1.0"


def test_differences_are_paired_by_seed():
    made = [m for m in sample() if not (m.row == "match-only" and m.seed == 2)]
    what = metric("stamps", "pck@0.05")
    lucky = ("joint", 0, what.name, "")
    made = [replace(m, value=0.90) if (m.row, m.seed, m.metric, m.condition) == lucky else m for m in made]
    assert Results(made).difference("joint", "match-only", what) == pytest.approx([0.28, 0.08])
    cells = lines(blocks.compared(Results(made), "joint", blocks.ALONE))["stamps PCK@.05"]
    assert cells[2:] == ["+18.0 ± 14.1", "+8.0 to +28.0", "2 of 2"]


def test_lower_errors_count_as_better():
    cells = lines(blocks.compared(Results(sample()), "joint", blocks.ALONE))["stamps EPE, px (lower is better)"]
    assert cells[2].startswith("-0.80") and cells[-1] == "3 of 3"
    supervised = lines(blocks.compared(Results(sample()), "joint", {"matching": "supervised", "masks": "supervised"}))
    assert supervised["stamps Jaccard"][2:] == ["-10.0 ± 0.0", "-10.0 to -10.0", "0 of 3"]


def test_masks_are_compared_with_coseg_only():
    cells = lines(blocks.compared(Results(sample()), "joint", blocks.ALONE))["stamps Jaccard"]
    assert cells[1].endswith("(coseg-only)") and cells[2].startswith("+15.0")


def test_consistency_has_every_row_that_learns_masks():
    table = lines(blocks.consistency(Results(sample())))
    assert list(table)[1:] == ["joint", "coseg-only", "supervised", "without cycle", "without gating"]
    assert table["coseg-only"][:3] == ["3", "56.0 ± 1.0", "56.0 ± 1.0"]


def test_other_rows_show_the_difference_from_joint_and_what_changed():
    table = lines(blocks.without(Results(sample())))
    assert table["joint"][2] == "71.0 ± 1.0"
    assert table["without cycle"][:3] == ["train.weights.cycle 0.0", "1", "-4.0"]
    assert "match-only" not in table


def test_clutter_table_has_the_harm_with_and_without_masks():
    text = blocks.by_clutter(Results(sample()))
    harm = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| PCK@.1 ")]
    assert [(cells[1], cells[-1]) for cells in harm] == [
        ("joint, with masks", "-4.0 ± 0.0"),
        ("joint, without masks", "-16.0 ± 0.0"),
        ("match-only", "-16.0 ± 0.0"),
    ]


def test_rounds_table_has_each_round():
    table = lines(blocks.by_rounds(Results(sample())))
    assert [name for name in table if name.isdigit()] == ["0", "1", "2", "3", "4"]
    assert table["0"][0] == "61.0 ± 1.0" and table["4"][0] == "69.0 ± 1.0"


def test_goals_are_judged():
    table = lines(blocks.targets(Results(sample())))
    verdicts = {name.split(":")[0]: cells[-1] for name, cells in table.items()}
    assert verdicts["joint minus zero-shot"] == "met" and verdicts["joint minus coseg-only"] == "met"
    worse = [replace(m, value=m.value - 0.2) if m.dataset == "weizmann-horse" else m for m in sample()]
    assert lines(blocks.targets(Results(worse)))["joint: Weizmann Jaccard"][1:] == ["51.0 ± 1.0", "missed"]
    nothing = [m for m in sample() if m.dataset != "pf-willow"]
    assert lines(blocks.targets(Results(nothing)))["joint minus zero-shot: PF-WILLOW PCK@.1"][-1] == "not measured"


def test_of_two_settings_the_latest_counts():
    old = [
        replace(m, value=0.1, digest="f" * 12, date="2029-01-01T00:00:00+00:00") for m in sample() if m.row == "joint"
    ]
    results = Results([*sample(), *old])
    assert results.by_seed("joint", "stamps", "jaccard")[0] == 0.70 and results.outdated == len(old)
    assert f"{len(old)} measurements of older settings" in blocks.provenance(results)


def test_a_mean_over_nothing_is_not_hidden():
    made = [replace(m, value=math.nan) if (m.row, m.metric) == ("joint", "lt_acc") else m for m in sample()]
    assert lines(blocks.main_table(Results(made), METRICS))["joint"][7] == "nan"


def test_provenance_counts_runs_and_minutes():
    text = blocks.provenance(Results(sample()))
    assert "2030-01-02: Imaginary 9000, 1 thread(s) a run, torch 8.8.8, cosegflow 9.9.9, commit 012345678." in text
    assert "14 training runs, 152 minutes" in text and "700 steps, 11.0 minutes, 0.90 seconds a step" in text


def test_charts_have_a_line_for_each_way():
    made = charts.charts(Results(sample()))
    title, series = made["clutter"].panels[1]
    assert title == "PCK@.1" and [s.label for s in series] == [
        "joint, with masks",
        "joint, without masks",
        "match-only",
    ]
    assert series[0].x == (0, 4, 8) and series[0].y == pytest.approx((0.71, 0.69, 0.67))
    assert series[0].band[0] == pytest.approx((0.70, 0.72))
    assert [s.label for s in made["rounds"].panels[0][1]] == ["joint", "without gating", "supervised"]
    assert charts.charts(Results([m for m in sample() if not m.condition])) == {}


def test_publish_then_check_finds_nothing(site):
    csv, docs = site
    changed = report.publish(csv, docs)
    assert Path("results.md") in changed and len(list((docs / report.PLOTS).glob("*.svg"))) == 2
    assert report.check(csv, docs) == []
    assert report.publish(csv, docs) == []
    text = (docs / "results.md").read_text()
    for link in re.findall(r"\]\((images/[^)]+)\)", text):
        assert (docs / link).is_file()
    assert "Does each task help the other?" in text and "71.0 ± 1.0" in text


def test_check_finds_other_numbers_and_plots(site, capsys):
    csv, docs = site
    report.publish(csv, docs)
    path = docs / "results.md"
    path.write_text(path.read_text().replace("71.0 ± 1.0", "99.0 ± 1.0", 1))
    assert any("99.0" in line for line in report.check(csv, docs))
    assert report.main([str(csv), "--docs", str(docs), "--check"]) == 1
    assert "make ablate-report" in capsys.readouterr().err
    assert report.main([str(csv), "--docs", str(docs)]) == 0
    write_table(csv, [replace(m, value=m.value / 2) if m.condition == "rounds=4" else m for m in sample()])
    assert "images/results/rounds.svg: shows other data than the results" in report.check(csv, docs)
    write_table(csv, [m for m in sample() if "rounds" not in m.condition])
    assert "images/results/rounds.svg: no result belongs to it" in report.check(csv, docs)
    report.publish(csv, docs)
    assert not (docs / report.PLOTS / "rounds.svg").exists()


def test_errors_are_one_line(site, tmp_path, capsys):
    csv, docs = site
    with pytest.raises(AblationError, match=r"found no results\.md"):
        report.publish(csv, tmp_path)
    write_table(csv, [])
    with pytest.raises(AblationError, match="holds no measurement"):
        report.publish(csv, docs)
    (docs / "results.md").write_text("<!-- measured: poetry -->\n<!-- end -->\n")
    with pytest.raises(DocumentError, match="unknown block 'poetry'"):
        report.publish(None, docs)
    (docs / "results.md").write_text("<!-- measured: targets -->\n")
    assert report.main([str(csv), "--docs", str(docs)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_partial_results_make_a_document(site):
    csv, docs = site
    for kept in ({"zero-shot"}, {"joint"}, {"without cycle"}):
        write_table(csv, [m for m in sample() if m.row in kept])
        report.publish(csv, docs)
        assert report.check(csv, docs) == []
    report.publish(None, docs)
    assert report.ABSENT in (docs / "results.md").read_text()


def test_committed_document_is_what_the_committed_results_say():
    assert report.check(report.newest(), ROOT / "docs") == []


def test_best_median_and_worst_are_distinct():
    scores = [0.1, 0.9, 0.5, 0.3, 0.7, 0.2, 0.8, 0.4, 0.6, 0.0]
    kinds = pictures.chosen(scores)
    assert [index for kind, index in kinds if kind == "best"] == [1, 6, 4]
    assert [index for kind, index in kinds if kind == "median"] == [2, 7]
    assert [index for kind, index in kinds if kind == "worst"] == [5, 0, 9]
    assert len(pictures.chosen(scores[:2])) == 2


def test_only_public_domain_photographs_that_training_did_not_see():
    library = pictures.free_library(None)
    assert {s.name for s in library.stamps} == set(pictures.OBJECTS)
    assert {b.name for b in library.backgrounds} == set(pictures.GROUNDS)
    training = pictures.load_library("none").split()[0]
    fewer = pictures.free_library(training)
    assert {s.name for s in fewer.stamps} == {"astronaut", "shuttle", "helmet", "photographer"}
    with pytest.raises(AblationError, match="--pictures"):
        pictures.free_library(pictures.load_library("none"))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The folders of two runs of tiny, untrained models."""
    for seed, name in enumerate((pictures.WITH, pictures.ALONE)):
        torch.manual_seed(seed)
        folder = tmp_path / "ablation" / "runs" / name
        model = ModelConfig(backbone="tiny", image_size=64)
        JointModel(model).save_pretrained(folder / "model")
        data = DataConfig(dataset="folder", root=tmp_path, size=64)
        config = FitConfig(out=folder, data=data, model=model)
        (folder / "config.yaml").write_text(to_yaml(config))
    return tmp_path / "ablation"


def test_pictures_are_small_ranked_and_listed(runs, site, one_thread):
    csv, docs = site
    written = pictures.publish_pictures(runs, docs, ranked=9)
    assert len(written) == 9 and all((docs / path).is_file() for path in written)
    strips = sorted((docs / report.PLOTS).glob("*.jpg"))
    assert len(strips) == 8 and max(path.stat().st_size for path in strips) <= pictures.LARGEST
    with Image.open(strips[0]) as strip:
        assert strip.size == (8 * (pictures.CELL + pictures.GAP) - pictures.GAP, pictures.HEAD + pictures.CELL)
    made = picture_list.read_list(docs)
    assert made is not None and made.ranked == 9
    assert [one.kind for one in made.pictures] == ["best"] * 3 + ["median"] * 2 + ["worst"] * 3
    scores = [one.pck + one.jaccard for one in made.pictures]
    assert scores == sorted(scores, reverse=True)
    before = [path.read_bytes() for path in strips]
    pictures.publish_pictures(runs, docs, ranked=9)
    assert [path.read_bytes() for path in strips] == before
    report.publish(csv, docs)
    text = (docs / "results.md").read_text()
    assert text.count("![Failure: rank ") == 3 and text.count("![Best: rank ") == 3
    assert report.check(csv, docs) == []
    strips[0].write_bytes(b"")
    strips[1].unlink()
    assert len(report.check(csv, docs)) == 2


def test_pictures_need_both_runs_and_a_whole_list(runs, site):
    _, docs = site
    shutil.rmtree(runs / "runs" / pictures.ALONE)
    with pytest.raises(AblationError, match=pictures.ALONE):
        pictures.publish_pictures(runs, docs)
    (docs / report.PLOTS).mkdir(parents=True)
    (docs / picture_list.LIST).write_text(json.dumps({"pictures": []}))
    with pytest.raises(AblationError, match="is no list of pictures"):
        report.publish(None, docs)
