"""What the labels of a dataset mean: the one place that reads masks, and maps stored ids to model order and back.

A *stored id* is the number in a mask of the dataset, 0 to 254. *Model order* is what the package computes with: the
seen classes first, then the unseen ones, numbered from 0. Training, evaluation and prediction all use `LabelSpace`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image

from .names import did_you_mean

UNLABELLED = 255  # the stored id of a pixel without a label
_COLOR_MODES, _ID_MODES = ("RGB", "RGBA"), ("L", "P", "I", "I;16")


@dataclass(frozen=True)
class LabelSpace:
    """The labels of a dataset or of a model. Without any class, masks may hold any id.

    Attributes:
        class_ids: Stored ids in model order.
        num_seen: How many of the classes are seen.
        ignored_ids: Stored ids that are no class, such as background.
        ignore_index: What model order calls a pixel without a class.
        names: Names by stored id, those of ignored ids, too.
        colors: By stored id, what masks of colours show; without them the colours of the PASCAL palette.
        label_map: For masks that count otherwise, their id -> a class, by name or stored id, or None for unlabelled.
            Then no other id may occur in a mask but 255.
        benchmark: What an error calls these classes.
        table: What an error calls the place where classes are named.

    Raises:
        ValueError: The label map names no class, or stands beside colours.
    """

    class_ids: tuple[int, ...] = ()
    num_seen: int = 0
    ignored_ids: tuple[int, ...] = ()
    ignore_index: int = UNLABELLED
    names: Mapping[int, str] = field(default_factory=dict)
    colors: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    label_map: Mapping[int, str | int | None] = field(default_factory=dict)
    benchmark: str = "this dataset"
    table: str = "a class table (benchmark=FILE.yaml)"

    def __post_init__(self):
        if self.label_map and self.colors:
            raise ValueError(f"label_map: the classes of {self.benchmark} have colors, which say it already")
        by_name = {name: stored_id for stored_id, name in self.names.items()}
        for theirs, ours in self.label_map.items():
            if ours not in (*by_name, *self.names, UNLABELLED, None):
                hint = did_you_mean(ours, by_name)
                raise ValueError(f"label_map: {theirs} means {ours!r}, which is no class of {self.benchmark}{hint}")
            if not 0 <= theirs <= UNLABELLED:
                raise ValueError(f"label_map: {theirs} is no id from 0 to {UNLABELLED}")

    @classmethod
    def of(cls, config) -> "LabelSpace":
        """The labels of a model's configuration.

        Raises:
            ValueError: The model has more classes than stored masks, which are bytes, can tell apart.
        """
        if max(config.dataset_ids) >= UNLABELLED:
            raise ValueError(
                f"the model has {config.num_labels} classes with ids up to {max(config.dataset_ids)}, "
                f"but stored masks are bytes: they show ids from 0 to {UNLABELLED - 1}"
            )
        return cls(
            tuple(config.dataset_ids), len(config.seen_ids), tuple(config.ignored_dataset_ids), config.ignore_index
        )

    def read(self, mask: Image.Image, source: str) -> np.ndarray:
        """The stored ids `(H, W)` uint8 of a mask as it was decoded.

        Grey masks hold ids, and so does the palette of a palette image; but its colours count where the classes have
        some. RGB masks show these colours, or else those of the PASCAL palette, whose pale border is 255.

        Args:
            mask: The picture.
            source: What an error calls the mask (a file name or image id).

        Raises:
            ValueError: The mask is of another kind, or shows a colour or an id that means nothing.
        """
        if mask.format == "JPEG":
            raise ValueError(f"{source}: a JPEG does not keep the ids of a mask; save it as PNG")
        if mask.mode in _COLOR_MODES or (mask.mode == "P" and self.colors):
            ids = self._ids_of_colors(np.asarray(mask.convert("RGB")), source)
        elif mask.mode in _ID_MODES:
            ids = np.array(mask)
            if ids.dtype != np.uint8:
                wrong = ids[(ids < 0) | (ids > UNLABELLED)]
                if wrong.size:
                    raise ValueError(f"{source}: label {wrong[0]} is no id from 0 to {UNLABELLED}")
                ids = ids.astype(np.uint8)
        else:
            raise ValueError(f"{source}: mode {mask.mode}; a mask must be a grey, palette or RGB image")
        if not self.label_map:
            return ids
        known, stored_ids = self._mapped_ids
        _refuse_unknown(ids, known, source, "label_map", "add it there, with null where it is no class")
        return stored_ids[ids]

    def to_model_order(self, labels, *, hide_unseen: bool = False, source: str = "mask") -> np.ndarray:
        """Stored ids `(H, W)` -> model order, uint8, or int64 where `ignore_index` is no byte; nothing is changed.

        Args:
            labels: Stored ids, an array or a tensor of uint8.
            hide_unseen: Map unseen classes to `ignore_index`, as in training.
            source: What an error calls the labels (a file name or image id).

        Raises:
            ValueError: There is an id outside the label set.
        """
        labels = np.asarray(labels)
        if labels.dtype != np.uint8 or labels.ndim != 2:
            raise ValueError(f"{source}: a mask is a 2-d uint8 array, got {labels.dtype} of shape {labels.shape}")
        known, every_class, seen_classes = self._model_order
        way_out = f"add it under classes and `ignored` in {self.table}"
        _refuse_unknown(labels, known, source, "the label set", way_out)
        return (seen_classes if hide_unseen else every_class)[labels]

    def to_stored_ids(self, prediction) -> np.ndarray:
        """Model order `(H, W)` -> stored ids, uint8; a pixel of no class is 255 in both."""
        stored_ids = np.full(UNLABELLED + 1, UNLABELLED, np.uint8)
        stored_ids[: len(self.class_ids)] = self.class_ids
        return stored_ids[np.asarray(prediction)]

    @cached_property
    def _model_order(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By stored id, `(256,)` each: whether it is known, model order, model order with unseen classes hidden."""
        known = np.zeros(256, bool)
        known[[*self.class_ids, *self.ignored_ids, UNLABELLED]] = True
        every_class = np.full(256, self.ignore_index, np.uint8 if 0 <= self.ignore_index < 256 else np.int64)
        every_class[list(self.class_ids)] = np.arange(len(self.class_ids))
        seen_classes = every_class.copy()
        seen_classes[list(self.class_ids[self.num_seen :])] = self.ignore_index
        return known, every_class, seen_classes

    @cached_property
    def _mapped_ids(self) -> tuple[np.ndarray, np.ndarray]:
        """By the id of a mask that counts otherwise, `(256,)` each: whether it may occur, and the stored id."""
        by_name = {name: stored_id for stored_id, name in self.names.items()} | {None: UNLABELLED}
        known, stored_ids = np.zeros(256, bool), np.full(256, UNLABELLED, np.uint8)
        for theirs, ours in self.label_map.items():
            stored_ids[theirs] = by_name.get(ours, ours)
        known[[*self.label_map, UNLABELLED]] = True
        return known, stored_ids

    @cached_property
    def _color_codes(self) -> tuple[np.ndarray, np.ndarray]:
        """The colours that may occur, as sorted numbers, and their stored ids."""
        ids = [*(range(UNLABELLED) if self.label_map or not self.names else self.names), UNLABELLED]
        palette = pascal_palette()
        colors = np.array([self.colors.get(i, palette[i]) for i in ids], np.uint8)
        codes, first = np.unique(_codes(colors), return_index=True)
        return codes, np.array(ids, np.uint8)[first]

    def _ids_of_colors(self, pixels: np.ndarray, source: str) -> np.ndarray:
        """Colours `(H, W, 3)` -> stored ids `(H, W)`."""
        known, ids = self._color_codes
        codes = _codes(pixels)
        rows = np.searchsorted(known, codes).clip(max=len(known) - 1)
        unknown = pixels[known[rows] != codes]
        if len(unknown):
            whose = "" if self.colors else " in the PASCAL palette"
            raise ValueError(
                f"{source}: color {unknown[0].tolist()} belongs to no class{whose}; "
                f"give each class its color in {self.table}"
            )
        return ids[rows]


def nothing_to_learn(ids: Sequence[int]) -> str:
    """What to say of training masks that hold these ids and none of a seen class."""
    hint = ""
    if UNLABELLED in ids:
        hint = (
            f"; {UNLABELLED} means unlabelled: where it is a binary mask's foreground, save the foreground as the id "
            f"of its class, or train with label_map={{{UNLABELLED}: NAME}}"
        )
    return f"no training mask has a pixel of a seen class, they hold {', '.join(map(str, ids))}{hint}"


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


def _refuse_unknown(labels: np.ndarray, known: np.ndarray, source: str, where: str, way_out: str) -> None:
    if not known[labels].all():
        raise UnknownIdsError(source, where, np.unique(labels[~known[labels]]).tolist(), way_out)


class UnknownIdsError(ValueError):
    """A mask holds ids that mean nothing. `faults` has a line for each id, of all masks that hold the id: their number
    and the first of them are to be written for `{}`."""

    def __init__(self, source: str, where: str, ids: Sequence[int], way_out: str):
        super().__init__(f"{source}: label {ids[0]} is not in {where} (unknown ids: {ids}); {way_out}")
        self.faults = [f"id {stored_id} is in {{}} masks (first: {{}}): {way_out}" for stored_id in ids]
