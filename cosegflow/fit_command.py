"""``cosegflow fit``: trains the joint model. Heavy imports wait until the training starts."""

import argparse
import json
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from cosegflow.configuration import (
    ConfigurationError,
    Given,
    build,
    flatten,
    read_yaml,
    settings,
    short,
    to_plain,
    to_yaml,
)

DESCRIPTION = """Trains semantic matching and co-segmentation together, from photographs that share a category and
nothing else. Every setting has a default; a YAML file (--config) overrides it, an option below overrides the file.
--print-config shows them all."""
EPILOG = """examples:
  cosegflow fit --data.dataset folder --data.root photos --out run
  cosegflow fit --config run/config.yaml --train.steps 2000 --out longer
  cosegflow fit --out run --resume                 # goes on where run stopped
  torchrun --nproc-per-node 2 -m cosegflow fit --config my.yaml --out run
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Room for the long names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=46, width=118)


def _sections() -> dict[str, type]:
    """Section names and their dataclasses; "" is the run itself."""
    from cosegflow.joint.config import FitConfig

    found: dict[str, type] = {}

    def visit(kind: type, prefix: str) -> None:
        hints = get_type_hints(kind)
        for field in fields(kind):
            if is_dataclass(hints[field.name]):
                found[prefix + field.name] = hints[field.name]
                visit(hints[field.name], prefix + field.name + ".")

    visit(FitConfig, "")
    return found


def setting_names() -> list[str]:
    """The dotted names of all settings."""
    from cosegflow.joint.config import FitConfig

    return [setting.name for setting in settings(FitConfig)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """One option for each setting, in groups, besides --config, --print-config, --out and --resume."""
    parser.usage = "cosegflow fit [--config FILE] [--out FOLDER] [--resume [PATH]] [--SECTION.NAME VALUE ...]"
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = _Formatter
    parser.allow_abbrev = False
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    parser.add_argument("--print-config", action="store_true", help="print the settings as YAML, and stop")
    parser.add_argument("-o", "--out", metavar="FOLDER", help="folder of the run (default: run)")
    parser.add_argument("--resume", nargs="?", const="auto", metavar="PATH", help=(
        "go on from a training state; without PATH, or 'auto', from OUT's last one where there is one"
    ))  # fmt: skip
    for section, kind in _sections().items():
        group = parser.add_argument_group(section)
        for setting in settings(kind, section + "."):
            if setting.name.rpartition(".")[0] != section:
                continue  # of a section below, which has its own group
            default = json.dumps(setting.default, default=str).strip('"')
            text = f"{setting.help.rstrip('.')} (default: {default})".replace("%", "%%")
            group.add_argument(f"--{setting.name}", default=argparse.SUPPRESS, metavar=short(setting.kind), help=text)


def _layers(arguments: argparse.Namespace) -> list[dict[str, Given]]:
    """What --config and then the options give."""
    from cosegflow.joint.config import FitConfig

    known = set(setting_names())
    options = {k: Given(v, f"--{k}") for k, v in vars(arguments).items() if k in known and v is not None}
    return [read_yaml(arguments.config, FitConfig, "--config") if arguments.config is not None else {}, options]


def _resume_path(arguments: argparse.Namespace, out: Path) -> Path | None:
    """The training state to go on from; None is a fresh start.

    Raises:
        ConfigurationError: --resume names no file.
    """
    from cosegflow.joint.checkpoint import find_training_state

    if arguments.resume is None:
        return None
    if arguments.resume == "auto":
        found = find_training_state(out)
        if found is None:
            print(f"cosegflow: --resume: {out} has no training state; starting from the first step", file=sys.stderr)
        return found
    path = Path(arguments.resume)
    if not path.is_file():
        raise ConfigurationError(f"--resume: {path}: no such file")
    return path


def read_settings(arguments: argparse.Namespace) -> tuple[Any, Path | None]:
    """The `FitConfig` and the training state to go on from: defaults, or those of that state, --config, options.

    Without an `out`, a state that is named is gone on with in its own folder.

    Raises:
        ConfigurationError, CheckpointError: one line that names the file or option and the setting.
    """
    from cosegflow.joint.config import FitConfig

    layers = _layers(arguments)
    named = arguments.resume not in (None, "auto")
    default = str(Path(arguments.resume).parent) if named else str(FitConfig().out)
    outs = [layer["out"] for layer in layers if "out" in layer]
    out = outs[-1] if outs else Given(default, "--resume")
    resume = _resume_path(arguments, Path(str(out.value)))
    if resume is not None:
        from cosegflow.joint.fit import stored_configuration

        layers.insert(0, flatten(to_plain(stored_configuration(resume, "--resume")), FitConfig, "--resume"))
    given: dict[str, Given] = {}
    for layer in layers:
        if "train.steps" in layer and "train.epochs" not in layer:
            layer["train.epochs"] = Given(None, layer["train.steps"].origin)  # the steps asked for, not older epochs
        given |= layer
    return build(FitConfig, {**given, "out": out}), resume


def main(arguments: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        ValueError (of cosegflow): a setting, data set, checkpoint or folder that cannot be used.
    """
    config, resume = read_settings(arguments)
    if arguments.print_config:
        sys.stdout.write(to_yaml(config))
        return 0
    from cosegflow.joint.fit import fit

    result = fit(config, resume)
    if not result.first:
        return 0
    score = "" if result.best_score is None else f"; best score {result.best_score:.4f} at step {result.best_step}"
    early = "" if result.step >= result.planned else f" of {result.planned} (stopped early)"
    print(f"{result.step} steps{early}{score}\nmodel: {result.model}")
    return 0
