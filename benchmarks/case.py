"""One size at which a work is measured, and how it is written on the command line."""

import re
from dataclasses import dataclass, fields, replace
from typing import Any

DTYPES = ("float32", "bfloat16", "float16", "float64")
LAYOUTS = ("contiguous", "channels_last")
FLOWS = ("smooth", "random")
DIRECTIONS = ("forward", "backward", "both")
"""What is timed: the outputs, the gradients from a graph that is there, or one after the other."""


@dataclass(frozen=True)
class Case:
    """A size. `a` is the grid of the sources (or of the output), `b` that of the targets (or of the image)."""

    batch: int = 1
    channels: int = 64
    a: tuple[int, int] = (64, 64)
    b: tuple[int, int] = (64, 64)
    dtype: str = "float32"
    foreground: float = 1.0
    """The fraction of ones in the masks of both images; 1: no mask is given."""
    layout: str = "contiguous"
    beta: float = 50.0
    flow: str = "smooth"
    """warp, lookup: a smooth flow (a random affine map and low frequencies) or one independent at each pixel."""
    radius: int = 4
    """local_correlation, lookup."""

    def __str__(self) -> str:
        grids = f"{self.a[0]}x{self.a[1]}" + ("" if self.a == self.b else f",b={self.b[0]}x{self.b[1]}")
        text = f"B={self.batch},C={self.channels},N={grids},{self.dtype}"
        default = Case()
        for name in ("foreground", "layout", "beta", "flow", "radius"):
            if getattr(self, name) != getattr(default, name):
                text += f",{name}={getattr(self, name)}"
        return text


def _grid(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or not int(found[1]) or not int(found[2]):
        raise ValueError(f"a grid is written HxW, as in 64x64, got {text!r}")
    return int(found[1]), int(found[2])


def parse(text: str, base: Case | None = None) -> Case:
    """A case from text such as ``B=8,C=256,N=64x64,bfloat16,foreground=0.3`` (in any order; what is missing: `base`).

    Raises:
        ValueError: an unknown key or a value that does not fit; the message lists what is valid.
    """
    values: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals and part in DTYPES:
            values["dtype"] = part
        elif not equals and part in LAYOUTS:
            values["layout"] = part
        elif key in ("B", "batch", "C", "channels", "radius"):
            if not value.isdecimal() or (int(value) < 1 and key != "radius"):
                raise ValueError(f"{key}: need a whole number above 0, got {value!r}")
            values[{"B": "batch", "C": "channels"}.get(key, key)] = int(value)
        elif key == "N":
            values["a"] = values["b"] = _grid(value)
        elif key in ("a", "b"):
            values[key] = _grid(value)
        elif key in ("dtype", "layout", "flow"):
            choices = {"dtype": DTYPES, "layout": LAYOUTS, "flow": FLOWS}[key]
            if value not in choices:
                raise ValueError(f"{key}: need one of {', '.join(choices)}, got {value!r}")
            values[key] = value
        elif key in ("foreground", "beta"):
            try:
                values[key] = float(value)
            except ValueError:
                raise ValueError(f"{key}: need a number, got {value!r}") from None
            if key == "foreground" and not 0 < values[key] <= 1:
                raise ValueError(f"foreground: need a fraction in (0, 1], got {value!r}")
        else:
            valid = "B, C, N, a, b, foreground, beta, radius, flow, dtype, layout"
            raise ValueError(f"a size has the keys {valid} and dtypes {', '.join(DTYPES)}, got {part!r}")
    # a and b may come after N, which sets both
    for key in ("a", "b"):
        if found := re.search(rf"(?:^|,)\s*{key}=([^,]+)", text):
            values[key] = _grid(found[1])
    return replace(base or Case(), **values)


def columns(case: Case) -> dict[str, Any]:
    """The case as columns of a result row."""
    row = {f.name: getattr(case, f.name) for f in fields(case)}
    row["a"], row["b"] = (f"{h}x{w}" for h, w in (case.a, case.b))
    return row


def squares(*pairs: tuple[int, int], **shared: Any) -> tuple[Case, ...]:
    """Cases of (channels, side of both grids)."""
    return tuple(Case(channels=channels, a=(side, side), b=(side, side), **shared) for channels, side in pairs)


def with_dtypes(cases: tuple[Case, ...], *dtypes: str) -> tuple[Case, ...]:
    """Each case in each dtype."""
    return tuple(replace(case, dtype=dtype) for case in cases for dtype in dtypes)
