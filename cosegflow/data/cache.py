"""Reduced photographs kept in memory, with a bound: the least recently used ones go first."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cosegflow.data.photographs import read_reduced

Pixels = npt.NDArray[np.uint8]
LIMIT = 128 * 2**20


class PhotographCache:
    """Reads photographs reduced to a shorter side, and keeps what fits into `limit` bytes.

    A copy in another process begins empty, so each worker of a DataLoader has a bound of its own.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.used = 0
        self._kept: OrderedDict[tuple[Path, int], Pixels] = OrderedDict()

    def read(self, path: Path, shorter: int, dataset: str) -> Pixels:
        """(h, w, 3) uint8, not to be written to; see `read_reduced`.

        Raises:
            DatasetError: the photograph is missing or damaged.
        """
        key = (path, shorter)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        pixels = read_reduced(path, shorter, dataset)
        self._kept[key] = pixels
        self.used += pixels.nbytes
        while self.used > self.limit and len(self._kept) > 1:
            self.used -= self._kept.popitem(last=False)[1].nbytes
        return pixels

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["limit"])  # type: ignore[misc]
