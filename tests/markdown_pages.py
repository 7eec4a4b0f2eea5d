"""The Markdown pages of the project: their code blocks, commands, links and headings."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

_NOT_RUN = re.compile(r"<!--\s*not run:\s*(.+?)\s*-->", re.DOTALL)


class Block(NamedTuple):
    """A fenced block of code."""

    page: Path
    line: int
    """Where its first line of code stands in the page, from 1."""
    language: str
    code: str
    not_run: str | None
    """The reason of a comment ``<!-- not run: reason -->`` right before it."""


@cache
def _tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found, before = [], None
    for token in _tokens(page):
        if token.type == "fence":
            reason = _NOT_RUN.fullmatch(before.content.strip()) if before is not None else None
            language = token.info.strip().partition(" ")[0]
            line = (token.map or [0])[0] + 2
            found.append(Block(page, line, language, token.content, reason and reason[1]))
        before = token if token.type == "html_block" else None
    return found


def inline(page: Path) -> Iterator[Token]:
    """Links, images, code and text of a page."""
    for token in _tokens(page):
        yield from token.children or ()


def targets(page: Path) -> list[str]:
    """Where the links and pictures of a page point."""
    kinds = {"link_open": "href", "image": "src"}
    return [str(token.attrs[kinds[token.type]]) for token in inline(page) if token.type in kinds]


def code_spans(page: Path) -> list[str]:
    """What stands between single backticks in the text; headings of a page may quote messages."""
    tokens = _tokens(page)
    text = [t for i, t in enumerate(tokens) if t.type == "inline" and tokens[i - 1].type != "heading_open"]
    return [child.content for token in text for child in token.children or () if child.type == "code_inline"]


def anchors(page: Path) -> set[str]:
    """The names that code hosts give the headings of a page."""
    names: set[str] = set()
    tokens = _tokens(page)
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            text = "".join(t.content for t in tokens[i + 1].children or () if t.type in ("text", "code_inline"))
            plain = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
            names.add(next(n for k in range(99) if (n := f"{plain}-{k}" if k else plain) not in names))
    return names
