"""Charts of training and scores: loss curves, bars per class, seen against unseen classes, systems side by side."""

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from itertools import cycle, groupby
from pathlib import Path
from textwrap import wrap

import numpy as np

from ..data.names import printable
from ..evaluation import ABSENT, class_iou
from ..methods import LOSSES
from .pictures import class_palette

LINE_COLOR = "#4477aa"


def check_drawing() -> None:
    """Refuse, before the work, to draw without matplotlib.

    Raises:
        ValueError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ValueError("the charts need matplotlib: pip install 'cagnet-hf[train]'")


def _plain(name: str) -> str:
    """A name as matplotlib shows it, without the formulas that it would read in it."""
    return printable(name).replace("$", r"\$")


def _panels(lines: int, columns: int, *, size: tuple[float, float]) -> tuple:
    """A matplotlib figure and its plain panels; `size` in inches. It needs no global state of matplotlib."""
    from matplotlib.figure import Figure  # an optional dependency

    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=8)
    return figure, panels


def loss_curves(history: Sequence[dict], path: str | Path) -> None:
    """Write one panel per loss (values faint, running mean strong), with what the loss is below it; stages are shaded.

    Args:
        history: Entries `{"iteration": 120, "stage": "pretrain", "loss/NAME": 1.2, ...}` in order. A stage
            that counts its iterations from the start is put after the stage before.
    """
    names = sorted({key for entry in history for key in entry if key.startswith("loss/")})
    if not names:
        raise ValueError(f"no loss to draw: none of the {len(history)} entries has a key loss/NAME")
    columns = min(len(names), 2 if len(names) == 4 else 3)
    lines = -(-len(names) // columns)
    figure, panels = _panels(lines, columns, size=(4.6 * columns, 3.1 * lines))
    for panel, name in zip(panels, names, strict=False):
        for number, (stage, start, x, entries) in enumerate(_stages(history)):
            present = [name in entry for entry in entries]
            y = np.array([entry[name] for entry in entries if name in entry], float)
            if y.size:
                window = np.ones(1 + y.size // 30)
                mean = np.convolve(y, window, "same") / np.convolve(np.ones_like(y), window, "same")
                style = {"color": LINE_COLOR, "marker": "." if y.size < 20 else None}
                panel.plot(x[present], y, alpha=0.3, linewidth=1, **style)
                panel.plot(x[present], mean, linewidth=1.6, **style)
            panel.axvspan(start, x[-1], color="#888888", alpha=0.16 if number % 2 else 0, linewidth=0)
            # Names of neighbours stand on two levels, for stages may be short.
            place = ((start + x[-1]) / 2, 1.02 + 0.06 * (number % 2))
            panel.text(*place, stage, transform=panel.get_xaxis_transform(), ha="center", fontsize=7)
        panel.set_title(name.removeprefix("loss/").replace("_", " "), fontsize=10, pad=22)
        meaning = LOSSES.get(name.removeprefix("loss/"), "")
        panel.set_xlabel("\n".join(["iteration", *wrap(meaning, 60)]), fontsize=8)
    for panel in panels[len(names) :]:
        panel.remove()
    figure.savefig(path, dpi=130)


def _stages(history: Sequence[dict]) -> Iterable[tuple[str, int, np.ndarray, list[dict]]]:
    """(name, start, positions on one axis of iterations, entries) of each stage."""
    end = 0
    for name, group in groupby(history, key=lambda entry: entry["stage"]):
        entries = list(group)
        x = np.array([entry["iteration"] for entry in entries])
        x = x + end if x[0] <= end else x
        yield name, end, x, entries
        end = int(x[-1])


def per_class_bars(metrics: dict, path: str | Path, *, title: str = "") -> None:
    """Write the IoU of every class of one model as bars, best first, under S-mIoU and U-mIoU.

    Args:
        metrics: The dictionary that the metric computes.
        path: The picture to write.
        title: What the model is called.
    """
    classes = metrics["per_class"]
    best_first = sorted(classes, key=lambda name: -(class_iou(classes[name]) or 0))
    means = [f"{name} {100 * metrics[name]:.1f} %" for name in ("S-mIoU", "U-mIoU") if metrics[name] is not None]
    every = sum(entry["pixels"] for entry in classes.values()) or 1
    shown = {name: f"{name} ({100 * classes[name]['pixels'] / every:.2g} %)" for name in best_first}
    unseen = [shown[name] for name in best_first if not classes[name]["seen"]]
    ious = {shown[name]: class_iou(classes[name]) for name in best_first}
    note = "in brackets: the share of the labelled pixels"
    class_comparison({title: ious}, unseen, path, title=f"{title}: {', '.join(means)}", note=note)


def confusion_matrix(metrics: dict, path: str | Path, *, title: str = "") -> None:
    """Write what share of the pixels of each class, a row, was given to each class, a column.

    Args:
        metrics: The dictionary that the metric computes.
        path: The picture to write.
        title: What the model is called.
    """
    from matplotlib.colors import ListedColormap  # an optional dependency

    classes = metrics["per_class"]
    names = [name for name, entry in classes.items() if entry["pixels"]]
    names += [name for name in classes if name not in names and any(name in e["given_to"] for e in classes.values())]
    shares = np.array(
        [[(classes[row]["recall"] if row == name else classes[row]["given_to"].get(name)) or 0 for name in names]
         for row in names]
    ).reshape(len(names), len(names))  # fmt: skip
    side = 2.5 + 0.3 * len(names)
    figure, (panel,) = _panels(1, 1, size=(side, side))
    white_to_blue = ListedColormap(np.linspace((1, 1, 1), (0.13, 0.33, 0.55), 256))
    panel.imshow(shares, cmap=white_to_blue, vmin=0, vmax=1)
    for row, column in np.argwhere(shares >= 0.05):
        color = "white" if shares[row, column] > 0.5 else "black"
        text = f"{100 * shares[row, column]:.0f}"
        panel.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    shown = [_plain(name) + ("" if classes[name]["seen"] else " *") for name in names]
    panel.set_xticks(range(len(names)), shown, rotation=90)
    panel.set_yticks(range(len(names)), shown)
    panel.grid(False)
    panel.set_xlabel("what the model says", fontsize=9)
    panel.set_ylabel("what is there (* unseen classes)", fontsize=9)
    panel.set_title(_plain(title) + "\n% of the pixels of each row", fontsize=10)
    figure.savefig(path, dpi=130 if side < 20 else 80)


def seen_unseen_scatter(
    points: Mapping[str, Sequence[tuple[float, float]]], path: str | Path, *, title: str = ""
) -> None:
    """Write S-mIoU against U-mIoU, a marker per run and a colour per system, over lines of equal hIoU.

    Args:
        points: system -> (S-mIoU, U-mIoU) of its runs, fractions.
    """
    figure, (panel,) = _panels(1, 1, size=(6.4, 5))
    seen = np.linspace(1, 100, 400)
    for level in range(10, 100, 10):  # U = h S / (2 S - h)
        line = seen > level / 2 + 0.5
        unseen = level * seen[line] / (2 * seen[line] - level)
        panel.plot(seen[line], unseen, color="#dddddd", linewidth=0.8, zorder=1)
    palette = class_palette(len(points)) / 255
    for (system, values), color, marker in zip(points.items(), palette, cycle("osD^vP*X"), strict=False):
        x, y = 100 * np.array(values, float).T
        panel.scatter(
            x, y, s=46, color=color, marker=marker, edgecolor="black", linewidth=0.5, label=_plain(system), zorder=3
        )
    every = 100 * np.array([value for values in points.values() for value in values], float)
    panel.set_xlim(max(0, every[:, 0].min() - 5), min(100, every[:, 0].max() + 5))
    panel.set_ylim(-1, min(100, every[:, 1].max() + 5))
    panel.set_xlabel("S-mIoU (%)")
    panel.set_ylabel("U-mIoU (%); grey: equal hIoU in steps of 10")
    panel.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    panel.set_title(_plain(title), fontsize=11)
    figure.savefig(path, dpi=130)


def class_comparison(
    systems: Mapping[str, Mapping[str, float | None]],
    unseen: Sequence[str],
    path: str | Path,
    *,
    title: str = "",
    note: str = "",
) -> None:
    """Write the IoU of every class as a group of bars, one per system: unseen classes above seen ones.

    Args:
        systems: system -> class name -> IoU, a fraction; None is written out as not in this dataset. An absent
            class has no bar.
        unseen: Names of the unseen classes; the others are seen.
        path: The picture to write.
        title: What the systems were scored on.
        note: What stands below the names.
    """
    seen = [name for name in next(iter(systems.values())) if name not in unseen]
    kinds = {"unseen": list(unseen), "seen": seen}
    lines = [(kind, names[i : i + 64]) for kind, names in kinds.items() for i in range(0, len(names), 64)]
    widest, slots = max(len(names) for _, names in lines), len(systems) + 1
    figure, panels = _panels(len(lines), 1, size=(max(6.4, 1.5 + 0.09 * widest * slots), 3.2 * len(lines)))
    palette = class_palette(len(systems)) / 255
    for panel, (kind, names) in zip(panels, lines, strict=True):
        for number, (system, values) in enumerate(systems.items()):
            x = np.arange(len(names)) + (number + 0.5 - len(systems) / 2) / slots
            heights = [values.get(name) or 0 for name in names]
            panel.bar(x, heights, width=1 / slots, color=palette[number], label=_plain(system))
            for place, name in zip(x, names, strict=True):
                if values.get(name, 0) is None:
                    panel.text(place, 0.01, ABSENT, rotation=90, ha="center", va="bottom", fontsize=7, color="grey")
        panel.set_xticks(range(len(names)), list(map(_plain, names)), rotation=90 if widest > 8 else 15)
        panel.set_xlim(-0.6, len(names) - 0.4)
        panel.set_ylim(0, 1)
        panel.set_ylabel(f"IoU, {kind} classes", fontsize=8)
    if len(systems) > 1:
        panels[0].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    panels[-1].set_xlabel(note, fontsize=8)
    figure.suptitle(_plain(title), fontsize=11)
    figure.savefig(path, dpi=130)
