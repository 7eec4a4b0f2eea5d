"""Generated parts of documents: what is between `<!-- measured: NAME -->` and `<!-- end -->`, and tables for it.

`<!-- predicted: NAME -->` is the same for what a model says and nobody has measured.
"""

import difflib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cosegflow.atomic_file import replaced

BEGIN = re.compile(r"<!-- (?:measured|predicted): ")
BLOCK = re.compile(r"(<!-- (?:measured|predicted): (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


class DocumentError(ValueError):
    """A document that cannot be filled; one line that names it."""


def escape(text: str) -> str:
    """Text for a cell of a markdown table."""
    for mark, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "'")):
        text = text.replace(mark, safe)
    return " ".join(text.split())


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table; cells are escaped."""
    lines = ["| " + " | ".join(escape(text) for text in line) + " |" for line in (header, *body)]
    lines.insert(1, "|" + "---|" * len(header))
    return "\n".join(lines)


def fill(text: str, name: Path, known: Sequence[str], render: Callable[[str], str]) -> str:
    """The document with each block's content made anew by `render`, which takes the block's name.

    Raises:
        DocumentError: a block that is not `known`, or one without an end.
    """
    begun = len(BEGIN.findall(text))
    if begun != len(BLOCK.findall(text)) or begun != text.count("<!-- end -->"):
        raise DocumentError(f"{name}: each '<!-- measured: NAME -->' needs its '<!-- end -->' on a line below")

    def one(found: re.Match[str]) -> str:
        if found[2] not in known:
            raise DocumentError(f"{name}: unknown block {found[2]!r}; valid: {', '.join(known)}")
        return f"{found[1]}{render(found[2])}\n{found[4]}"

    return BLOCK.sub(one, text)


def changed_lines(old: str, new: str, name: Path) -> list[str]:
    """How a document differs from what the results say, as lines of a diff."""
    titles = f"{name} as it is", f"{name} from the results"
    return list(difflib.unified_diff(old.splitlines(), new.splitlines(), *titles, lineterm="", n=0))


def write(path: Path, text: str) -> bool:
    """Writes beside and renames; False where the file has that text already."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return True


def run(check: Callable[[], list[str]] | None, publish: Callable[[], list[Path]], advice: str, name: str) -> int:
    """The body of a command: prints what differs (0 or 1), or without `check` publishes and prints the paths.

    An error is one line on stderr that begins with `name`, and 2.
    """
    try:
        if check is not None:
            differences = check()
            print(*differences, sep="\n", end="\n" if differences else "")
            if differences:
                print(advice, file=sys.stderr)
            return 1 if differences else 0
        for path in publish():
            print(path)
    except (ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return 0
