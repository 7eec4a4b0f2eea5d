"""Composes pairs of photographs with exact masks and exact flow.

One cut-out (a *stamp*) is warped twice, independently, over two backgrounds. Each warp is a smooth map g from canvas
to stamp coordinates, an affine map plus a thin-plate spline, so pixel p of a and pixel q of b show the same point when
g_a(p) = g_b(q); the flow q - p follows from a numerical inversion of g_b, exact to 1e-3 pixels.

Pasting leaves seams, and a network would learn seams instead of objects. So the cut-out's edge is feathered, other
categories' stamps (distractors) are pasted the same way below the object, and the whole canvas is blurred and
JPEG-compressed.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from torch.utils.data import Dataset

from cosegflow.data.pair import Pair
from cosegflow.data.sources import Library, Stamp

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SmoothWarp:
    """g(q) = A q + t + sum_k w_k U(|q - c_k|), U(r) = r^2 log r^2: canvas (x, y) to stamp (x, y), in pixels."""

    matrix: Array
    """(2, 2), A."""
    offset: Array
    """(2,), t."""
    centres: Array
    """(K, 2), control points c_k on the canvas."""
    weights: Array
    """(K, 2), w_k; they sum to 0 and are orthogonal to the control points, as a thin-plate spline's are."""

    def __call__(self, points: Array) -> Array:
        """(N, 2) canvas points to (N, 2) stamp points."""
        affine = points @ self.matrix.T + self.offset
        if not len(self.centres):
            return affine
        r2 = (points * points).sum(-1)[:, None] + (self.centres**2).sum(-1) - 2 * points @ self.centres.T
        r2 = np.maximum(r2, 1e-9)
        return affine + (r2 * np.log(r2)) @ self.weights

    def inverse(self, targets: Array, *, tolerance: float = 1e-3, iterations: int = 60) -> tuple[Array, npt.NDArray]:
        """Solves g(q) = u for (N, 2) stamp points u by Newton's method with the affine part's Jacobian.

        Returns q (N, 2) and converged (N,) bool: |g(q) - u|, taken back to the canvas by A, is at most `tolerance`.
        """
        back = np.linalg.inv(self.matrix)
        points = (targets - self.offset) @ back.T
        size = np.full(len(points), np.inf)
        for _ in range(iterations):
            step = (targets - self(points)) @ back.T
            size = np.sqrt((step * step).sum(-1))
            if size.max(initial=0.0) < 0.1 * tolerance:
                break
            points = points + step
        return points, size <= tolerance


def thin_plate_weights(centres: Array, displacements: Array) -> tuple[Array, Array, Array]:
    """Thin-plate spline through `displacements` (K, 2) at `centres` (K, 2): weights (K, 2), matrix (2, 2), offset (2,).

    Bookstein 1989: [U P; P^T 0] [w; a] = [v; 0] with U_kl = r^2 log r^2 and P = [1, x, y].
    """
    count = len(centres)
    r2 = np.maximum(((centres[:, None] - centres[None]) ** 2).sum(-1), 1e-12)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = r2 * np.log(r2)
    system[:count, count] = 1.0
    system[:count, count + 1 :] = centres
    system[count:, :count] = system[:count, count:].T
    solution: Array = np.linalg.solve(system, np.concatenate((displacements, np.zeros((3, 2))))).astype(np.float64)
    return solution[:count], solution[count + 1 :].T, solution[count]


def random_warp(
    rng: np.random.Generator,
    stamp_size: tuple[int, int],
    canvas_size: tuple[int, int],
    *,
    extent: tuple[float, float] = (0.45, 0.85),
    rotation: float = 40.0,
    wobble: float = 0.03,
) -> SmoothWarp:
    """A random affine map plus thin-plate spline that puts a stamp (h, w) onto a canvas (h, w).

    extent: the stamp's longer side over the canvas's shorter one; rotation: largest angle in degrees;
    wobble: standard deviation of the spline's displacement over the stamp's longer side.
    """
    (stamp_h, stamp_w), (canvas_h, canvas_w) = stamp_size, canvas_size
    longer = max(stamp_h, stamp_w)
    scale = rng.uniform(*extent) * min(canvas_h, canvas_w) / longer
    aspect = np.exp(rng.uniform(-0.15, 0.15))
    angle = np.deg2rad(rng.uniform(-rotation, rotation))
    cos, sin = np.cos(angle), np.sin(angle)
    shear = np.array([[1.0, rng.uniform(-0.15, 0.15)], [0.0, 1.0]])
    forward = np.array([[cos, -sin], [sin, cos]]) @ shear @ np.diag((scale * aspect, scale / aspect))
    half = np.abs(forward) @ np.array((stamp_w / 2, stamp_h / 2))
    free = np.maximum(np.array((canvas_w / 2, canvas_h / 2)) - half, 0.02 * min(canvas_h, canvas_w))
    centre = np.array(((canvas_w - 1) / 2, (canvas_h - 1) / 2)) + rng.uniform(-1, 1, 2) * free
    matrix = np.linalg.inv(forward)
    offset = np.array(((stamp_w - 1) / 2, (stamp_h - 1) / 2)) - matrix @ centre
    if wobble <= 0:
        return SmoothWarp(matrix, offset, np.zeros((0, 2)), np.zeros((0, 2)))
    ticks = np.linspace(0.0, 1.0, 4)
    centres = np.stack(np.meshgrid(ticks * (canvas_w - 1), ticks * (canvas_h - 1)), -1).reshape(-1, 2)
    weights, bend, shift = thin_plate_weights(centres, rng.normal(0.0, wobble * longer, centres.shape))
    return SmoothWarp(matrix + bend, offset + shift, centres, weights)


def _canvas_points(size: tuple[int, int]) -> Array:
    ys, xs = np.mgrid[: size[0], : size[1]].astype(np.float64)
    return np.stack((xs, ys), -1).reshape(-1, 2)


def render(
    stamp: npt.NDArray[np.uint8], warp: SmoothWarp, size: tuple[int, int], feather: float
) -> tuple[Array, Array]:
    """The stamp (h, w, 4) uint8 under `warp`: premultiplied colour (H, W, 3) in [0, 1] and opacity (H, W) in [0, 1]."""
    at = warp(_canvas_points(size))[:, ::-1].T.reshape(2, *size)
    values = stamp.astype(np.float64) / 255.0
    opacity = gaussian_filter(values[..., 3], feather) if feather > 0 else values[..., 3]
    opacity = np.minimum(opacity, values[..., 3] > 0)  # feathering never shows colour that the cut-out lacks
    layers = [map_coordinates(values[..., c] * opacity, at, order=1, mode="constant") for c in range(3)]
    return np.stack(layers, -1), map_coordinates(opacity, at, order=1, mode="constant")


def _crop(rng: np.random.Generator, photo: npt.NDArray[np.uint8], size: tuple[int, int]) -> Array:
    height, width = photo.shape[:2]
    aspect = size[1] / size[0]
    tall = min(height, width / aspect) * rng.uniform(0.5, 1.0)
    wide = tall * aspect
    top, left = rng.uniform(0, height - tall), rng.uniform(0, width - wide)
    picture = Image.fromarray(photo).resize(
        (size[1], size[0]), Image.Resampling.BILINEAR, box=(left, top, left + wide, top + tall), reducing_gap=2.0
    )
    values = np.asarray(picture, dtype=np.float64) / 255.0
    return values[:, ::-1] if rng.random() < 0.5 else values


def _finish(rng: np.random.Generator, canvas: Array) -> torch.Tensor:
    """Photometric change, blur and JPEG of the whole canvas; (3, H, W) float32 in [0, 1]."""
    gain = rng.uniform(0.85, 1.15) * rng.uniform(0.95, 1.05, 3)
    canvas = (canvas - 0.5) * gain + 0.5 + rng.uniform(-0.06, 0.06)
    canvas = gaussian_filter(canvas, (*([rng.uniform(0.3, 0.8)] * 2), 0)) + rng.normal(0, 0.01, canvas.shape)
    picture = Image.fromarray((canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(rng.integers(70, 96)))
    return torch.from_numpy(np.array(Image.open(buffer), dtype=np.float32) / 255.0).permute(2, 0, 1).contiguous()


def exact_flow(warp_a: SmoothWarp, warp_b: SmoothWarp, opacity_a: Array, opacity_b: Array) -> tuple[Array, npt.NDArray]:
    """Flow (2, Ha, Wa) from g_b(p + flow(p)) = g_a(p), and valid (Ha, Wa): both ends lie on the visible object."""
    size = opacity_a.shape
    chosen = (opacity_a > 0.5).reshape(-1)
    points = _canvas_points((size[0], size[1]))[chosen]
    matches, converged = warp_b.inverse(warp_a(points))
    limit = np.array((opacity_b.shape[1] - 1, opacity_b.shape[0] - 1))
    inside = ((matches >= 0) & (matches <= limit)).all(-1)
    visible = map_coordinates(opacity_b, matches[:, ::-1].T, order=1, mode="constant") > 0.5
    ok = converged & inside & visible
    flow, valid = np.zeros((chosen.size, 2)), np.zeros(chosen.size, dtype=bool)
    flow[np.flatnonzero(chosen)[ok]] = (matches - points)[ok]
    valid[np.flatnonzero(chosen)[ok]] = True
    return flow.T.reshape(2, *size), valid.reshape(size)


def _scatter(rng: np.random.Generator, canvas: Array, stamps: Sequence[Stamp], count: int) -> Array:
    """The canvas (H, W, 3) with `count` of the stamps on it, small, each drawn anew."""
    size = (canvas.shape[0], canvas.shape[1])
    for _ in range(count):
        stamp = stamps[int(rng.integers(len(stamps)))]
        warp = random_warp(rng, stamp.rgba.shape[:2], size, extent=(0.25, 0.5), wobble=0)
        colour, opacity = render(stamp.rgba, warp, size, rng.uniform(0.4, 1.0))
        canvas = canvas * (1 - opacity[..., None]) + colour
    return canvas


def compose_image(
    rng: np.random.Generator,
    stamp: Stamp,
    photo: npt.NDArray[np.uint8],
    others: Sequence[Stamp],
    size: tuple[int, int],
    distractors: int = 2,
    clutter: int | None = None,
) -> tuple[torch.Tensor, Array, SmoothWarp]:
    """One stamp over a photograph (h, w, 3), with at most `distractors` of `others` below it, or exactly `clutter`.

    With `clutter` they are drawn apart from all else: with more of them the image is the same but for those added.
    Returns the image (3, H, W) float32 in [0, 1], the stamp's opacity (H, W), and its warp.
    """
    canvas = _crop(rng, photo, size)
    if clutter is None:
        apart, count = rng, int(rng.integers(distractors + 1)) if others else 0
    else:
        apart, count = np.random.default_rng(int(rng.integers(2**63))), clutter if others else 0
    canvas = _scatter(apart, canvas, others, count)
    warp = random_warp(rng, stamp.rgba.shape[:2], size)
    colour, opacity = render(stamp.rgba, warp, size, rng.uniform(0.4, 1.0))
    return _finish(rng, canvas * (1 - opacity[..., None]) + colour), opacity, warp


def compose_ground(
    rng: np.random.Generator, photo: npt.NDArray[np.uint8], others: Sequence[Stamp], size: tuple[int, int]
) -> torch.Tensor:
    """A part of a photograph (h, w, 3) with one to three of `others` on it, finished as composed images are.

    Returns (3, H, W) float32 in [0, 1].
    """
    count = int(rng.integers(1, 4)) if others else 0
    return _finish(rng, _scatter(rng, _crop(rng, photo, size), others, count))


def compose_pair(
    rng: np.random.Generator,
    library: Library,
    *,
    size: tuple[int, int] = (240, 240),
    same_stamp: bool = True,
    truth: bool = True,
    distractors: int = 2,
    clutter: int | None = None,
) -> Pair:
    """One composed pair of `size` (H, W).

    Args:
        rng: all randomness comes from it.
        library: stamps and backgrounds.
        same_stamp: both images show one stamp (exact flow exists); else two of one category where it has two (no flow).
        truth: also give the exact masks, and the flow where there is one. Training pairs are made without.
        distractors: at most so many stamps of other categories lie below the object in each image.
        clutter: exactly so many, instead; see `compose_image`.
    """
    first = library.stamps[rng.integers(len(library.stamps))]
    peers = [s for s in library.stamps if s.category == first.category and s.name != first.name]
    second = first if same_stamp or not peers else peers[rng.integers(len(peers))]
    others = [s for s in library.stamps if s.category != first.category and s.name not in (first.name, second.name)]
    ground = rng.permutation(len(library.backgrounds))
    images, opacities, warps = [], [], []
    for i, stamp in enumerate((first, second)):
        photo = library.backgrounds[ground[i % len(ground)]].rgb
        image, opacity, warp = compose_image(rng, stamp, photo, others, size, distractors, clutter)
        images.append(image)
        opacities.append(opacity)
        warps.append(warp)
    if not truth:
        return Pair(images[0], images[1], first.category)
    masks = (torch.from_numpy(opacities[0] > 0.5), torch.from_numpy(opacities[1] > 0.5))
    if second is not first:
        return Pair(images[0], images[1], first.category, masks[0], masks[1])
    flow, valid = exact_flow(warps[0], warps[1], opacities[0], opacities[1])
    return Pair(images[0], images[1], first.category, *masks, torch.from_numpy(flow).float(), torch.from_numpy(valid))


class ComposedPairs(Dataset[Pair]):
    """`length` composed pairs; pair i depends on (seed, i) only, so any order and any worker gives the same pairs."""

    def __init__(
        self,
        library: Library,
        length: int,
        *,
        seed: int = 0,
        size: tuple[int, int] = (240, 240),
        truth: bool = False,
        same_stamp: float = 1.0,
        clutter: int | None = None,
    ) -> None:
        """same_stamp: the share of pairs that show one stamp twice; the others show two stamps of one category.

        clutter: exactly so many stamps of other categories below each object, instead of 0 to 2.
        """
        self.library, self.length, self.seed, self.size = library, length, seed, size
        self.truth, self.same_stamp, self.clutter = truth, same_stamp, clutter

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self.length:
            raise IndexError(f"pair {index} of {self.length}")
        rng = self._generator(index)
        same = bool(rng.random() < self.same_stamp)
        return compose_pair(rng, self.library, size=self.size, same_stamp=same, truth=self.truth, clutter=self.clutter)

    def category(self, index: int) -> str:
        """The category of pair `index`, without composing it."""
        rng = self._generator(index)
        rng.random()  # the choice of the same stamp comes before that of the stamp
        return self.library.stamps[rng.integers(len(self.library.stamps))].category

    def _generator(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, index))


__all__ = ["ComposedPairs", "SmoothWarp", "Stamp", "compose_pair", "exact_flow", "random_warp", "render"]
