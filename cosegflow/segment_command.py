"""``cosegflow segment IMAGE...``: co-segments photographs of one category."""

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Any

PARTNERS = 4


class SegmentError(ValueError):
    """Photographs that cannot be co-segmented; one line that names the argument."""


def _partners(text: str) -> int:
    """An argparse type: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"need a whole number above 0, got {text!r}")
    return int(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command; imports nothing heavy."""
    parser.add_argument("images", metavar="IMAGE", type=Path, nargs="+", help="two or more photographs of one category")
    parser.add_argument("-o", "--out", type=Path, default=Path("out"), help="folder for the results (default: out)")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="PATH", help="a trained model, file or folder (default: pretrained only)"
    )
    parser.add_argument("--partners", type=_partners, default=PARTNERS, metavar="N", help=(
        f"each photograph is compared with at least so many others, where there are (default: {PARTNERS})"
    ))  # fmt: skip


def choose_pairs(count: int, partners: int) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, on a ring: each of `count` has at least min(partners, count - 1) others, evenly spread."""
    if partners >= count - 1:
        return list(combinations(range(count), 2))
    reach = -(-partners // 2)
    return sorted({tuple(sorted((i, (i + d) % count))) for i in range(count) for d in range(1, reach + 1)})  # type: ignore[misc]


def run(paths: list[Path], out: Path, checkpoint: Path | None = None, partners: int = PARTNERS) -> None:
    """Writes NN_NAME_mask.png and NN_NAME_overlay.jpg for each photograph, and summary.json.

    The mask of a photograph is the mean of its masks over its partners, at its own size, 0 to 255; 128 and above is
    the object. All checks come before any work, and the files appear only when all are complete.

    Raises:
        SegmentError, OutputError, PhotographError, CheckpointError: one line that names the argument.
    """
    if len(paths) < 2:
        raise SegmentError(f"IMAGE: co-segmentation needs two or more photographs of one category, got {len(paths)}")
    import torch

    from cosegflow import viz
    from cosegflow.data.photographs import read_photograph
    from cosegflow.joint.checkpoint import load_checkpoint
    from cosegflow.joint.model import JointModel
    from cosegflow.joint.predict import predict
    from cosegflow.report import check_output, save_picture, staged_folder

    check_output(out, "--out")
    images = [read_photograph(path, f"IMAGE {number}") for number, path in enumerate(paths, 1)]
    model = JointModel().eval() if checkpoint is None else load_checkpoint(checkpoint, "--checkpoint")
    total = [torch.zeros(image.shape[-2:]) for image in images]
    seen: list[list[int]] = [[] for _ in images]
    for i, j in choose_pairs(len(images), partners):
        found = predict(model, images[i][None], images[j][None])
        total[i] += found.mask_a[0]
        total[j] += found.mask_b[0]
        seen[i].append(j)
        seen[j].append(i)
    width = len(str(len(images)))
    written: list[dict[str, Any]] = []
    with staged_folder(out, "--out") as stage:
        for number, (path, image) in enumerate(zip(paths, images, strict=True)):
            mask = total[number] / len(seen[number])
            name = f"{number + 1:0{width}d}_{path.stem}"
            save_picture(stage / f"{name}_mask.png", viz.grey_map(mask)[..., 0])
            save_picture(stage / f"{name}_overlay.jpg", viz.overlay(image, mask))
            written.append(
                {
                    "file": path.name,
                    "mask": f"{name}_mask.png",
                    "overlay": f"{name}_overlay.jpg",
                    "width": image.shape[2],
                    "height": image.shape[1],
                    "foreground": round(float((mask >= 0.5).float().mean()), 4),
                    "partners": [paths[other].name for other in seen[number]],
                }
            )
        summary = {
            "model": "pretrained only, training-free masks" if checkpoint is None else str(checkpoint),
            "images": written,
        }
        (stage / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for entry in written:
        print(out / entry["mask"])


def main(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    run(arguments.images, arguments.out, arguments.checkpoint, arguments.partners)
    return 0
