"""
Draw the pictures of the documentation from benchmarks/results, and of one layer from a student.

    python benchmarks/pictures.py
    python benchmarks/pictures.py --student sb3-qpd-demo/student.npz

Writes returns.svg, sizes.svg and speed.svg into docs/_static, and layer.svg where a student is given.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tables import read_rows

from sb3_qpd import IntegerModel

RESULTS = Path(__file__).parent / "results"
OUT = Path(__file__).parent.parent / "docs" / "_static"
COLORS = {8: "#0b6fa4", 4: "#d1590c", 3: "#3a8f3a", 2: "#9b3fa8"}
MARKERS = {8: "o", 4: "s", 3: "^", 2: "D"}
NAMES = {"qpd": "this package, 8-bit integers", "loop16": "plain loop, 16 epochs", "bc256": "imitation: BC"}
NAMES |= {"dagger256": "imitation: DAgger", "loop": "plain loop, 1 epoch"}
OBSERVATION = (0.02, -0.3, 0.03, 0.4)  # of CartPole
STYLE = {"font.size": 11, "svg.hashsalt": "sb3_qpd", "svg.fonttype": "path", "axes.spines.top": False}
STYLE |= {"axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd", "legend.frameon": False}


def returns(figure: Figure) -> None:
    """Score of each trained student against its share of the teacher's bytes."""
    axes = figure.subplots()
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    # a later file replaces an earlier one: the default optimizer replaces Adam, weight decay replaces none, a short transition
    # replaces a long one, Pong's sharper students replace the former ones, and Breakout's stronger teacher the weaker one
    tables = ("", "_muon", "_decay", "_transition", "_pong", "_freeway", "_atari")
    for name in ("families", *(f"main_table{table}" for table in tables)):
        runs: dict[tuple[str, str, int, float, str], list[dict[str, Any]]] = defaultdict(list)
        for row in read_rows(RESULTS / f"{name}.jsonl"):
            runs[row["teacher"], row["arch"], row["bits"][0], row["timesteps"], str(row["options"])].append(row)
        # the longest run stays, and of equal ones that of the settings that come last in the file
        groups |= {key[:3]: runs[key] for key in sorted(runs, key=lambda key: key[3])}
    for bits in sorted({key[2] for key in groups}, reverse=True):
        chosen = [group for key, group in groups.items() if key[2] == bits]
        x = [row["percent"] for group in chosen for row in group]
        y = [row["score"] for group in chosen for row in group]
        axes.scatter(x, y, s=42, c=COLORS[bits], marker=MARKERS[bits], alpha=0.75, label=f"{bits}-bit weights")
    axes.axhline(1, color="#555555", linewidth=1)
    axes.text(12, 1.005, "teacher", color="#555555")
    labels = {"Boxing": (0.07, 1.045), "Breakout": (0.55, 1.07), "SAC's HalfCheetah": (0.85, 0.925)}
    for text, place in labels.items():
        axes.text(*place, text, fontsize=10)
    axes.set(xscale="log", xlabel="bytes of the student, % of the teacher's float32 actor", ylim=(0.85, 1.15))
    axes.set_ylabel("score: 0 random policy, 1 teacher")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.legend(loc="lower right")


def sizes(figure: Figure) -> None:
    """Return of LunarLander's students at equal bytes."""
    axes = figure.subplots()
    rows = [row for row in read_rows(RESULTS / "budgets.jsonl") if row["teacher"] == "ppo/LunarLander-v2"]
    forms = {"8 8 2": "8-bit weights", "4 8 2": "4-bit weights", "2 8 2": "2-bit weights"}
    for form, label in forms.items():
        bits = int(form[0])
        budgets = sorted({row["budget"] for row in rows if row["form"] == form})
        points = [[row["return"] for row in rows if row["form"] == form and row["budget"] == budget] for budget in budgets]
        options = {"color": COLORS[bits], "marker": MARKERS[bits]}
        axes.plot(budgets, [np.mean(values) for values in points], label=label, **options)
        axes.fill_between(budgets, [min(v) for v in points], [max(v) for v in points], color=COLORS[bits], alpha=0.15)
    axes.axhline(rows[0]["teacher_return"], color="#555555", linewidth=1)
    axes.text(560, 261, "teacher, 19,984 bytes", color="#555555")
    axes.set(xscale="log", xlabel="bytes of the student", ylim=(0, 275), xticks=[250, 500, 1_000, 2_000])
    axes.set_ylabel("mean return of three seeds; band: worst to best")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.legend(loc="lower right")


def speed(figure: Figure) -> None:
    """Return of LunarLander's students against the processor time of learning."""
    axes = figure.subplots()
    rows = [row for row in read_rows(RESULTS / "peers.jsonl") if row["teacher"] == "ppo/LunarLander-v2"]
    colors = dict(zip(NAMES, ("#0b6fa4", "#d1590c", "#3a8f3a", "#9b3fa8", "#888888"), strict=True))
    for who, name in NAMES.items():
        runs: dict[float, dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if row["who"] == who:
                runs[row["timesteps"]][row.get("rate", 0)].append(row)
        # the best learning rate for each number of steps
        groups = [max(by_rate.values(), key=_mean_return) for _, by_rate in sorted(runs.items())]
        seconds = [np.median([row["processor"] for row in group]) for group in groups]
        means = [_mean_return(group) for group in groups]
        axes.plot(seconds, means, marker="o", color=colors[who], linewidth=3 if who == "qpd" else 1.5, label=name)
    axes.axhline(246, color="#555555", linewidth=1)
    axes.text(0.32, 248, "teacher", color="#555555")
    axes.set(xscale="log", ylim=(150, 260), xlim=(0.3, 20), xlabel="processor seconds of learning")
    axes.set_ylabel("mean return of the seeds, LunarLander")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.legend(loc=(0.17, 0.12))


def _mean_return(rows: list[dict[str, Any]]) -> float:
    return float(np.mean([np.mean(row["returns"]) for row in rows]))


def layer(model: IntegerModel) -> Callable[[Figure], None]:
    """The numbers of the first layer for one observation."""
    first, x = model.layers[0], np.array([OBSERVATION], np.float32)
    grid, output = list(model.trace(model.batch_of(x)))[:2]
    sums = first.accumulate(grid)

    def draw(figure: Figure) -> None:
        widths = [1.3, 1, first.weight.shape[1], 1.5, 1.5, 1.4, 1]
        panels = figure.subplots(1, 7, gridspec_kw={"width_ratios": widths, "wspace": 0.25})
        _numbers(panels[0], x.T, "observation\nx", "{:g}", 1e9)
        _numbers(panels[1], grid.T, "input\ngrid q", "{:.0f}", 128)
        _numbers(panels[2], first.weight, f"weights W, {first.weight_bits} bits", "{:.0f}", 2 ** (first.weight_bits - 1))
        _numbers(panels[3], first.bias[:, None], "bias b", "{:,.0f}", 1e9)
        _numbers(panels[4], sums.T, "W q + b,\n32 bits", "{:,.0f}", 1e9)
        _numbers(panels[5], first.multiplier[:, None], "times M", "{:.4f}", 1e9)
        _numbers(panels[6], output.T, f"output,\n{first.activation_bits} bits", "{:.0f}", 2**first.activation_bits)

    return draw


def _numbers(axes: Axes, values: np.ndarray, title: str, form: str, end: float) -> None:
    """A table of numbers, colored by their share of the grid's end."""
    axes.imshow(values / end, cmap="RdBu", vmin=-1.6, vmax=1.6, aspect="equal")
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, form.format(value + 0.0), ha="center", va="center", fontsize=10)
    axes.set_title(title, fontsize=11)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def save(name: str, draw: Callable[[Figure], None], size: tuple[float, float] = (7.6, 4.2)) -> None:
    """Draw one picture and write it."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        draw(figure)
        figure.savefig(OUT / f"{name}.svg", metadata={"Date": None})
    print("Wrote", OUT / f"{name}.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, help="student.npz of a student of CartPole, for layer.svg")
    args = parser.parse_args()
    for draw in (returns, sizes, speed):
        save(draw.__name__, draw)
    if args.student is not None:
        save("layer", layer(IntegerModel.load(args.student)), size=(10, 4.2))


if __name__ == "__main__":
    main()
