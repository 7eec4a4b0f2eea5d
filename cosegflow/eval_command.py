"""``cosegflow eval``: a checkpoint, or pretrained features alone, on a benchmark; a table and a JSON file."""

import argparse
import datetime
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosegflow.dataset_names import ALIASES, DATASETS

if TYPE_CHECKING:
    from cosegflow.data.pair import Pair
    from cosegflow.data.registry import PairDataset
    from cosegflow.evaluate import Predictor

THRESHOLDS = ("bbox", "bbox-kp", "img", "scnet")


def _alphas(text: str) -> list[float]:
    """An argparse type: numbers above 0, separated by commas."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < float("inf") for value in values):
        raise argparse.ArgumentTypeError(f"need numbers above 0 separated by commas, got {text!r}")
    if len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"need different numbers, got {text!r}")
    return values


def _count(text: str) -> int:
    """An argparse type: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"need a whole number above 0, got {text!r}")
    return int(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command; imports nothing heavy."""
    aliases = ", ".join(f"{alias} for {name}" for alias, name in ALIASES.items())
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", required=True, metavar="NAME", help=f"{', '.join(DATASETS)} (also {aliases})")
    data.add_argument("--root", metavar="DIR", help="folder of the data set; image paths of a list are relative to it")
    data.add_argument("--pairs", type=Path, metavar="CSV", help="list of pairs (default: the one in DIR)")
    data.add_argument("--split", metavar="SPLIT", help="test, val or train, where there are several (default: test)")
    data.add_argument("--both-directions", action="store_true", help="each pair from a to b and from b to a")
    data.add_argument("--limit", type=_count, metavar="N", help="only the first N pairs")
    what = parser.add_argument_group("what to evaluate (exactly one)").add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, metavar="PATH", help="a trained model, file or folder")
    what.add_argument(
        "--zero-shot", action="store_true", help="nothing trained: nearest neighbour by cosine of pretrained features"
    )
    zero = parser.add_argument_group("with --zero-shot")
    zero.add_argument("--backbone", metavar="NAME", help="whose features (default: efficientnet-lite0)")
    zero.add_argument("--weights", metavar="FILE", help="weights of the backbone, for those that bring none")
    zero.add_argument("--image-size", type=_count, metavar="N", help="photographs become N x N pixels (default: 240)")
    rule = parser.add_argument_group("metric")
    rule.add_argument(
        "--threshold",
        choices=THRESHOLDS,
        help="length L of PCK: longer side of the annotated box, of the key points' box or of the image, or SCNet's "
        "224 x 224 protocol (default: bbox for spair-71k, bbox-kp for pf-willow, img for pf-pascal)",
    )
    rule.add_argument("--alphas", type=_alphas, metavar="A,B", help="default: 0.05,0.1,0.15; for tss 0.05")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers to this file too")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: CUDA where there is one)")


def _make_predictor(arguments: argparse.Namespace) -> "Predictor":
    from cosegflow.evaluate import CheckpointPredictor, EvaluationError, ZeroShotPredictor
    from cosegflow.evaluate.predictors import make_device
    from cosegflow.joint.zero_shot import IMAGE_SIZE

    if arguments.checkpoint is not None:
        for option in ("backbone", "weights", "image_size"):
            if getattr(arguments, option) is not None:
                name = option.replace("_", "-")
                raise EvaluationError(f"--{name}: goes with --zero-shot; a checkpoint has its own")
        return CheckpointPredictor(arguments.checkpoint, make_device(arguments.device))
    size = arguments.image_size or IMAGE_SIZE
    if size % 16:
        raise EvaluationError(f"--image-size: need a multiple of 16, got {size}")
    return ZeroShotPredictor(
        arguments.backbone or "efficientnet-lite0",
        make_device(arguments.device),
        weights=arguments.weights,
        image_size=size,
    )


def _first(dataset: "PairDataset", count: int) -> "Iterator[Pair]":
    return (dataset[index] for index in range(count))


def main(arguments: argparse.Namespace) -> int:
    """Evaluates, prints the table and writes the JSON file; 0.

    Raises:
        EvaluationError, DatasetError, CheckpointError, BackboneError: one line that names the argument or file.
    """
    from cosegflow.evaluate.output import check_output_file, print_any_name, print_table, progress, write_json

    print_any_name()
    if arguments.json is not None:
        check_output_file(arguments.json, "--json")

    import torch

    from cosegflow._version import __version__
    from cosegflow.data.registry import open_dataset
    from cosegflow.evaluate import EvaluationError, evaluate_pairs, make_evaluator
    from cosegflow.evaluate.protocols import KEYPOINT_THRESHOLDS

    start, date = time.monotonic(), datetime.datetime.now(datetime.timezone.utc)
    dataset = open_dataset(
        arguments.dataset,
        arguments.root,
        pairs=arguments.pairs,
        split=arguments.split,
        both_directions=arguments.both_directions,
    )
    count = min(len(dataset), arguments.limit or len(dataset))
    if count == 0:
        raise EvaluationError(f"--dataset: {dataset.name} in {dataset.root} has no pairs")
    categories = sorted(set(dataset.categories[:count]))
    evaluator = make_evaluator(dataset.name, categories, arguments.threshold, arguments.alphas)
    predictor = _make_predictor(arguments)
    with progress(f"evaluating {dataset.name}", count) as advance:
        found = evaluate_pairs(_first(dataset, count), predictor, evaluator, advance)
    per_pair = found.pop("per_pair")
    described = predictor.describe()
    content: dict[str, Any] = {
        "dataset": dataset.name,
        **described,
        **found,
        "provenance": {
            "version": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "device": str(predictor.device),
            "command": shlex.join(sys.argv),
            "date": date.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - start, 2),
            "root": str(dataset.root),
            "list": None if arguments.pairs is None else str(arguments.pairs),
            "split": arguments.split,
            "both_directions": arguments.both_directions,
            "limit": arguments.limit,
        },
        "per_pair": per_pair,
    }
    title = f"{dataset.name}, {described['method']}, {described['backbone']}"
    if described["masks"] != "predicted" and dataset.name not in KEYPOINT_THRESHOLDS:
        title += f", masks: {described['masks']}"
    print_table(title, content, evaluator.columns)
    if arguments.json is not None:
        write_json(arguments.json, content, "--json")
        print(arguments.json)
    return 0
