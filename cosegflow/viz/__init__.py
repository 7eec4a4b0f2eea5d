"""Pictures of correspondences: flow with a legend, match lines, masks, confidence, warps.

Tensors (any device, any floating dtype) or NumPy arrays go in. Photographs are (3, H, W) or (H, W, 3), floating in
[0, 1] or uint8; all pictures are (H, W, 3) uint8. Text needs Pillow, colour maps and figures need matplotlib; both come
with the extra cosegflow[joint]. docs/gallery.md shows one of each.
"""

from cosegflow.viz.arrays import Pixels, to_pixels
from cosegflow.viz.flow import colour_wheel, flow_legend, flow_picture, flow_to_colour, longest_flow
from cosegflow.viz.layout import pair_figure, side_by_side
from cosegflow.viz.masks import overlay
from cosegflow.viz.matches import SparseMatches, draw_matches, match_lines, sparse_matches
from cosegflow.viz.scalars import colour_map, confidence_picture, grey_map, scalar_picture
from cosegflow.viz.warps import blend, checkerboard, hatch, warp_picture, warp_strip

__all__ = [
    "Pixels",
    "SparseMatches",
    "blend",
    "checkerboard",
    "colour_map",
    "colour_wheel",
    "confidence_picture",
    "draw_matches",
    "flow_legend",
    "flow_picture",
    "flow_to_colour",
    "grey_map",
    "hatch",
    "longest_flow",
    "match_lines",
    "overlay",
    "pair_figure",
    "scalar_picture",
    "side_by_side",
    "sparse_matches",
    "to_pixels",
    "warp_picture",
    "warp_strip",
]
