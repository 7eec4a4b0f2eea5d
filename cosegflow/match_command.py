"""``cosegflow match A B``: flow, masks and pictures for two photographs of the user's own."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import cosegflow
from cosegflow import viz
from cosegflow.data.photographs import read_photograph
from cosegflow.joint.checkpoint import load_checkpoint
from cosegflow.joint.model import JointModel
from cosegflow.joint.predict import predict
from cosegflow.report import check_output, save_picture, staged_folder

FLO_TAG = 202021.25
FILES = (
    "figure.png", "matches.png", "flow.npy", "flow.flo", "flow.png", "mask_a.png", "mask_b.png", "warped.png",
    "confidence.png",
)  # fmt: skip


def write_flo(path: Path, flow: npt.NDArray[np.float32]) -> None:
    """Middlebury .flo: float32 202021.25, int32 width, int32 height, then height x width x (u, v), little endian.

    Args:
        path: where to.
        flow: (2, H, W) pixels.
    """
    _, height, width = flow.shape
    with path.open("wb") as file:
        file.write(np.array(FLO_TAG, dtype="<f4").tobytes())
        file.write(np.array((width, height), dtype="<i4").tobytes())
        file.write(np.ascontiguousarray(flow.transpose(1, 2, 0), dtype="<f4").tobytes())


def run(path_a: Path, path_b: Path, out: Path, checkpoint: Path | None = None) -> None:
    """Writes `FILES` and summary.json.

    The flow is at A's resolution, in pixels of B minus pixels of A. All checks come before any work, and the files
    appear only when all are complete.

    Raises:
        OutputError, PhotographError, CheckpointError: one line that names the argument.
    """
    check_output(out, "--out")
    image_a, image_b = read_photograph(path_a, "A"), read_photograph(path_b, "B")
    model = JointModel().eval() if checkpoint is None else load_checkpoint(checkpoint, "--checkpoint")
    found = predict(model, image_a[None], image_b[None])
    flow, mask_a, mask_b = found.flow_ab[0], found.mask_a[0], found.mask_b[0]
    warped = cosegflow.warp(image_b[None], flow[None])[0]
    colour = viz.flow_picture(flow, mask_a)
    panels = [
        ("A", viz.to_pixels(image_a)),
        ("B", viz.to_pixels(image_b)),
        ("object in A", viz.overlay(image_a, mask_a)),
        ("object in B", viz.overlay(image_b, mask_b)),
        ("flow from A to B", colour),
        ("B warped onto A", viz.warp_picture(image_b, flow, mask_a)),
    ]
    lines = viz.match_lines(image_a, image_b, flow, found.confidence[0], mask_a=mask_a)
    inside = mask_a >= 0.5
    summary = {
        "a": {"file": path_a.name, "width": image_a.shape[2], "height": image_a.shape[1]},
        "b": {"file": path_b.name, "width": image_b.shape[2], "height": image_b.shape[1]},
        "foreground_a": round(float(inside.float().mean()), 4),
        "foreground_b": round(float((mask_b >= 0.5).float().mean()), 4),
        "confidence_on_foreground": round(float(found.confidence[0][inside].mean()) if inside.any() else 0.0, 4),
        "model": "pretrained only, training-free mask" if checkpoint is None else str(checkpoint),
        "flow": "pixels of B minus pixels of A; channel 0 is x (right), 1 is y (down); float32 (2, H, W) in flow.npy",
    }
    with staged_folder(out, "--out") as stage:
        values = flow.to(torch.float32).numpy()
        np.save(stage / "flow.npy", values)
        write_flo(stage / "flow.flo", values)
        save_picture(stage / "flow.png", colour)
        save_picture(stage / "matches.png", lines)
        save_picture(stage / "mask_a.png", viz.grey_map(mask_a)[..., 0])
        save_picture(stage / "mask_b.png", viz.grey_map(mask_b)[..., 0])
        save_picture(stage / "warped.png", viz.to_pixels(warped))
        save_picture(stage / "confidence.png", viz.grey_map(found.confidence[0])[..., 0])
        viz.pair_figure(panels, stage / "figure.png", columns=3, dpi=130)
        (stage / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for name in FILES:
        print(out / name)
