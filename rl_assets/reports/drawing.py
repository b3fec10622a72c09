"""What every plot has in common: canvas, colours, safe labels, checked numbers, PNG bytes. The plots are in `plots`.

Nothing here touches pyplot or matplotlib's global settings, so threads may draw at the same time.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from rl_assets.errors import MalformedInput
from rl_assets.text import visible

BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, "#5A5A5A", "#000000")
"""Colours of Okabe and Ito, which people with any colour vision can tell apart."""
INK, MUTED, GRID = "#222222", "#6B6B6B", "#E3E3E3"
WIDTH, HEIGHT, DPI = 900, 400, 100
COLOURS = 128
"""Colours kept in a PNG: text stays smooth, and the file less than half its size."""
LONGEST_LABEL = 32


def safe_label(text: object, longest: int = LONGEST_LABEL) -> str:
    """Text that matplotlib draws as it stands: no mathtext, no control or bidi characters, one line, not too long."""
    plain = visible(str(text)) or "(no name)"
    if len(plain) > longest:
        head = (longest - 1) * 2 // 3
        plain = f"{plain[:head]}…{plain[head + 1 - longest :]}"
    return plain.replace("$", r"\$")


def finite(values: Iterable[float], what: str) -> list[float]:
    """The values as floats. Raises MalformedInput where one is no number, NaN or infinite."""
    numbers = []
    for value in values:
        if value is None or not math.isfinite(value):
            raise MalformedInput(f"{what} holds {value!r}, which cannot be drawn; leave out what was not measured")
        numbers.append(float(value))
    return numbers


def canvas(title: str, height: int = HEIGHT) -> Figure:
    """An empty figure of WIDTH and so many pixels, with a title in plain words at its top left."""
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold", color=INK)
    return figure


def style(axes: Axes, x: str = "", y: str = "", *, grid: str = "y", whole_x: bool = False) -> Axes:
    """Axis labels with units, a light grid and no box."""
    axes.set_xlabel(x, fontsize=9.5, color=INK)
    axes.set_ylabel(y, fontsize=9.5, color=INK)
    axes.tick_params(labelsize=9, colors=MUTED, labelcolor=INK, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#B0B0B0")
    axes.grid(axis=grid, color=GRID, linewidth=0.8)  # pyright: ignore[reportArgumentType]
    axes.set_axisbelow(True)
    if whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    return axes


def nothing(title: str, sentence: str) -> bytes:
    """The picture of an empty input: it says so, instead of showing empty axes."""
    figure = canvas(title, height=140)
    figure.text(0.5, 0.4, sentence, ha="center", va="center", fontsize=11, color=MUTED)
    return png(figure)


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], x: float) -> None:
    """Write (y, label, colour) beside the right end of lines, moved apart where they would cover each other."""
    low, high = axes.get_ylim()
    pixels = axes.figure.bbox.height * axes.get_position().height
    gap = 14 * (high - low) / max(pixels, 1.0)
    places = sorted(ends, key=lambda end: end[0])
    ys = [place[0] for place in places]
    for _ in range(50):
        moved = False
        for below in range(len(ys) - 1):
            short = gap - (ys[below + 1] - ys[below])
            if short > gap * 1e-3:
                ys[below] -= short / 2
                ys[below + 1] += short / 2
                moved = True
        if not moved:
            break
    for y, (_, label, colour) in zip(ys, places, strict=True):
        axes.annotate(
            label,
            (x, y),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            fontweight="bold",
            color=colour,
            annotation_clip=False,
        )


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes without metadata: the same figure gives the same bytes."""
    agg = FigureCanvasAgg(figure)
    agg.draw()
    buffer = io.BytesIO()
    with_palette(np.asarray(agg.buffer_rgba())[..., :3]).save(buffer, "PNG")
    return buffer.getvalue()


def with_palette(rgb: np.ndarray) -> Image.Image:
    """The image in its COLOURS most frequent colours, told apart to 5 bits; all others become the nearest of them.

    rgb: (height, width, 3) of uint8. Pillow's median cut takes three times as long, which a run that draws notices.
    """
    red, green, blue = (rgb[..., channel].astype(np.uint16) >> 3 for channel in range(3))
    cells = red << 10 | green << 5 | blue
    flat = cells.ravel()
    counts = np.bincount(flat)
    used = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    sums = [np.bincount(flat, weights=rgb[..., channel].ravel())[used] for channel in range(3)]
    means = np.stack(sums, axis=1) / counts[used, None]
    palette = means[:COLOURS]
    nearest = np.zeros(len(counts), np.uint8)
    nearest[used] = ((means[:, None] - palette) ** 2).sum(axis=2).argmin(axis=1)
    image = Image.fromarray(nearest[cells], "P")
    image.putpalette(palette.round().astype(np.uint8).tobytes())
    return image
