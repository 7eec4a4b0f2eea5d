"""DINOv2 (Oquab et al., 2023, arXiv 2304.07193) through transformers or timm."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cosegflow.joint.backbones.protocol import BackboneError, FrozenBackbone, ResidualTail, check_image, standardise
from cosegflow.joint.backbones.weights import first_line, read_state

PATCH = 14
SIZES = {"dinov2-small": (384, 12), "dinov2-base": (768, 12), "dinov2-large": (1024, 24)}
"""Channels and blocks."""
_TIMM = {name: f"vit_{name.removeprefix('dinov2-')}_patch14_dinov2" for name in SIZES}


class _Transformers(nn.Module):
    """The model of transformers: from a local folder, or by its name."""

    def __init__(self, source: str, local: bool) -> None:
        super().__init__()
        from transformers import Dinov2Model

        self.model: Any = Dinov2Model.from_pretrained(source, local_files_only=local)

    def blocks(self, image: Tensor, ends: Sequence[int]) -> list[Tensor]:
        """The tokens (B, 1 + N, C) after so many blocks each."""
        x, found = self.model.embeddings(image), []
        for i, layer in enumerate(self.model.encoder.layer[: max(ends)]):
            y = layer(x)
            x = y[0] if isinstance(y, tuple) else y  # versions differ
            if i + 1 in ends:
                found.append(x)
        return found

    def pooled(self, image: Tensor) -> Tensor:
        """The class token, normalised."""
        return self.model(image).last_hidden_state[:, 0]

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and blocks."""
        return self.model.config.hidden_size, self.model.config.num_hidden_layers


class _Timm(nn.Module):
    """The model of timm: from a local file, or by its name."""

    def __init__(self, name: str, file: str | None) -> None:
        super().__init__()
        import timm

        options = {"dynamic_img_size": True, "num_classes": 0}
        self.model: Any = timm.create_model(_TIMM[name], pretrained=file is None, **options)
        if file is not None:
            from timm.models.vision_transformer import checkpoint_filter_fn

            self.model.load_state_dict(checkpoint_filter_fn(read_state(file), self.model))

    def blocks(self, image: Tensor, ends: Sequence[int]) -> list[Tensor]:
        """The tokens (B, 1 + N, C) after so many blocks each."""
        model = self.model
        x, found = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(image)))), []
        for i, block in enumerate(model.blocks[: max(ends)]):
            x = block(x)
            if i + 1 in ends:
                found.append(x)
        return found

    def pooled(self, image: Tensor) -> Tensor:
        """The class token, normalised."""
        return self.model.forward_features(image)[:, 0]

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and blocks."""
        return self.model.embed_dim, len(self.model.blocks)


def _open(name: str, weights: str | None) -> _Transformers | _Timm:
    """The network, by whichever library can.

    Raises:
        BackboneError: none can; the reasons of each.
    """
    reasons = []
    if weights is not None and not Path(weights).exists():
        raise BackboneError(f"weights: {weights}: no such file or folder")
    if weights is None or Path(weights).is_dir():
        try:
            return _Transformers(weights or f"facebook/{name}", weights is not None)
        except Exception as error:
            reasons.append(f"transformers: {first_line(error, 80)}")
    if weights is None or Path(weights).is_file():
        try:
            return _Timm(name, weights)
        except BackboneError:
            raise
        except Exception as error:
            reasons.append(f"timm: {first_line(error, 80)}")
    hint = "give as weights a local folder of transformers or a local file of timm, and install that library"
    raise BackboneError(f"backbone: {name}: cannot be loaded ({'; '.join(reasons)}): {hint}")


class DinoV2(FrozenBackbone):
    """A vision transformer; frozen.

    The image is enlarged so that one patch of 14 pixels is one cell of the stride-8 grid. Stride 8: the tokens after
    two thirds of the blocks; stride 16: their averages over 2 x 2 cells, with a residual 1 x 1 convolution that
    adapts; stride 4: the tokens after a quarter of the blocks, interpolated.

    Args:
        name: a key of `SIZES`.
        weights: a folder that transformers' ``save_pretrained`` wrote, or a file of weights under timm's or the
            original names; None: from a hub, by either.

    Raises:
        BackboneError: neither library can, or the weights are of another size.
    """

    def __init__(self, name: str = "dinov2-small", weights: str | None = None) -> None:
        super().__init__()
        self.net = _open(name, weights)
        width, blocks = self.net.shape
        if width != SIZES[name][0]:
            raise BackboneError(f"weights: {weights}: does not fit {name}: {width} channels, need {SIZES[name][0]}")
        self.ends = (max(1, blocks // 4), max(1, blocks * 2 // 3))
        self.channels = (width, width, width)
        self.descriptor_channels = width
        self.freeze()

    def trunk(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Backbone.trunk`."""
        check_image(image)
        grid = image.shape[2] // 8, image.shape[3] // 8
        size = grid[0] * PATCH, grid[1] * PATCH
        large = F.interpolate(standardise(image), size=size, mode="bicubic", align_corners=False)
        early, late = (tokens[:, 1:].transpose(1, 2).unflatten(2, grid) for tokens in self.net.blocks(large, self.ends))
        fine = F.interpolate(early, scale_factor=2, mode="bilinear", align_corners=False)
        return fine, late, F.avg_pool2d(late, 2)

    def make_tail(self) -> nn.Module:
        """A residual 1 x 1 convolution."""
        return ResidualTail(self.channels[2])

    def descriptor(self, image: Tensor) -> Tensor:
        """(B, c): the class token, at one patch per 16 pixels."""
        check_image(image)
        size = image.shape[2] // 16 * PATCH, image.shape[3] // 16 * PATCH
        return self.net.pooled(F.interpolate(standardise(image), size=size, mode="bicubic", align_corners=False))
