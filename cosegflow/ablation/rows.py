"""The rows of the ablation: how each differs from the default recipe, and which question it answers."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cosegflow.ablation.errors import AblationError
from cosegflow.configuration import Given, build, differences, nearest, settings, to_plain
from cosegflow.joint.config import FitConfig, LossWeights

BASE: dict[str, Any] = {"data.validation": 0}
"""Of every row: a held-out score with the truth must not choose the checkpoint, so the last weights are evaluated."""

Method = Literal["trained", "untrained", "zero-shot"]


@dataclass(frozen=True)
class Row:
    """A configuration that is trained and evaluated."""

    name: str
    question: str
    """Which question it answers, as one line."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the default, by dotted names."""
    main: bool = False
    """Main rows are trained with more seeds."""
    method: Method = "trained"
    masks: bool = True
    """Whether it predicts masks at all."""
    lent: str | None = None
    """The name under which it is evaluated once more, with the masks of an untrained model in its gated rounds."""

    @property
    def slug(self) -> str:
        """The name for files and for the command line."""
        return self.name.replace(" ", "-")


LENT = "match-only, masks lent"


def all_rows() -> list[Row]:
    """Every row, in the order of the results; one "without NAME" for each loss that is on by default."""
    weights = vars(FitConfig().train.weights)
    return [
        Row("joint", "the whole method", main=True),
        Row(
            "match-only",
            "does co-segmentation help matching?",
            {"train.task": "match-only"},
            main=True,
            masks=False,
            lent=LENT,
        ),
        Row("coseg-only", "does matching help co-segmentation?", {"train.task": "coseg-only"}, main=True),
        Row(
            "supervised",
            "what does the lack of annotation cost?",
            {"train.supervision": "exact", "data.photographs": None},  # which have no exact truth
            main=True,
        ),
        *(
            Row(f"without {name}", f"what does the loss {name} do?", {f"train.weights.{name}": 0.0})
            for name in (f.name for f in dataclasses.fields(LossWeights))
            if weights[name] > 0
        ),
        Row("without gating", "what does gating the matching by the masks do?", {"model.gating": False}),
        Row("without smoothing", "what does the locally affine flow do?", {"model.smoothing": False}),
        Row(
            "fixed descriptors",
            "what does learning to match do for the masks?",
            {"train.adapter_learning_rate": 0.0, "train.tail_learning_rate": 0.0},
        ),
        Row("stamps alone", "what do unlabelled photographs of the categories do?", {"data.photographs": None}),
        Row("without rounds", "what does refinement do?", {"model.rounds": 0, "train.rounds": 0}),
        Row(
            "parametric matcher",
            "dense or parametric matching?",
            {"model.matcher": "parametric", "model.kernel_sigma": None, "train.adapter_learning_rate": 2e-4},
        ),
        Row("untrained", "what do pretrained features do, with masks by a threshold?", method="untrained"),
        Row("zero-shot", "what do pretrained features do by nearest neighbours?", method="zero-shot", masks=False),
    ]


def choose_rows(text: str) -> list[Row]:
    """The rows that --rows names: "main", "all", or names separated by commas (hyphens for spaces are fine).

    Raises:
        AblationError: a name that no row has; names the nearest.
    """
    rows = all_rows()
    if text == "all":
        return rows
    known = {row.slug: row for row in rows}
    chosen: dict[str, Row] = {}
    for part in text.split(","):
        word = "-".join(part.split())
        if word == "main":
            chosen |= {row.slug: row for row in rows if row.main or row.method != "trained"}
        elif word in known:
            chosen[word] = known[word]
        else:
            raise AblationError(f"--rows: {part!r} is no row{nearest(word, ['main', 'all', *known])}")
    return [row for row in rows if row.slug in chosen]


def parse_overrides(pairs: Sequence[str]) -> dict[str, str]:
    """The settings of --set SECTION.NAME=VALUE.

    Raises:
        AblationError: not of that form. ConfigurationError comes from `configuration`.
    """
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise AblationError(f"--set: need SECTION.NAME=VALUE, got {pair!r}")
        if name in ("out", "train.seed"):
            raise AblationError(f"--set: {name} is chosen for each run; use --out and --seeds")
        found[name] = value
    return found


def configuration(row: Row, overrides: Mapping[str, Any], data: str | None, out: Path, seed: int) -> FitConfig:
    """The settings of a run: the default, `BASE`, --data, --set, and last what the row is about.

    Raises:
        AblationError: a setting that this version does not have. ConfigurationError: a value that cannot be used.
    """
    known = [setting.name for setting in settings(FitConfig)]
    for origin, names in ((f"row {row.name!r}", row.settings), ("--set", overrides)):
        for name in names:
            if name not in known:
                raise AblationError(f"{origin}: {name} is no setting{nearest(name, known)}")
    given = {name: Given(value, name) for name, value in BASE.items()}
    if data is not None:
        given["data.root"] = Given(data, "--data")
    given |= {name: Given(value, f"--set {name}") for name, value in overrides.items()}
    given |= {name: Given(value, f"row {row.name!r}: {name}") for name, value in row.settings.items()}
    given |= {"out": Given(str(out), "--out"), "train.seed": Given(seed, "--seeds")}
    return build(FitConfig, given)


IGNORED = ("out", "train.seed", "data.root", "data.workers")
"""Settings that say where and how a run is made, not what comes out."""


def plain_settings(config: FitConfig) -> dict[str, Any]:
    """All settings that decide what comes out, apart from the seed, by dotted names."""
    found: dict[str, Any] = {}

    def visit(tree: Mapping[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                visit(value, f"{prefix}{key}.")
            elif prefix + key not in IGNORED:
                found[prefix + key] = value

    visit(to_plain(config), "")
    return found


def changed_settings(config: FitConfig) -> dict[str, Any]:
    """Those of `plain_settings` that differ from the defaults."""
    plain = plain_settings(config)
    return {name: plain[name] for name in differences(FitConfig(), config) if name in plain}
