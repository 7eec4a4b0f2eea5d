"""Draws ops/*.webp, one picture for the page of each operation, from scikit-image's photographs.

    PYTHONPATH=. python docs/images/make_operation_pictures.py [NAME ...]

The photographs are chelsea (the cat) and the coffee cup, both CC0 by their photographers. A second view is made by a
known rotation, scale and shift, so that the right answer is known. Features are those of the pretrained
EfficientNet-lite0 (the extra `joint`). Colours: viridis, and those of Okabe and Ito (2008).
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from skimage import data
from torch import Tensor

import cosegflow
from cosegflow.joint.backbones import make_backbone
from cosegflow.viz import flow_to_colour

OUT = Path(__file__).with_name("ops")
SIDE = 192
ORANGE, SKY, VERMILION, BLUE = "#E69F00", "#56B4E9", "#D55E00", "#0072B2"
EYE = (60, 74)
"""x, y of an eye of the cat, in the first view."""


class Views(NamedTuple):
    """Two views of one photograph, (1, 3, SIDE, SIDE), and what is known of them."""

    a: Tensor
    b: Tensor
    flow_ab: Tensor
    """(1, 2, SIDE, SIDE), exact."""
    flow_ba: Tensor
    seen: Tensor
    """(1, SIDE, SIDE) bool: where b shows something of a."""


def pixels(size: int = SIDE) -> Tensor:
    """(2, size, size): x and y of each pixel."""
    axis = torch.arange(float(size))
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"))


def affine(degrees: float, scale: float, shift: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The flow of a rotation and scale about the centre and a shift, and the flow of its inverse."""
    turn, centre = math.radians(degrees), torch.full((2,), (SIDE - 1) / 2)
    matrix = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) * scale
    offset = centre - matrix @ centre + torch.tensor(shift)
    back = torch.linalg.inv(matrix)
    flows = [
        (torch.einsum("ij,jhw->ihw", m, pixels()) + t[:, None, None] - pixels())[None]
        for m, t in ((matrix, offset), (back, -back @ offset))
    ]
    return flows[0], flows[1]


def photograph(name: str) -> Tensor:
    """(1, 3, SIDE, SIDE) in [0, 1]: the middle of one of scikit-image's photographs."""
    image = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None].float() / 255
    side = min(image.shape[2:])
    top, left = ((n - side) // 2 for n in image.shape[2:])
    image = image[:, :, top : top + side, left : left + side]
    return F.interpolate(image, size=(SIDE, SIDE), mode="bilinear", antialias=True).clamp(0, 1)


@cache
def cat(degrees: float = 12) -> Views:
    """The cat, and the cat turned, larger and shifted."""
    a = photograph("chelsea")
    flow_ab, flow_ba = affine(degrees, 1.15, (8, -6))
    b, seen = cosegflow.warp(a, flow_ba, return_valid=True)
    return Views(a, b, flow_ab, flow_ba, seen)


@cache
def network() -> torch.nn.Module:
    return make_backbone("efficientnet-lite0").eval()


@torch.no_grad()
def features(image: Tensor) -> Tensor:
    """(1, C, SIDE / 2, SIDE / 2) of a photograph (1, 3, SIDE, SIDE)."""
    levels: Any = network().trunk(F.interpolate(image, scale_factor=2, mode="bilinear"))
    size = levels[0].shape[2:]
    return torch.cat([F.normalize(F.interpolate(v, size=size, mode="bilinear"), dim=1) for v in levels], 1)


def on_grid(mask: Tensor) -> Tensor:
    """(1, SIDE, SIDE) to (1, SIDE / 2, SIDE / 2), bool."""
    return F.avg_pool2d(mask[:, None].float(), 2)[:, 0] > 0.5


def full(flow: Tensor) -> Tensor:
    """A flow between the grids of `features` as one between photographs."""
    return cosegflow.resize_flow(flow, (SIDE, SIDE), (SIDE, SIDE))


def panels(columns: int, width: float = 9.0, extra: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure with a row of square panels; `extra` inches of height for what stands below them."""
    figure = Figure(figsize=(width, width / columns + 0.35 + extra), dpi=100, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, list(axes)


def show(axis: Axes, picture: Any, title: str, **options: Any) -> Any:
    """An image (1, 3, H, W) or (3, H, W), or any array that imshow takes, with a title."""
    if isinstance(picture, Tensor):
        picture = picture.squeeze(0)
        picture = (picture.permute(1, 2, 0) if picture.dim() == 3 else picture).numpy()
    axis.set_title(title, fontsize=12)
    return axis.imshow(picture, **options)


def mark(axis: Axes, point: Sequence[float], colour: str, marker: str = "o", size: float = 11) -> None:
    """A ring, or another marker, with a white edge around it."""
    for width, paint in ((4.5, "white"), (2.2, colour)):
        axis.plot(*point, marker, markersize=size, markerfacecolor="none", markeredgecolor=paint, markeredgewidth=width)


def arrows(axis: Axes, flow: Tensor, step: int = 24, where: Tensor | None = None) -> None:
    """Every step-th vector of a flow (1, 2, H, W), where wanted."""
    at = pixels(flow.shape[-1])[:, step // 2 :: step, step // 2 :: step].flatten(1)
    vectors = flow[0, :, step // 2 :: step, step // 2 :: step].flatten(1)
    if where is not None:
        chosen = where[0, step // 2 :: step, step // 2 :: step].flatten()
        at, vectors = at[:, chosen], vectors[:, chosen]
    axis.quiver(*at, *vectors, angles="xy", scale_units="xy", scale=1, color="black", width=0.008)


def key(axis: Axes, largest: float) -> None:
    """A disc of the colours of flow, in a corner: the colour at a place is that of the vector to it from the centre."""
    around = pixels(65) - 32
    disc = flow_to_colour(around * (largest / 32), largest)
    inset = axis.inset_axes((0.02, 0.02, 0.3, 0.3))
    inset.imshow(torch.cat((torch.from_numpy(disc), (around.norm(dim=0) <= 32)[..., None] * 255), -1).byte().numpy())
    inset.axis("off")
    inset.text(32, 32, f"{largest:g} px", ha="center", va="center", fontsize=10)


def dimmed(image: Tensor, mask: Tensor) -> Tensor:
    """The photograph, darker and grey where the mask (1, H, W) is 0."""
    grey = image.mean(1, keepdim=True).expand_as(image) * 0.35
    return torch.where(mask[:, None] > 0, image, grey)


def draw_correlation() -> Figure:
    """A pixel of a, its true match in b, and its row of the volume as a picture of b."""
    views = cat()
    volume = cosegflow.correlation(features(views.a), features(views.b), normalize=True, relu=True)
    figure, (left, middle, right) = panels(3)
    show(left, views.a, "a, and one pixel p of it")
    show(middle, views.b, "b: a turned, larger, shifted")
    x, y = EYE
    picture = show(right, volume[:, y // 2, x // 2], "corr[0, y, x]: p against all of b", vmin=0, cmap="viridis")
    target = (views.flow_ab[0, :, y, x] + torch.tensor([x, y])).tolist()
    mark(left, EYE, ORANGE)
    mark(middle, target, ORANGE)
    mark(right, [(t + 0.5) / 2 - 0.5 for t in target], ORANGE)
    figure.colorbar(picture, ax=right, shrink=0.8).ax.tick_params(labelsize=10)
    return figure


def draw_soft_argmax() -> Figure:
    """The probabilities of a pixel's targets for two betas, and with a window; their mean and the largest."""
    views = cat()
    fa, fb = features(views.a), features(views.b)
    x, y = 40, 38  # beside the nose, where much looks alike
    row = cosegflow.correlation(fa, fb, normalize=True)[:, y : y + 1, x : x + 1]
    figure, axes = panels(3)
    for axis, (title, options) in zip(
        axes,
        (
            ("beta = 20", {"beta": 20.0}),
            ("beta = 100", {"beta": 100.0}),
            ("beta = 20, kernel_sigma = 4", {"beta": 20.0, "kernel_sigma": 4.0}),
        ),
        strict=True,
    ):
        found = cosegflow.soft_argmax(row, return_index=True, **options)
        scores, index = row.flatten(), int(found.index)
        peak = (index % fb.shape[3], index // fb.shape[3])
        if "kernel_sigma" in options:
            distance = (pixels(fb.shape[3]).flatten(1) - torch.tensor(peak)[:, None].float()).square().sum(0)
            scores = torch.exp(-distance / (2 * options["kernel_sigma"] ** 2)) * scores.relu()
        p = (options["beta"] * scores).softmax(0)
        picture = show(
            axis, (p / p.max()).log10().clamp(min=-3).reshape(fb.shape[2:]), title, vmin=-3, vmax=0, cmap="viridis"
        )
        mark(axis, found.flow[0, :, 0, 0].tolist(), VERMILION, "s", 13)
        mark(axis, peak, ORANGE, "+", 14)
    bar = figure.colorbar(picture, ax=axes[-1], shrink=0.8, ticks=[-3, -2, -1, 0])
    bar.ax.set_yticklabels(["0.001", "0.01", "0.1", "1"], fontsize=10)
    bar.set_label("p / largest p", fontsize=11)
    return figure


def draw_match() -> Figure:
    """Flow without masks, and with them."""
    views = cat()
    x, y = pixels()
    mask_a = (((x - 96) / 66) ** 2 + ((y - 100) / 80) ** 2 < 1)[None]
    mask_b = cosegflow.warp(mask_a[:, None].float(), views.flow_ba)[:, 0] > 0.5
    fa, fb = features(views.a), features(views.b)
    plain = full(cosegflow.match(fa, fb, beta=100.0).flow)
    gated = full(cosegflow.match(fa, fb, on_grid(mask_a), on_grid(mask_b), beta=100.0).flow)
    figure, axes = panels(4, 11.0)
    show(axes[0], dimmed(views.a, mask_a), "a, mask_a")
    show(axes[1], dimmed(views.b, mask_b), "b, mask_b")
    show(axes[2], flow_to_colour(plain[0], 40.0), "flow, without masks")
    key(axes[2], 40)
    show(axes[3], flow_to_colour(gated[0] * mask_a, 40.0), "flow, with masks")
    arrows(axes[3], gated, 16, mask_a)
    return figure


def draw_match_both() -> Figure:
    """One line of a against one of b: the scores, and the two softmaxes over them."""
    views = cat(0)
    row, column = EYE[1] // 2, int(EYE[1] + views.flow_ab[0, 1, EYE[1], EYE[0]]) // 2
    fa, fb = (F.normalize(features(v)[0, :, r], dim=0) for v, r in ((views.a, row), (views.b, column)))
    scores = fa.T @ fb
    figure, axes = panels(3, extra=0.25)
    pictures = (
        (scores, "scores s, once"),
        ((60 * scores).softmax(1).sqrt(), "a to b: rows sum to 1"),
        ((60 * scores).softmax(0).sqrt(), "b to a: columns sum to 1"),
    )
    for axis, (picture, title) in zip(axes, pictures, strict=True):
        show(axis, picture, title, cmap="viridis")
        axis.set_xlabel("pixels j of a line of b", fontsize=11)
        axis.set_ylabel("pixels i of a line of a", fontsize=11)
    for axis, vertical in ((axes[1], False), (axes[2], True)):
        size = (3.0, len(scores)) if vertical else (len(scores), 3.0)
        at = (46.5, -0.5) if vertical else (-0.5, 46.5)
        axis.add_patch(Rectangle(at, *size, fill=False, edgecolor=ORANGE, linewidth=1.5))
    return figure


def draw_transfer() -> Figure:
    """Labels of b carried to a."""
    views = cat()
    x, y = pixels()
    shapes = ((60, 76, 21, 20), (155, 91, 17, 19), (122, 158, 20, 13))
    at_a = [(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1) for cx, cy, rx, ry in shapes]
    labels = cosegflow.warp(torch.stack(at_a)[None].float(), views.flow_ba).round()
    labels = torch.cat((1 - labels.sum(1, keepdim=True), labels), 1)
    fa, fb = features(views.a), features(views.b)
    carried = cosegflow.transfer(fa, fb, F.avg_pool2d(labels, 2), mask_b=on_grid(views.seen), beta=100.0)
    carried = F.interpolate(carried, size=(SIDE, SIDE), mode="bilinear")

    def painted(image: Tensor, values: Tensor) -> Tensor:
        paint = torch.tensor([to_rgb(c) for c in (ORANGE, SKY, VERMILION)])
        colour = torch.einsum("vhw,vc->chw", values[0, 1:], paint)
        return (image * (1 - 0.75 * values[:, 1:].sum(1)) + 0.75 * colour).clamp(0, 1)

    figure, axes = panels(3)
    show(axes[0], painted(views.b, labels), "b, with labels (values)")
    show(axes[1], views.a, "a")
    show(axes[2], painted(views.a, carried), "transfer: the labels in a")
    return figure


def draw_local_correlation() -> Figure:
    """A pixel, the window around where it is expected, and the products with that window."""
    views, radius = cat(), 4
    fa, fb = features(views.a), features(views.b)
    flow = (
        cosegflow.resize_flow(views.flow_ab, fa.shape[2:], fb.shape[2:]).round()
        + torch.tensor([1.4, -1.7])[:, None, None]
    )
    x, y = EYE[0] // 2, EYE[1] // 2
    out = cosegflow.local_correlation(fa, fb, radius, flow, normalize=True)[0, :, y, x].reshape(9, 9)
    figure, axes = panels(3)
    small_a, small_b = (F.avg_pool2d(v, 2) for v in (views.a, views.b))
    show(axes[0], small_a, "a, and one pixel p of it")
    mark(axes[0], (x, y), ORANGE)
    show(axes[1], small_b, "b around p + flow(p), radius = 4")
    cx, cy = (flow[0, :, y, x] + torch.tensor([x, y])).tolist()
    at = torch.arange(-radius, radius + 1)
    axes[1].plot(*(t.flatten() for t in torch.meshgrid(cx + at, cy + at, indexing="xy")), ".", color=SKY, markersize=7)
    axes[1].plot(cx, cy, "o", color=VERMILION, markersize=8)
    axes[1].set(xlim=(cx - 14, cx + 14), ylim=(cy + 14, cy - 14))
    picture = show(axes[2], out, "out[0, :, p] as (2r+1) x (2r+1)", cmap="viridis", extent=(-4.5, 4.5, 4.5, -4.5))
    axes[2].plot(0, 0, "o", color=VERMILION, markersize=8)
    axes[2].set_xticks((-4, 0, 4))
    axes[2].set_yticks((-4, 0, 4))
    figure.colorbar(picture, ax=axes[2], shrink=0.8).ax.tick_params(labelsize=10)
    return figure


def draw_warp() -> Figure:
    """b seen in a's frame: zeros, border, and where it is valid."""
    views = cat()
    zeros, valid = cosegflow.warp(views.b, views.flow_ab, return_valid=True)
    border = cosegflow.warp(views.b, views.flow_ab, padding="border")
    figure, axes = panels(4, 11.0)
    show(axes[0], views.b, "x, and p + flow(p)")
    at = (pixels() + views.flow_ab[0])[:, 12::24, 12::24].flatten(1)
    axes[0].plot(*at, ".", color=ORANGE, markersize=6, clip_on=False)
    axes[0].set(xlim=(-30, SIDE + 30), ylim=(SIDE + 30, -30))
    show(axes[1], zeros, 'padding="zeros"')
    show(axes[2], border, 'padding="border"')
    show(axes[3], valid, "valid (yellow)", cmap="cividis")
    return figure


def draw_cycle_error() -> Figure:
    """A cup hides part of b: matches there do not come back."""
    views = cat()
    x, y = pixels()
    disc = (((x - 60) ** 2 + (y - 132) ** 2) < 34**2)[None]
    cup = F.interpolate(photograph("coffee"), scale_factor=0.55, mode="bilinear")
    pasted = F.pad(cup, (8, SIDE - 8 - cup.shape[3], 80, SIDE - 80 - cup.shape[2]))
    b = torch.where(disc[:, None], pasted, views.b)
    fa, fb = features(views.a), features(b)
    ab, ba = cosegflow.match_both(fa, fb, mask_b=on_grid(views.seen), beta=100.0)
    error, valid = cosegflow.cycle_error(full(ab.flow), full(ba.flow))
    hidden = cosegflow.warp(disc[:, None].float(), views.flow_ab)[0, 0]
    outside = ~cosegflow.warp(b, views.flow_ab, return_valid=True)[1][0]
    figure, axes = panels(4, 11.0)
    show(axes[0], views.a, "a")
    show(axes[1], b, "b: a cup hides a part")
    show(axes[2], flow_to_colour(full(ab.flow)[0], 40.0), "flow_ab, by match_both")
    key(axes[2], 40)
    picture = show(axes[3], torch.where(valid, error, torch.nan), "error, pixels", vmin=0, vmax=30, cmap="viridis")
    axes[3].contour(hidden, [0.5], colors=[ORANGE], linewidths=2)
    axes[3].contour(outside.float(), [0.5], colors=["white"], linewidths=2)
    figure.colorbar(picture, ax=axes[3], shrink=0.8, extend="max").ax.tick_params(labelsize=10)
    return figure


def draw_resize_flow() -> Figure:
    """Pixel centres of two grids over the same image, and one flow on both."""
    figure = Figure(figsize=(9.0, 3.2), dpi=100)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis("off")
    axis.set(xlim=(-0.75, 4.1), ylim=(-0.62, 2.45))
    start, end = 0.5, 2.5  # of the flow, in pixels of the coarse grid from the image's left edge
    for count, bottom, colour in ((4, 1.4, BLUE), (8, 0.1, VERMILION)):
        step = 4 / count
        for i in range(count):
            axis.add_patch(Rectangle((i * step, bottom), step, 0.5, fill=False, edgecolor="black"))
            axis.plot((i + 0.5) * step, bottom + 0.25, "o", color=colour, markersize=7)
            axis.text((i + 0.5) * step, bottom - 0.06, str(i), ha="center", va="top", fontsize=12)
        ends = (start, bottom + 0.6), (end, bottom + 0.6)
        axis.add_patch(
            FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=16, color=colour, lw=2, shrinkA=0, shrinkB=0)
        )
        text = f"flow {(end - start) / step:g}"
        axis.text((start + end) / 2, bottom + 0.65, text, ha="center", va="bottom", fontsize=13, color=colour)
        axis.text(-0.08, bottom + 0.25, f"{count} pixels", ha="right", va="center", fontsize=13)
    rule = "x' = (x + 0.5) s - 0.5; here s = 2: pixel 0 becomes 0.5, and pixel 2 becomes 4.5"
    axis.text(2.0, -0.35, rule, ha="center", va="top", fontsize=13)
    return figure


DRAW: dict[str, Callable[[], Figure]] = {
    "correlation": draw_correlation,
    "soft_argmax": draw_soft_argmax,
    "match": draw_match,
    "match_both": draw_match_both,
    "transfer": draw_transfer,
    "local_correlation": draw_local_correlation,
    "warp": draw_warp,
    "cycle_error": draw_cycle_error,
    "resize_flow": draw_resize_flow,
}


def main() -> None:
    """Writes the pictures that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *DRAW], metavar="NAME", help="default: all")
    OUT.mkdir(exist_ok=True)
    for name in parser.parse_args().names or DRAW:
        DRAW[name]().savefig(
            OUT / f"{name}.webp", bbox_inches="tight", pad_inches=0.05, pil_kwargs={"quality": 80, "method": 6}
        )


if __name__ == "__main__":
    main()
