"""Pictures of a pair and its prediction, for reports and logs."""

from torch import Tensor

from cosegflow import viz
from cosegflow.joint.predict import Prediction

LINES = 40
"""About so many matches are drawn."""


def pair_cells(image_a: Tensor, image_b: Tensor, found: Prediction, index: int) -> list[tuple[str, viz.Pixels]]:
    """(caption, picture) of one pair: photographs, masks, flow, the warped b, the confidence, and match lines.

    The last one shows both photographs; all others have the size of a or b.

    Args:
        image_a, image_b: (3, H, W) in [0, 1].
        found: a batch of predictions.
        index: which of the batch.
    """
    flow, mask_a, mask_b = found.flow_ab[index], found.mask_a[index], found.mask_b[index]
    sure = found.confidence[index]
    return [
        ("a", viz.to_pixels(image_a)),
        ("b", viz.to_pixels(image_b)),
        ("object in a", viz.overlay(image_a, mask_a)),
        ("object in b", viz.overlay(image_b, mask_b)),
        ("flow from a to b", viz.flow_picture(flow, mask_a)),
        ("b warped onto a", viz.warp_picture(image_b, flow, mask_a)),
        ("confidence, blue 0 to yellow 1", viz.confidence_picture(sure, mask_a, bar=False)),
        ("matches, by confidence", viz.match_lines(image_a, image_b, flow, sure, mask_a=mask_a, count=LINES)),
    ]


def pair_strip(image_a: Tensor, image_b: Tensor, found: Prediction, index: int) -> viz.Pixels:
    """The pictures of `pair_cells` side by side under their captions."""
    captions, pictures = zip(*pair_cells(image_a, image_b, found, index), strict=True)
    return viz.side_by_side(pictures, captions)
