"""What a peer is: somebody's way to do a work, and the reason where there is none."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..case import Case
from ..works.base import Function


class Unavailable(Exception):
    """This peer cannot do this case here; the message is the reason and ends up in its row."""


@dataclass(frozen=True)
class Peer:
    """One contestant of the registry, ours among them."""

    name: str
    summary: str
    works: dict[str, Callable[[Case, torch.device], Function]]
    """By the work's name: makes the function for a case; raises `Unavailable` where it cannot."""
    version: Callable[[], str]
    """Of the package that does the work; '' where it is missing."""
    directions: tuple[str, ...] = ("forward", "backward", "both")
    """Those that it can do; the others are rows that say 'no backward'."""
    default: bool = True
    """False: only with --peers all, or by name (slow to compile)."""
