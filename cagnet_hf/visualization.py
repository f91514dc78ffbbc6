"""Pictures of label maps and training: overlays, legends, comparison grids, loss curves, per-class bars.

Label maps are in model order; 255 marks pixels without a label. Regions of unseen classes carry a white hatch
and outline, in pictures and legends alike, so that they are told from seen ones without knowing the colours.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import cycle, groupby
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .benchmarks import IGNORE_INDEX

INK, PAPER, UNLABELLED = (34, 34, 34), (255, 255, 255), (64, 64, 64)
SEEN_COLOR, UNSEEN_COLOR = "#4477aa", "#ee7733"
GAP = 8  # pixels between the parts of a picture

Ids = Iterable[int]
Rows = Iterable[tuple[Image.Image, np.ndarray, np.ndarray]]


@cache
def _ranked_colors() -> np.ndarray:
    """255 colours `(255, 3)` uint8, each as far in OKLab as can be from all before it."""
    levels = np.linspace(0, 255, 18).astype(np.uint8)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    to_lms = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
    to_lab = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
    lab = np.cbrt((rgb / 255) ** 2.2 @ to_lms.T) @ to_lab.T
    # No greys (pixels without a label) and nothing so light that a white hatch drowns in it.
    lightness, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    usable = (lightness > 0.42) & (lightness < 0.8) & (chroma > 0.06) & (chroma < 0.22)
    rgb, lab = rgb[usable], lab[usable]
    chosen = [int(np.linalg.norm(lab - (0.55, -0.05, -0.13), axis=1).argmin())]  # a calm blue first
    distance = np.full(len(lab), np.inf)
    while len(chosen) < 255:
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return rgb[chosen]


def class_palette(num_classes: int) -> np.ndarray:
    """Colours `(num_classes, 3)` uint8, well apart; the first n are the same for any number of classes."""
    if not 0 < num_classes <= 255:
        raise ValueError(f"a palette of {num_classes} colours: label maps have 1 to 255 classes")
    return _ranked_colors()[:num_classes].copy()


def overlay(
    image: Image.Image,
    label_map: np.ndarray,
    palette: np.ndarray,
    *,
    alpha: float = 0.6,
    unseen_ids: Ids = (),
    stroke: int | None = None,
) -> Image.Image:
    """`image` with the colours of `label_map` `(H, W)` laid over it; pixels without a label stay as they are.

    Args:
        alpha: Opacity of the colours.
        unseen_ids: Classes to mark with hatch and outline.
        stroke: Width of these in pixels; chosen from the size of the image where not given.

    Raises:
        ValueError: The sizes differ, or a label has no colour.
    """
    pixels, label_map = np.array(image.convert("RGB")), np.asarray(label_map)
    if label_map.shape != pixels.shape[:2]:
        raise ValueError(f"label map of shape {label_map.shape} over an image of shape {pixels.shape[:2]}")
    labelled = label_map != IGNORE_INDEX
    wrong = label_map[labelled & ((label_map < 0) | (label_map >= len(palette)))]
    if wrong.size:
        raise ValueError(f"label {wrong[0]} has no colour: the palette has {len(palette)}")
    pixels[labelled] = np.rint((1 - alpha) * pixels[labelled] + alpha * palette[label_map[labelled]])
    unseen = np.isin(label_map, list(unseen_ids)) & labelled
    pixels[unseen & _strokes(label_map, stroke or max(1, round(min(image.size) / 200)))] = PAPER
    return Image.fromarray(pixels)


def _strokes(label_map: np.ndarray, stroke: int) -> np.ndarray:
    """Mask `(H, W)` of diagonal lines and of the borders between regions, `stroke` pixels wide."""
    height, width = label_map.shape
    rows, columns = np.indices((height, width), sparse=True)
    mask = (rows + columns) % (9 * stroke) < stroke
    padded = np.pad(label_map, stroke, mode="edge")
    for dy, dx in ((0, stroke), (2 * stroke, stroke), (stroke, 0), (stroke, 2 * stroke)):
        mask |= padded[dy : dy + height, dx : dx + width] != label_map
    return mask


def legend(
    class_names: Sequence[str], palette: np.ndarray, seen_ids: Ids, unseen_ids: Ids, *, width: int = 480
) -> Image.Image:
    """Swatches and names of the given classes, seen and unseen ones under headings of their own.

    Args:
        class_names: Names of all classes in model order.
        seen_ids, unseen_ids: The classes to list.
        width: Width of the picture in pixels; the names flow in as many columns as fit.
    """
    font = _font(width)
    swatch, line = (round(1.7 * font.size), font.size), round(1.6 * font.size)
    groups = {"Seen classes": list(seen_ids), "Unseen classes (hatched)": list(unseen_ids)}
    names = [class_names[i] for ids in groups.values() for i in ids]
    column = swatch[0] + 3 * GAP + round(max(map(font.getlength, names), default=0))
    per_line = max(1, width // column)
    texts, swatches, y = [], [], GAP
    for heading, ids in groups.items():
        if ids:
            texts.append((0, y, heading))
        for position, i in enumerate(ids):
            left, top = position % per_line * column, y + (position // per_line + 1) * line
            swatches.append((left, top, i))
            texts.append((left + swatch[0] + GAP, top, class_names[i]))
        y = texts[-1][1] + line + GAP if ids else y
    labels = np.full((y, width), IGNORE_INDEX)
    for left, top, i in swatches:
        labels[top : top + swatch[1], left : left + swatch[0]] = i
    paper = Image.new("RGB", (width, y), PAPER)
    picture = overlay(paper, labels, palette, alpha=1, unseen_ids=groups["Unseen classes (hatched)"], stroke=1)
    draw = ImageDraw.Draw(picture)
    for left, top, text in texts:
        draw.text((left, top + swatch[1] // 2), text, fill=INK, font=font, anchor="lm")
    return picture


def overlay_with_legend(
    image: Image.Image, label_map: np.ndarray, class_names: Sequence[str], seen_ids: Ids, unseen_ids: Ids
) -> Image.Image:
    """The overlay above a legend of the classes that occur in it; a small image is enlarged."""
    image, label_map = _enlarged(image, label_map)
    palette = class_palette(len(class_names))
    listed = _occurring([label_map], seen_ids=seen_ids, unseen_ids=unseen_ids)
    picture = overlay(image, label_map, palette, unseen_ids=listed["unseen_ids"])
    return _stack([picture, legend(class_names, palette, **listed, width=max(240, image.width))])


def prediction_grid(
    rows: Rows, class_names: Sequence[str], seen_ids: Ids, unseen_ids: Ids, *, title: str = ""
) -> Image.Image:
    """Rows of image, truth and prediction above a legend of the classes that occur.

    Pixels without a label are grey in the truth; what is predicted there is not scored and shown faintly.

    Args:
        rows: (image, truth, prediction), maps `(H, W)` as large as the image. Small images are enlarged.
        class_names: Names of all classes in model order.
    """
    rows = [_enlarged(*row) for row in rows]
    if not rows:
        raise ValueError("no rows: a prediction grid needs at least one (image, truth, prediction)")
    palette = class_palette(len(class_names))
    label_maps = [label_map for _, *pair in rows for label_map in pair]
    listed = _occurring(label_maps, seen_ids=seen_ids, unseen_ids=unseen_ids)
    look = {"alpha": 1, "unseen_ids": listed["unseen_ids"]}
    cell_width = max(image.width for image, *_ in rows)
    width = 3 * cell_width + 2 * GAP
    pictures = [_headings([title], width)] if title else []
    pictures.append(_headings(["Image", "Truth", "Prediction"], width))
    for image, truth, prediction in rows:
        blank = Image.new("RGB", image.size, UNLABELLED)
        cells = [image, *(overlay(blank, m, palette, **look) for m in (truth, prediction))]
        strength = np.where(truth == IGNORE_INDEX, 56, 255).astype(np.uint8)
        cells[2] = Image.composite(cells[2], blank, Image.fromarray(strength))
        picture = Image.new("RGB", (width, image.height + GAP), PAPER)
        for column, cell in enumerate(cells):
            picture.paste(cell, (column * (cell_width + GAP) + (cell_width - cell.width) // 2, 0))
        pictures.append(picture)
    pictures.append(legend(class_names, palette, **listed, width=width))
    return _stack(pictures)


def contact_sheet(
    pairs: Iterable[tuple[Image.Image, np.ndarray, str]],
    class_names: Sequence[str],
    seen_ids: Ids,
    unseen_ids: Ids,
    *,
    columns: int = 4,
    cell: int = 280,
) -> Image.Image:
    """Overlays with captions in a grid, above a legend of the classes that occur.

    Args:
        pairs: (image, label map `(H, W)` in model order, caption).
        class_names: Names of all classes in model order.
        columns: Overlays side by side.
        cell: Width and largest height of each in pixels.
    """
    pairs, palette = list(pairs), class_palette(len(class_names))
    if not pairs:
        raise ValueError("no pairs: a contact sheet needs at least one (image, label map, caption)")
    listed = _occurring([label_map for _, label_map, _ in pairs], seen_ids=seen_ids, unseen_ids=unseen_ids)
    width = columns * cell + (columns - 1) * GAP
    pictures = []
    for start in range(0, len(pairs), columns):
        line = [_fitted(image, label_map, cell) for image, label_map, _ in pairs[start : start + columns]]
        picture = Image.new("RGB", (width, max(image.height for image, _ in line)), PAPER)
        for column, (image, label_map) in enumerate(line):
            picture.paste(
                overlay(image, label_map, palette, unseen_ids=listed["unseen_ids"]), (column * (cell + GAP), 0)
            )
        captions = [caption for *_, caption in pairs[start : start + columns]]
        pictures += [picture, _headings(captions + [""] * (columns - len(captions)), width)]
    return _stack([*pictures, legend(class_names, palette, **listed, width=width)])


def _fitted(image: Image.Image, label_map: np.ndarray, side: int) -> tuple[Image.Image, np.ndarray]:
    """Image and map, scaled so that the longer side is `side`."""
    scale = side / max(image.size)
    size = tuple(max(1, round(scale * pixels)) for pixels in image.size)
    smaller = Image.fromarray(label_map.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    return image.convert("RGB").resize(size, Image.Resampling.BILINEAR), np.asarray(smaller)


def _enlarged(image: Image.Image, *label_maps: np.ndarray) -> tuple:
    """Image and maps, repeated by a whole factor where the image is narrower than 240 pixels and not very tall."""
    factor = max(1, min(-(-240 // image.width), 4800 // image.height))
    size = (factor * image.width, factor * image.height)
    image = image.convert("RGB").resize(size, Image.Resampling.NEAREST)
    return image, *(np.asarray(label_map).repeat(factor, 0).repeat(factor, 1) for label_map in label_maps)


def _occurring(label_maps: Iterable[np.ndarray], **ids: Ids) -> dict[str, list[int]]:
    """The groups of class ids, reduced to those in the maps."""
    present = set().union(*(np.unique(label_map).tolist() for label_map in label_maps))
    return {group: [i for i in members if i in present] for group, members in ids.items()}


def _font(width: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=max(14, width // 66))


def _headings(texts: Sequence[str], width: int) -> Image.Image:
    """A line of texts, each centred over its share of the width."""
    font = _font(width)
    picture = Image.new("RGB", (width, 2 * font.size), PAPER)
    draw = ImageDraw.Draw(picture)
    for column, text in enumerate(texts):
        centre = (width * (2 * column + 1) / (2 * len(texts)), picture.height / 2)
        draw.text(centre, text, fill=INK, font=font, anchor="mm")
    return picture


def _stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, with a margin."""
    height, width = sum(picture.height for picture in pictures), max(picture.width for picture in pictures)
    sheet = Image.new("RGB", (width + 2 * GAP, height + 2 * GAP), PAPER)
    y = GAP
    for picture in pictures:
        sheet.paste(picture, (GAP, y))
        y += picture.height
    return sheet


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
    """Write one panel per loss (values faint, running mean strong), the stages told apart by shading.

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
                style = {"color": SEEN_COLOR, "marker": "." if y.size < 20 else None}
                panel.plot(x[present], y, alpha=0.3, linewidth=1, **style)
                panel.plot(x[present], mean, linewidth=1.6, **style)
            panel.axvspan(start, x[-1], color="#888888", alpha=0.16 if number % 2 else 0, linewidth=0)
            # Names of neighbours stand on two levels, for stages may be short.
            place = ((start + x[-1]) / 2, 1.02 + 0.06 * (number % 2))
            panel.text(*place, stage, transform=panel.get_xaxis_transform(), ha="center", fontsize=7)
        panel.set_title(name.removeprefix("loss/").replace("_", " "), fontsize=10, pad=22)
        panel.set_xlabel("iteration", fontsize=8)
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
    """Write the IoU of every class as bars, seen then unseen, best first, with S-mIoU and U-mIoU as lines.

    Args:
        metrics: The dictionary the metric computes. A class whose IoU is None is marked n/a.
    """
    classes = [(name, entry["iou"], entry["seen"]) for name, entry in metrics["per_class"].items()]
    classes.sort(key=lambda entry: (not entry[2], entry[1] is None, -(entry[1] or 0)))
    lines = -(-len(classes) // 64)
    per_line = -(-len(classes) // lines)
    figure, panels = _panels(lines, 1, size=(max(6, 1.2 + 0.2 * per_line), 0.6 + 3 * lines))
    for number, panel in enumerate(panels):
        chunk = classes[number * per_line : (number + 1) * per_line]
        for x, (_, iou, seen) in enumerate(chunk):
            look = {"color": SEEN_COLOR} if seen else {"color": UNSEEN_COLOR, "hatch": "///"}
            panel.bar(x, iou or 0, width=0.75, edgecolor="white", linewidth=0, **look)
            if iou is None:
                panel.text(x, 0.01, "n/a", rotation=90, ha="center", va="bottom", fontsize=7, color="grey")
        for name, color in (("S-mIoU", "#223c58"), ("U-mIoU", "#a34208")):
            if metrics[name] is not None:
                label = f"{name} {100 * metrics[name]:.1f} %"
                panel.axhline(metrics[name], color=color, linestyle="--", linewidth=1.2, label=label)
        panel.set_xticks(range(len(chunk)), [name for name, *_ in chunk], rotation=90)
        panel.set_xlim(-0.7, per_line - 0.3)
        panel.set_ylim(0, 1)
        panel.set_ylabel("IoU", fontsize=8)
    panels[0].legend(loc="upper right", ncols=2, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)


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
        panel.scatter(x, y, s=46, color=color, marker=marker, edgecolor="black", linewidth=0.5, label=system, zorder=3)
    every = 100 * np.array([value for values in points.values() for value in values], float)
    panel.set_xlim(max(0, every[:, 0].min() - 5), min(100, every[:, 0].max() + 5))
    panel.set_ylim(-1, min(100, every[:, 1].max() + 5))
    panel.set_xlabel("S-mIoU (%)")
    panel.set_ylabel("U-mIoU (%); grey: equal hIoU in steps of 10")
    panel.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    panel.set_title(title, fontsize=11)
    figure.savefig(path, dpi=130)


def class_comparison(
    systems: Mapping[str, Mapping[str, float | None]], unseen: Sequence[str], path: str | Path, *, title: str = ""
) -> None:
    """Write the IoU of every class as a group of bars, one per system: unseen classes above seen ones.

    Args:
        systems: system -> class name -> IoU, a fraction; None and absent classes have no bar.
        unseen: Names of the unseen classes; the others are seen.
    """
    seen = [name for name in next(iter(systems.values())) if name not in unseen]
    widest = max(len(unseen), len(seen))
    figure, panels = _panels(2, 1, size=(max(6.4, 1.5 + 0.09 * widest * (len(systems) + 2)), 6.4))
    palette = class_palette(len(systems)) / 255
    for panel, kind, names in zip(panels, ("unseen", "seen"), (unseen, seen), strict=True):
        for number, (system, values) in enumerate(systems.items()):
            offset = (number + 0.5) / (len(systems) + 2) - 0.5 + 1 / (len(systems) + 2)
            heights = [values.get(name) or 0 for name in names]
            x = np.arange(len(names)) + offset
            panel.bar(x, heights, width=1 / (len(systems) + 2), color=palette[number], label=system)
        panel.set_xticks(range(len(names)), names, rotation=90 if widest > 8 else 15)
        panel.set_xlim(-0.6, len(names) - 0.4)
        panel.set_ylim(0, 1)
        panel.set_ylabel(f"IoU, {kind} classes", fontsize=8)
    panels[0].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
