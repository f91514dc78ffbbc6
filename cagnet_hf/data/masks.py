"""What a mask shows, pixel by pixel: ids, colours of a palette, or numbers of its own -> stored ids of a benchmark."""

import difflib
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from .benchmarks import IGNORE_INDEX, Benchmark

_COLORS = ("RGB", "RGBA")
_IDS = ("L", "P", "I", "I;16")


class MaskReader:
    """Masks of images -> stored ids `(H, W)` uint8.

    Grey masks hold ids, and so does the palette of a palette image; but its colours count where the benchmark's class
    table has some. RGB masks show these colours, or else those of the PASCAL palette, whose pale border is 255.

    Args:
        benchmark: What the ids mean. Without one, any id and any colour of the PASCAL palette is read.
        label_map: For a dataset of other ids: its id -> a class of `benchmark`, by name or id, or None for unlabelled.
            Then no other id may occur but 255.
        where: What to call the class table in an error.

    Raises:
        ValueError: The label map names no class, or stands beside colours.
    """

    def __init__(
        self,
        benchmark: Benchmark | None = None,
        label_map: Mapping[int, str | int | None] | None = None,
        *,
        where: str = "a class table (benchmark=FILE.yaml)",
    ):
        colors = {} if benchmark is None else benchmark.colors
        if label_map and colors:
            raise ValueError(f"label_map: the classes of {benchmark.name} have colors, which say it already")
        known = range(IGNORE_INDEX)
        if benchmark is not None and not label_map:
            known = [i for i, name in enumerate(benchmark.label_names) if name]
        self._colors = ColorTable(known, colors, where)
        self._ids = _id_table(benchmark, label_map) if label_map else None

    def shows_colors(self, mask: Image.Image) -> bool:
        return mask.mode in _COLORS or (mask.mode == "P" and self._colors.is_given)

    def __call__(self, mask: Image.Image, name: str) -> np.ndarray:
        """Stored ids of a mask; `name` is what an error calls it.

        Raises:
            ValueError: The mask is of another kind, or shows a colour or an id that means nothing.
        """
        if self.shows_colors(mask):
            ids = self._colors(np.asarray(mask.convert("RGB")), name)
        elif mask.mode in _IDS:
            ids = np.asarray(mask)
            if ids.dtype != np.uint8:
                wrong = ids[(ids < 0) | (ids > IGNORE_INDEX)]
                if wrong.size:
                    raise ValueError(f"{name}: label {wrong[0]} is no id from 0 to {IGNORE_INDEX}")
                ids = ids.astype(np.uint8)
        else:
            raise ValueError(f"{name}: mode {mask.mode}; a mask must be a grey, palette or RGB image")
        if self._ids is None:
            return ids
        mapped = self._ids[ids]
        if mapped.min(initial=0) < 0:
            wrong = np.unique(ids[mapped < 0]).tolist()
            raise ValueError(f"{name}: label {wrong[0]} is not in label_map (unknown ids: {wrong})")
        return mapped.astype(np.uint8)


class ColorTable:
    """Colours `(H, W, 3)` -> stored ids: given ones, else the PASCAL palette's.

    Args:
        ids: The ids that occur, besides 255.
        colors: By id; empty for the PASCAL palette.
        where: The class table, for errors.
    """

    def __init__(self, ids: Iterable[int], colors: Mapping[int, tuple[int, int, int]], where: str):
        self.where, self.is_given = where, bool(colors)
        palette, ids = pascal_palette(), list(ids)
        rgb = [*(colors.get(i, palette[i]) for i in ids), palette[IGNORE_INDEX]]
        self.codes, first = np.unique(_codes(np.array(rgb, np.uint8)), return_index=True)
        self.ids = np.array([*ids, IGNORE_INDEX], np.uint8)[first]

    def __call__(self, pixels: np.ndarray, name: str) -> np.ndarray:
        codes = _codes(pixels)
        rows = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        unknown = pixels[self.codes[rows] != codes]
        if len(unknown):
            color = f"{unknown[0].tolist()} belongs to no class{'' if self.is_given else ' in the PASCAL palette'}"
            raise ValueError(f"{name}: color {color}; give each class its color in {self.where}")
        return self.ids[rows]


def pascal_palette() -> np.ndarray:
    """The colours `(256, 3)` uint8 that Pascal VOC gives to ids; 255, the border of objects, is a pale yellow."""
    ids = np.arange(256)
    colors = np.zeros((256, 3), np.uint8)
    for level in range(8):  # three bits of the id each: one to red, one to green, one to blue
        for channel in range(3):
            colors[:, channel] |= ((ids >> (3 * level + channel) & 1) << (7 - level)).astype(np.uint8)
    return colors


def _codes(pixels: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _id_table(benchmark: Benchmark, label_map: Mapping[int, str | int | None]) -> np.ndarray:
    """`(256,)` int16: what each id of the dataset becomes; -1 for ids that must not occur."""
    by_name = {name: i for i, name in enumerate(benchmark.label_names) if name}
    table = np.full(256, -1, np.int16)
    table[IGNORE_INDEX] = IGNORE_INDEX
    for theirs, ours in label_map.items():
        stored_id = by_name.get(ours) if isinstance(ours, str) else IGNORE_INDEX if ours is None else ours
        if stored_id not in (*by_name.values(), IGNORE_INDEX):
            near = difflib.get_close_matches(str(ours), by_name, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"label_map: {theirs} means {ours!r}, which is no class of {benchmark.name}{hint}")
        if not 0 <= theirs <= IGNORE_INDEX:
            raise ValueError(f"label_map: {theirs} is no id from 0 to {IGNORE_INDEX}")
        table[theirs] = stored_id
    return table
