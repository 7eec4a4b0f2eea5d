"""Configurations: YAML and options to frozen dataclasses and back, every default visible, one line for each mistake."""

import argparse
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

pytest.importorskip("yaml", reason="the joint extra is not installed")

import yaml

from cosegflow import cli
from cosegflow.configuration import (
    ConfigurationError,
    Given,
    build,
    differences,
    flatten,
    read_yaml,
    settings,
    to_plain,
    to_yaml,
)
from cosegflow.joint.config import FitConfig, LossWeights, TrainConfig


@dataclass(frozen=True)
class Inner:
    scale: float = 0.5
    """how large"""
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    count: int | None = None
    """how many,
    or nothing"""
    folder: Path | None = None
    flag: bool = True
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ValueError("name: need another")


def read(**values: object) -> Outer:
    return build(Outer, {k.replace("__", "."): Given(v, f"--{k.replace('__', '.')}") for k, v in values.items()})


def test_values_of_every_kind():
    made = read(
        name="7", count="3", folder="a b/[c]", flag="False", inner__scale="1e-3", inner__kind="b", inner__sizes="4,5"
    )
    assert made == Outer("7", 3, Path("a b/[c]"), False, Inner(0.001, "b", (4, 5)))
    assert read(count="null", inner__sizes=[3]) == Outer(inner=Inner(sizes=(3,)))
    assert read(count=2.0).count == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": "x"}, "--count: need a whole number or null, got 'x'"),
        ({"count": 2.5}, "--count: need a whole number or null, got 2.5"),
        ({"count": True}, "--count: need a whole number or null, got True"),
        ({"flag": 1}, "--flag: need true or false, got 1"),
        ({"inner__scale": "nan"}, "--inner.scale: need a number, got 'nan'"),
        ({"inner__kind": "c"}, "--inner.kind: need 'a' or 'b', got 'c'"),
        ({"inner__sizes": "1,x"}, "--inner.sizes: need a list, each a whole number, got '1,x'"),
        ({"name": "bad"}, "name: need another"),
    ],
)
def test_wrong_values(values: dict[str, object], message: str):
    with pytest.raises(ConfigurationError) as caught:
        read(**values)
    assert str(caught.value) == message


def test_settings_and_their_documentation():
    found = {setting.name: setting for setting in settings(Outer)}
    assert list(found) == ["name", "count", "folder", "flag", "inner.scale", "inner.kind", "inner.sizes"]
    assert found["count"].help == "how many, or nothing" and found["inner.scale"].help == "how large"
    assert all(setting.help for setting in settings(FitConfig)), "every setting says what it is"


def test_yaml_round_trip(tmp_path: Path):
    made = Outer("a: b #c", 3, Path("x y"), False, Inner(1e-5, "b", (9,)))
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(made))
    assert build(Outer, read_yaml(path, Outer, "--config")) == made
    assert yaml.safe_load(to_yaml(made)) == to_plain(made)
    assert "# how large" in to_yaml(made)
    assert differences(Outer(), made) == [setting.name for setting in settings(Outer)]
    assert build(Outer, flatten(to_plain(made), Outer, "here")) == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inner: {scael: 1}", "c.yaml: inner.scael is no setting; did you mean 'inner.scale'?"),
        ("scale: 1", "c.yaml: scale is no setting; did you mean 'inner.scale'?"),
        ("zzz: 1", "c.yaml: zzz is no setting"),
        ("inner: 3", "c.yaml: inner: need a section of settings, got 3"),
        ("inner: {scale: x}", "c.yaml: inner.scale: need a number, got 'x'"),
        ("- 1", "c.yaml: need sections of settings, got list"),
        ("a: [", "c.yaml: is not YAML"),
        ("? [a]\n: 1", "c.yaml: is not YAML"),
        ("inner: {scale: 1}\nname: x\ninner: {kind: b}", "c.yaml: inner comes twice"),
        ("inner: {scale: 1, kind: a, scale: 2}", "c.yaml: inner.scale comes twice"),
    ],
)
def test_wrong_yaml(tmp_path: Path, text: str, message: str):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        build(Outer, read_yaml(path, Outer, "--config"))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"--config: .*nothing"):
        read_yaml(tmp_path / "nothing", Outer, "--config")


def test_recipe_rejects_what_cannot_be():
    for bad in ({"steps": 0}, {"task": "both"}, {"seed": -1}, {"learning_rate": -1.0}, {"patience": 0}, {"level": 2}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            TrainConfig(**bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cycle"):
        LossWeights(cycle=-1.0)
    masks_only = LossWeights(**{**dict.fromkeys(vars(LossWeights()), 0.0), "edges": 1.0})
    assert TrainConfig(weights=masks_only, task="coseg-only").weights == masks_only
    with pytest.raises(ValueError, match="weights: need one above 0 of those that task 'match-only' uses: matching"):
        TrainConfig(weights=masks_only, task="match-only")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert cli.main(["fit", *arguments, "--print-config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_print_config_shows_every_default_and_takes_overrides(tmp_path: Path, capsys):
    assert printed(capsys) == to_plain(FitConfig())
    path = tmp_path / "my.yaml"
    path.write_text("train: {steps: 500, weights: {cycle: 2}, learning_rate: 1e-3}\nout: here\n")
    found = printed(capsys, "--config", str(path), "--train.steps", "600", "--data.root=a b")
    assert found["train"]["steps"] == 600 and found["train"]["weights"]["cycle"] == 2.0
    assert found["train"]["learning_rate"] == 1e-3 and found["data"]["root"] == "a b" and found["out"] == "here"


def test_steps_override_the_epochs_of_a_file(tmp_path: Path, capsys):
    """Else the option would do nothing."""
    path = tmp_path / "my.yaml"
    path.write_text("train: {steps: 500, epochs: 2}\n")
    assert printed(capsys, "--config", str(path))["train"]["epochs"] == 2
    found = printed(capsys, "--config", str(path), "--train.steps", "600")["train"]
    assert (found["steps"], found["epochs"]) == (600, None)
    assert printed(capsys, "--config", str(path), "--train.steps", "600", "--train.epochs", "3")["train"]["epochs"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.steps", "many"], "--train.steps: need a whole number, got 'many'"),
        (["--train.steps", "0"], "train.steps: need at least 1, got 0"),
        (["--data.size", "100"], "data.size: need a multiple of 16, got 100"),
        (["--model.matcher", "sparse"], "--model.matcher: need 'dense' or 'parametric', got 'sparse'"),
        (["--train.patience", "2", "--data.validation", "0"], "train.patience: needs data.validation above 0"),
        (["--train.contrast_size", "50"], "train.contrast_size: need a multiple of 16, got 50"),
        (
            ["--model.decoder", "paper", "--data.size", "64"],
            "data.size: model.decoder 'paper' needs that of model.image_size, 240, got 64",
        ),
    ],
)
def test_wrong_options_are_one_line(capsys, arguments: list[str], message: str):
    assert cli.main(["fit", *arguments, "--print-config"]) == 2
    assert capsys.readouterr().err.strip() == f"cosegflow: error: {message}"


def test_an_unknown_option_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["fit", "--train.step", "5"])
    assert caught.value.code == 2
    assert "did you mean '--train.steps'?" in capsys.readouterr().err


def test_help_names_every_setting(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{setting.name} " in text for setting in settings(FitConfig) if setting.name != "out")
    assert max(map(len, text.splitlines())) <= 120


def test_parser_is_light():
    """Building the parser of all commands imports nothing of the joint extra."""
    heavy = "('lightning', 'torchmetrics', 'skimage', 'matplotlib', 'PIL', 'scipy', 'yaml', 'safetensors')"
    code = f"import sys\nfrom cosegflow import cli\ncli.make_parser()\nprint([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_command_has_help():
    parser = cli.make_parser()
    (commands,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    assert list(commands.choices) == ["fit", "eval", "ablate", "match", "segment", "data", "bench", "info", "demo"]
