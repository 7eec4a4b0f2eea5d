"""The composed pairs that every run is evaluated on: composed once, kept as files."""

import hashlib
import inspect
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cosegflow.ablation.errors import AblationError
from cosegflow.atomic_file import replaced
from cosegflow.data import composer
from cosegflow.data.composer import ComposedPairs
from cosegflow.data.pair import Pair
from cosegflow.data.sources import Library
from cosegflow.data.stamps import SEED  # the pairs are then those of `cosegflow eval`

FIELDS = ("image_a", "image_b", "mask_a", "mask_b", "flow_ab", "valid_ab")


def library_digest(library: Library) -> str:
    """Of the names and pixels of all stamps and backgrounds."""
    digest = hashlib.sha256()
    for stamp in library.stamps:
        digest.update(f"{stamp.name} {stamp.category} {stamp.rgba.shape}".encode() + stamp.rgba.tobytes())
    for photo in library.backgrounds:
        digest.update(f"{photo.name} {photo.rgb.shape}".encode() + photo.rgb.tobytes())
    return digest.hexdigest()


class ComposedCache:
    """Sets of composed pairs of the held-out stamps; the plain set is the beginning of `cosegflow eval`'s."""

    def __init__(self, folder: Path, library: Library, size: int) -> None:
        """library: the held-out part. size: the side of the square images in pixels."""
        self.folder, self.library, self.size = folder, library, size
        # Pairs of an older composer must not be taken for those of this one.
        self.digest = library_digest(library) + hashlib.sha256(inspect.getsource(composer).encode()).hexdigest()

    def path(self, count: int, clutter: int | None) -> Path:
        """The file of a set."""
        key = hashlib.sha256(json.dumps([self.digest, SEED, self.size, count, clutter]).encode()).hexdigest()[:12]
        return self.folder / f"stamps-{'any' if clutter is None else clutter}-{key}.npz"

    def make(self, count: int, clutter: int | None) -> None:
        """Composes a set where its file is not there yet.

        Raises:
            AblationError: it cannot be written.
        """
        path = self.path(count, clutter)
        if path.is_file():
            return
        composed = ComposedPairs(
            self.library, count, seed=SEED, size=(self.size, self.size), truth=True, clutter=clutter
        )
        pairs = [composed[i] for i in range(count)]
        stacked: dict[str, Any] = {n: torch.stack([getattr(pair, n) for pair in pairs]).numpy() for n in FIELDS}
        for name in ("image_a", "image_b"):  # they come from a JPEG, so eight bits hold all of them
            stacked[name] = np.rint(stacked[name] * 255).astype(np.uint8)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replaced(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, category=np.array([str(p.category) for p in pairs]), **stacked)
        except OSError as error:
            raise AblationError(f"--out: {path}: cannot write ({error.strerror or error})") from None

    def load(self, count: int, clutter: int | None) -> Iterator[Pair]:
        """The pairs of a set, composed first where they are not there.

        Raises:
            AblationError: the file is damaged.
        """
        self.make(count, clutter)
        path = self.path(count, clutter)
        try:
            with np.load(path) as content:
                held = {name: torch.from_numpy(content[name]) for name in FIELDS}
                categories = content["category"].tolist()
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise AblationError(f"{path}: is damaged; remove it, it is made again") from None
        for i in range(count):
            values = {name: held[name][i] for name in FIELDS}
            for name in ("image_a", "image_b"):
                values[name] = values[name].float() / 255
            yield Pair(**values, category=str(categories[i]), name=f"{i:05d}")
