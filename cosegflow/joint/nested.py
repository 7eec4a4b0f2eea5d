"""Nested training state as a flat table of tensors and one JSON text, for safetensors. Nothing is ever unpickled."""

import json
from typing import Any

from torch import Tensor


class NestedStateError(ValueError):
    """A state that holds something other than tensors and plain values, or a text that is no such state."""


def pack(state: Any) -> tuple[dict[str, Tensor], str]:
    """Splits a tree of dicts, lists and tuples into its tensors, by name, and the JSON of all else.

    Dict keys may be text or integers; leaves are tensors, text, numbers, booleans and None.

    Raises:
        NestedStateError: any other leaf or key; the message names its place.
    """
    tensors: dict[str, Tensor] = {}

    def visit(value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            tensors[place] = value.detach().cpu().clone().contiguous()
            return {"tensor": place}
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str | int):
                    raise NestedStateError(f"{place}: cannot store the key {key!r}")
            return {"dict": [[key, visit(item, f"{place}.{key}".lstrip("."))] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [visit(item, f"{place}.{i}") for i, item in enumerate(value)]}
        if value is None or type(value) in (str, bool, int, float):
            return value
        raise NestedStateError(f"{place}: cannot store a {type(value).__name__}")

    return tensors, json.dumps(visit(state, ""))


def unpack(tensors: dict[str, Tensor], text: str) -> Any:
    """The tree that `pack` split.

    Raises:
        NestedStateError: the text is not of `pack`, or names a tensor that is missing.
    """

    def visit(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "dict":
            return {key: visit(item) for key, item in content}
        items = [visit(item) for item in content]
        return tuple(items) if kind == "tuple" else items

    try:
        return visit(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise NestedStateError(f"not a stored state ({type(error).__name__}: {error})") from None
