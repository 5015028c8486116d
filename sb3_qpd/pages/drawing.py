"""
Drawing with matplotlib for a page: SVG whose colors and fonts are the page's own, for wide and for narrow windows.

A figure is drawn with placeholder colors. In the SVG they become CSS variables, so that the page's light and dark colors hold
for figures too. Each figure is drawn twice, because a wide one that is shrunk to a telephone cannot be read.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

# color for matplotlib -> CSS variable of the page
INK, MUTED, GRID = "#a00000", "#a00001", "#a00002"
TEACHER, RANDOM, FLOAT, STUDENT = "#a00003", "#a00004", "#a00005", "#a00006"
BITS = {8: "#a00008", 4: "#a00009", 3: "#a0000a", 2: "#a0000b"}
OTHER_BITS, SURFACE = "#a0000c", "#a0000d"
_VARIABLES = {
    **{INK: "ink", MUTED: "muted", GRID: "grid", TEACHER: "teacher", RANDOM: "random", FLOAT: "float", STUDENT: "student"},
    **{color: f"bits-{bits}" for bits, color in BITS.items()},
    **{OTHER_BITS: "bits-other", SURFACE: "surface"},
}
_FINE = re.compile(r"(\.\d\d)\d+")  # parts of a point too small to see
MARKERS = {8: "o", 4: "s", 3: "^", 2: "D"}  # bits are told by form as well as by color
WIDE, NARROW = 8.4, 3.7  # inches, of 72 pixels on the page
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sb3_qpd",
    "text.parse_math": False,  # a text of a file with dollars is no formula
    "text.color": INK,
    "font.size": 10,
    "font.family": "DejaVu Sans",  # which ships with matplotlib: the same layout everywhere
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Drawing:
    """
    One figure of a page.

    :param wide: SVG for wide windows and for paper
    :param narrow: SVG for narrow windows
    """

    wide: Markup
    narrow: Markup


def draw(name: str, plot: Callable[[Canvas, bool], None], height: float = 3.6, narrow_height: float | None = None) -> Drawing:
    """
    Draw a figure for wide and for narrow windows.

    :param name: unique name in the page, of letters and hyphens
    :param plot: draws into an empty canvas; its second argument says whether the window is narrow
    :param height: height in inches
    :param narrow_height: height for narrow windows; ``None``: the same
    """
    sizes = ((WIDE, height), (NARROW, narrow_height or height))
    found = [_svg(f"{name}-{'narrow' if narrow else 'wide'}", plot, sizes[narrow], bool(narrow)) for narrow in (0, 1)]
    return Drawing(*found)


def _svg(name: str, plot: Callable[[Canvas, bool], None], size: tuple[float, float], is_narrow: bool) -> Markup:
    with mpl.rc_context():
        mpl.rcdefaults()  # not those of a user's own matplotlibrc
        mpl.rcParams.update(STYLE)  # type: ignore[arg-type]  # its stub lists all names
        canvas = Canvas(figsize=size, layout="constrained", facecolor="none")
        FigureCanvasSVG(canvas)
        plot(canvas, is_narrow)
        output = io.StringIO()
        canvas.savefig(output, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _for_page(output.getvalue(), name)


def _for_page(svg: str, name: str) -> Markup:
    """The SVG element alone, hidden from screen readers, with ids of its own and the page's colors and fonts."""
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    counter = itertools.count()
    svg = re.sub(r'\bid="(?=label")', lambda _: f'id="{next(counter)}-', svg)  # several have the name "label"
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"#a000[0-9a-f]{2}", lambda found: f"var(--{_VARIABLES.get(found[0], 'ink')})", svg)
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--sans)", svg)
    svg = re.sub(r"<[^>]+>", lambda tag: _FINE.sub(r"\1", tag[0]), svg)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">', svg, count=1
    )
    return Markup(svg)


def color_of(bits: Any) -> str:
    """
    The color of a number of bits.

    :param bits: bits of the weights
    """
    return BITS.get(bits, OTHER_BITS)


def marker_of(bits: Any) -> str:
    """
    The form of a point for a number of bits.

    :param bits: bits of the weights
    """
    return MARKERS.get(bits, "P")


def ticks(n: int) -> MaxNLocator:
    """
    Round ticks of an axis.

    :param n: the most intervals between them
    """
    return MaxNLocator(n, steps=[1, 2, 2.5, 5, 10])


def byte_ticks(axes: Axes, most: int) -> None:
    """
    A logarithmic axis of bytes with round ticks.

    :param axes: what is drawn into
    :param most: number of ticks from which on only powers of ten are shown
    """
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    candidates = [factor * 10**power for power in range(0, 13) for factor in (1, 2, 5)]
    shown = [tick for tick in candidates if low <= tick <= high]
    shown = shown if len(shown) <= most else [tick for tick in shown if f"{tick}"[0] == "1"]
    axes.set_xticks(shown, [bytes_label(tick) for tick in shown])
    axes.minorticks_off()


def bytes_label(n_bytes: float) -> str:
    """
    A number of bytes in a few letters: 788 B, 2 kB.

    :param n_bytes: the number
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes:.0f} B"


def place_labels(axes: Axes, labels: list[tuple[float, float, str]], avoid: list[tuple[float, float]]) -> None:
    """
    Write labels beside points, each where it covers no other label and no point. One that finds no such place is left out.

    :param axes: what is drawn into, with its final limits
    :param labels: (x, y, text)
    :param avoid: other points, that no label covers
    """
    canvas = axes.figure
    canvas.draw_without_rendering()  # type: ignore[union-attr]
    renderer = canvas._get_renderer()  # type: ignore[union-attr]
    own = [axes.transData.transform((x, y)) for x, y, _ in labels]
    points = [*own, *(axes.transData.transform(point) for point in avoid)]
    taken: list[Any] = []
    for x, y, content in labels:
        here = axes.transData.transform((x, y))
        crowded = any(0 < point[0] - here[0] < 90 and abs(point[1] - here[1]) < 12 for point in own)  # at the right
        for dx, dy, across, down in sorted(_PLACES, key=lambda place: place[2] != "right") if crowded else _PLACES:
            label = axes.annotate(
                *(content, (x, y), (dx, dy)),
                textcoords="offset points",
                ha=across,
                va=down,
                fontsize=9,
                color=INK,
                gid="label",
            )
            box = label.get_window_extent(renderer).padded(1)
            inside = axes.bbox
            fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 + 6 and inside.y0 <= box.y0 and box.y1 <= inside.y1 + 6
            if fits and not any(box.overlaps(other) for other in taken) and not any(box.contains(*point) for point in points):
                taken.append(box)
                break
            label.remove()


# (offset in points, alignment) of a label around its point
_PLACES = (
    *((12, 0, "left", "center"), (-12, 0, "right", "center"), (0, 12, "center", "bottom"), (0, -12, "center", "top")),
    *((9, 9, "left", "bottom"), (-9, 9, "right", "bottom"), (9, -9, "left", "top"), (-9, -9, "right", "top")),
    *((0, 34, "center", "bottom"), (0, -34, "center", "top")),
)
