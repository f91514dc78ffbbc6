"""Pictures of label maps: overlays, legends, comparison grids, contact sheets.

Label maps are in model order; 255 marks pixels without a label. Regions of unseen classes carry a white hatch
and outline, in pictures and legends alike, so that they are told from seen ones without knowing the colours.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from ..data.label_space import UNLABELLED
from ..data.names import printable
from ..files import whole
from ..model.configuration_cagnet import NONE_OF_THESE

INK, PAPER, BLANK = (34, 34, 34), (255, 255, 255), (64, 64, 64)
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


def save_picture(picture: Image.Image, path: Path, mark: str) -> None:
    """Write a PNG file, whole, that carries a mark (see `files.made_by`)."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", mark)
    with whole(path) as aside:
        picture.save(aside, "PNG", pnginfo=info)


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
    labelled = label_map != UNLABELLED
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
    class_names: Sequence[str],
    palette: np.ndarray,
    seen_ids: Ids,
    unseen_ids: Ids,
    *,
    none_of_these: bool = False,
    width: int = 480,
) -> Image.Image:
    """Swatches and names of the given classes, seen and unseen ones under headings of their own.

    Args:
        class_names: Names of all classes in model order.
        seen_ids, unseen_ids: The classes to list.
        none_of_these: List, by an empty swatch, the pixels that are given to no class.
        width: Width of the picture in pixels; the names flow in as many columns as fit.
    """
    font = _font(width)
    swatch, line = (round(1.7 * font.size), font.size), round(1.6 * font.size)
    groups = {"Seen classes": list(seen_ids), "Unseen classes (hatched)": list(unseen_ids)}
    class_names = [printable(name).replace("_", " ") for name in class_names]
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
    if none_of_these:
        texts.append((swatch[0] + GAP, y, NONE_OF_THESE))
        empty, y = [0, y, swatch[0] - 1, y + swatch[1] - 1], y + line + GAP
    labels = np.full((y, width), UNLABELLED)
    for left, top, i in swatches:
        labels[top : top + swatch[1], left : left + swatch[0]] = i
    paper = Image.new("RGB", (width, y), PAPER)
    picture = overlay(paper, labels, palette, alpha=1, unseen_ids=groups["Unseen classes (hatched)"], stroke=1)
    draw = ImageDraw.Draw(picture)
    if none_of_these:
        draw.rectangle(empty, outline=BLANK)
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
    listed["none_of_these"] = (label_map == UNLABELLED).any()
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
        blank = Image.new("RGB", image.size, BLANK)
        cells = [image, *(overlay(blank, m, palette, **look) for m in (truth, prediction))]
        strength = np.where(truth == UNLABELLED, 56, 255).astype(np.uint8)
        cells[2] = Image.composite(cells[2], blank, Image.fromarray(strength))
        pictures.append(_side_by_side(cells, cell_width))
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
        line = pairs[start : start + columns]
        fitted = (_fitted(image, label_map, cell) for image, label_map, _ in line)
        cells = [overlay(*pair, palette, unseen_ids=listed["unseen_ids"]) for pair in fitted]
        captions = [caption for *_, caption in line] + [""] * (columns - len(line))
        pictures += [_side_by_side(cells, cell), _headings(captions, width)]
    return _stack([*pictures, legend(class_names, palette, **listed, width=width)])


def _fitted(image: Image.Image, label_map: np.ndarray, side: int) -> tuple[Image.Image, np.ndarray]:
    """Image and map, scaled so that the longer side is `side`."""
    scale = side / max(image.size)
    size = tuple(max(1, round(scale * pixels)) for pixels in image.size)
    smaller = Image.fromarray(label_map.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    return image.convert("RGB").resize(size, Image.Resampling.BILINEAR), np.asarray(smaller)


def _enlarged(image: Image.Image, *label_maps: np.ndarray) -> tuple:
    """Image and maps, repeated by a whole factor where no side of the image has 240 pixels."""
    factor = -(-240 // max(image.size))
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
        draw.text(centre, printable(text), fill=INK, font=font, anchor="mm")
    return picture


def _side_by_side(pictures: Sequence[Image.Image], cell: int) -> Image.Image:
    """Pictures in cells of one width, above a gap."""
    size = len(pictures) * (cell + GAP) - GAP, max(picture.height for picture in pictures) + GAP
    line = Image.new("RGB", size, PAPER)
    for column, picture in enumerate(pictures):
        line.paste(picture, (column * (cell + GAP), 0))
    return line


def _stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, with a margin."""
    width = max(picture.width for picture in pictures)
    sheet = Image.new("RGB", (width + 2 * GAP, sum(picture.height for picture in pictures) + 2 * GAP), PAPER)
    y = GAP
    for picture in pictures:
        sheet.paste(picture, (GAP, y))
        y += picture.height
    return sheet
