"""Pictures of a pair and its prediction, for reports and logs."""

import numpy as np
from torch import Tensor

import cosegflow
from cosegflow import viz
from cosegflow.joint.predict import Prediction


def pair_cells(image_a: Tensor, image_b: Tensor, found: Prediction, index: int) -> list[tuple[str, viz.Pixels]]:
    """(caption, picture) of one pair: photographs, masks, flow, the warped b and the confidence.

    Args:
        image_a, image_b: (3, H, W) in [0, 1].
        found: a batch of predictions.
        index: which of the batch.
    """
    flow, mask_a, mask_b = found.flow_ab[index], found.mask_a[index], found.mask_b[index]
    warped = cosegflow.warp(image_b[None], flow[None])[0]
    colour, moved = viz.flow_to_colour(flow), viz.to_pixels(warped).copy()
    outside = (mask_a < 0.5).cpu().numpy()
    sure = viz.colour_map(found.confidence[index])
    for picture in (colour, moved, sure):
        picture[outside] = 245
    return [
        ("a", viz.to_pixels(image_a)),
        ("b", viz.to_pixels(image_b)),
        ("object in a", viz.overlay(image_a, mask_a)),
        ("object in b", viz.overlay(image_b, mask_b)),
        ("flow from a to b", colour),
        ("b warped onto a", moved),
        ("confidence", sure),
    ]


def pair_strip(image_a: Tensor, image_b: Tensor, found: Prediction, index: int) -> viz.Pixels:
    """The pictures of `pair_cells` side by side; a and b have one size."""
    return np.concatenate([picture for _, picture in pair_cells(image_a, image_b, found, index)], axis=1)
