"""Parametric transformations of the image plane: affine maps and thin-plate splines.

Points are (..., N, 2) in normalised coordinates, x before y, -1 and 1 at the outer edges of the border pixels, so that
one transformation means the same at every resolution: n = (2 x + 1) / W - 1.
"""

import torch
from torch import Tensor, nn

from cosegflow.reference import pixel_grid

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def grid_points(size: tuple[int, int], like: Tensor) -> Tensor:
    """(H * W, 2): the pixel centres of a grid (H, W) in normalised coordinates, row by row."""
    height, width = size
    extent = torch.tensor((width, height), dtype=like.dtype, device=like.device)
    return (2 * pixel_grid(height, width, like).flatten(1).T + 1) / extent - 1


def to_flow(points: Tensor, size_a: tuple[int, int], size_b: tuple[int, int]) -> Tensor:
    """Where the pixels of a grid `size_a` go, (B, Ha * Wa, 2), as a flow (B, 2, Ha, Wa) in pixels of grid `size_b`."""
    extent = torch.tensor((size_b[1], size_b[0]), dtype=points.dtype, device=points.device)
    at = ((points + 1) * extent - 1) / 2
    return at.transpose(1, 2).unflatten(2, size_a) - pixel_grid(*size_a, points)


def apply_affine(parameters: Tensor, points: Tensor) -> Tensor:
    """(B, 6), the rows of a 2 x 3 matrix, applied to (N, 2) or (B, N, 2); (B, N, 2)."""
    matrix = parameters.reshape(-1, 2, 3)
    return points @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2]


class ThinPlate(nn.Module):
    """A thin-plate spline by where it sends a fixed square grid of control points.

    T(p) = a_0 + a_x x + a_y y + sum_i w_i U(|p - c_i|), U(r) = r^2 log r^2, with a and w from
    [[K + reg I, P], [P^T, 0]] [w; a] = [q; 0], where K_ij = U(|c_i - c_j|), P = (1, c) and q_i is where c_i goes
    (Bookstein 1989; section 1 of the paper, where reg is 0.2 in training and 0 in evaluation). Without regularisation
    T(c_i) = q_i; an affine T is exact with any.

    Args:
        side: control points per side, equally spaced in [-1, 1].
        regularisation: reg of the training mode; in evaluation mode it is 0.
    """

    control: Tensor
    _solve_training: Tensor
    _solve_evaluation: Tensor

    def __init__(self, side: int = 3, regularisation: float = 0.2) -> None:
        super().__init__()
        line = torch.linspace(-1, 1, side, dtype=torch.float64)
        control = torch.stack((line.repeat(side), line.repeat_interleave(side)), 1)
        self.register_buffer("control", control.float(), persistent=False)
        for name, value in (("_solve_training", regularisation), ("_solve_evaluation", 0.0)):
            self.register_buffer(name, self._solver(control, value).float(), persistent=False)

    @staticmethod
    def _radial(points: Tensor, control: Tensor) -> Tensor:
        """(..., N, K): U of the distances, 0 at 0 with gradient 0."""
        squared = (points.unsqueeze(-2) - control).square().sum(-1)
        positive = squared > 0
        return torch.where(positive, squared * torch.where(positive, squared, 1.0).log(), 0.0)

    @classmethod
    def _solver(cls, control: Tensor, regularisation: float) -> Tensor:
        """(K + 3, K): the matrix that takes q to (w, a)."""
        count = len(control)
        plane = torch.cat((torch.ones(count, 1, dtype=control.dtype), control), 1)
        bend = cls._radial(control, control) + regularisation * torch.eye(count, dtype=control.dtype)
        corner = torch.zeros(3, 3, dtype=control.dtype)
        system = torch.cat((torch.cat((bend, plane), 1), torch.cat((plane.T, corner), 1)))
        return torch.linalg.inv(system)[:, :count]

    @property
    def parameters_count(self) -> int:
        """Two per control point."""
        return 2 * len(self.control)

    def identity(self) -> Tensor:
        """(2 K,): x of all control points, then y."""
        return self.control.T.flatten()

    def forward(self, targets: Tensor, points: Tensor) -> Tensor:
        """(B, N, 2): where the points (N, 2) go.

        Args:
            targets: (B, 2 K), where the control points go: all x, then all y. Gradients reach it.
            points: (N, 2) or (B, N, 2).
        """
        solve = self._solve_training if self.training else self._solve_evaluation
        solve = solve.to(points.dtype)
        coefficients = solve @ targets.unflatten(1, (2, -1)).transpose(1, 2).to(points.dtype)  # (B, K + 3, 2)
        radial = self._radial(points, self.control.to(points.dtype))
        one = torch.ones_like(points[..., :1])
        return torch.cat((radial, one, points), -1) @ coefficients
