"""Draws stream.svg and backward.svg, the diagrams of docs/kernels/overview.md.

    python docs/images/kernels/make_diagrams.py

Standard library only. Each picture brings its own light ground, so that it reads on light and on dark pages.
"""

from pathlib import Path
from xml.sax.saxutils import escape

INK, DIM, GROUND, LINE = "#1f2328", "#59636e", "#f6f8fa", "#8c959f"
A, B, SCORE, OUT = "#cfe3fb", "#fbe0c4", "#e2d9f7", "#cdeccf"  # of a, of b, of their products, of results


class Picture:
    """An SVG of fixed size, written element by element."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" font-family="system-ui, sans-serif" font-size="13" fill="{INK}">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{DIM}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="8" fill="{GROUND}"/>',
        ]

    def box(self, x: float, y: float, width: float, height: float, fill: str, *lines: str, size: int = 13) -> None:
        """A rectangle with centred lines of text."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" fill="{fill}" stroke="{LINE}"/>'
        )
        top = y + height / 2 - (len(lines) - 1) * (size + 3) / 2 + size * 0.35
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + number * (size + 3), line, anchor="middle", size=size)

    def text(self, x: float, y: float, line: str, *, anchor: str = "start", size: int = 13, fill: str = INK) -> None:
        """One line of text."""
        self.parts.append(
            f'<text x="{x}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" fill="{fill}">{escape(line)}</text>'
        )

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through the points, with a tip at its end."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{DIM}" stroke-width="1.5" marker-end="url(#tip)"/>'
        )

    def write(self, name: str) -> None:
        """Writes the file beside this one."""
        (Path(__file__).parent / name).write_text("\n".join([*self.parts, "</svg>"]) + "\n")


def stream() -> None:
    """The forward of match on Hopper: a strip of tiles, the ring, and two warpgroups that take turns."""
    p = Picture(760, 430, "How match streams: tiles of scores live in registers and become four numbers a row")
    p.text(20, 28, "packed pixels of b (rows of C halves), 128 a tile", fill=DIM)
    for n in range(5):
        p.box(150 + 92 * n, 40, 84, 36, B, f"tile {n}" if n < 4 else "…")
    p.text(20, 108, "256 packed", fill=DIM)
    p.text(20, 124, "pixels of a", fill=DIM)
    p.box(20, 134, 100, 96, A, "C halves", "a row")
    for n in range(5):
        p.box(150 + 92 * n, 134, 84, 96, SCORE, *(("scores", "256 x 128") if n == 1 else ("done",) if n == 0 else ()))
    p.arrow((240, 248), (600, 248))
    p.text(612, 252, "a block walks on")
    p.box(634, 134, 106, 96, OUT, "per row:", "peak, sum,", "sum x, sum y")
    p.arrow((598, 182), (632, 182))
    p.text(20, 292, "one block in time, C = 128: two slabs of 64 channels a tile", fill=DIM)
    rows = (("copies (TMA)", 300), ("rows 0 to 127", 340), ("rows 128 to 255", 380))
    for name, y in rows:
        p.text(20, y + 20, name)
    for n in range(8):
        p.box(150 + 72 * n, 304, 68, 26, B, f"slab {n}", size=12)
    for n in range(2):
        left = 186 + 288 * n
        p.box(left, 344, 140, 26, SCORE, f"product, tile {n}", size=12)
        p.box(left + 144, 344, 140 if n == 0 else 122, 26, OUT, f"softmax, tile {n}", size=12)
    p.box(330, 384, 140, 26, SCORE, "product, tile 0", size=12)
    p.box(474, 384, 140, 26, OUT, "softmax, tile 0", size=12)
    p.box(618, 384, 122, 26, SCORE, "product, tile 1", size=12)
    p.write("stream.svg")


def backward() -> None:
    """The backward: a chunk of ds, recomputed, feeds two products."""
    p = Picture(760, 330, "The backward in chunks: scores are recomputed, ds exists for one chunk of rows at a time")
    p.text(20, 28, "all pairs (never stored)", fill=DIM)
    p.box(20, 40, 190, 250, GROUND)
    p.box(20, 40, 190, 62, OUT, "chunk 0: done")
    p.box(20, 102, 190, 62, SCORE, "chunk 1")
    p.text(115, 200, "chunk 2", anchor="middle", fill=DIM)
    p.text(115, 262, "…", anchor="middle", fill=DIM)
    p.box(248, 40, 210, 60, A, "inputs, and flow and lse", "of the forward")
    p.arrow((210, 133), (246, 133))
    p.arrow((353, 100), (353, 114))
    p.box(248, 116, 210, 84, SCORE, "s = <a, b> again", "p = exp(beta s + log m − lse)", "ds = beta p (…)")
    p.arrow((458, 158), (496, 158))
    p.box(498, 124, 76, 68, SCORE, "ds", "one chunk", size=12)
    p.arrow((574, 142), (592, 142), (592, 84), (610, 84))
    p.arrow((574, 174), (592, 174), (592, 234), (610, 234))
    p.box(612, 50, 132, 68, OUT, "grad a = ds b", "rows of the chunk")
    p.box(612, 200, 132, 68, OUT, "grad b += dsᵀ a", "chunks in order")
    p.text(248, 262, "Three products of 2 C operations a pair;", fill=DIM)
    p.text(248, 280, "what is stored is one chunk of one of them.", fill=DIM)
    p.write("backward.svg")


if __name__ == "__main__":
    stream()
    backward()
