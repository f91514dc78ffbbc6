"""Features of a resting backbone, computed once: kept in a file that is read as memory, and trained on from there."""

import hashlib
import json
import logging
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..data.label_space import LabelSpace
from ..data.rows import Rows, StreamedRows
from ..data.transforms import Augmentation
from ..evaluation.scoring import batches_of_equal_size
from ..files import lock_file
from ..methods.options import PassRecipe, Recipe, RecipeError
from ..model.backbones_cagnet import BACKBONES
from ..model.image_processing_cagnet import CaGNetImageProcessor, fit_size
from ..model.maps_cagnet import centre_labels
from ..model.modeling_cagnet import CaGNetForSemanticSegmentation, CaGNetModel

logger = logging.getLogger(__name__)

FEATURES = "features"  # the folder of the caches, in the folder of a run or of a comparison
FORMAT = 2
BATCH = 8
# Images whose batches are formed together. Of these a killed run leaves all or none, so that the batches after a kill
# are those of a run that nobody killed: what else is in a batch moves the last digits of a map.
TOGETHER = 256
WAIT_SECONDS = 0.5
ID_BYTES = 2  # of a stored id


class Record(NamedTuple):
    """What the cache holds of an image.

    Attributes:
        start: Where the record begins in the file, in bytes.
        shape: `(F, h, w)`: F is 2 where a map of the mirrored image follows the map of the image.
        checksum: CRC-32 of the bytes.
        row: The number of the image in this process's share.
        id: What the image is called.
    """

    start: int
    shape: tuple[int, int, int]
    checksum: int
    row: int
    id: str


class FeatureCache:
    """Maps of a resting backbone, one for each image of this process, and the labels of their cells.

    The folder holds `cells.bin`, a record for each image: the map `(F, h, w, C)` and the stored ids `(h, w)` at the
    centres of the cells; and `index.jsonl`, whose first line says what the features depend on, and whose other lines
    say where the records are. What a killed run has computed is kept, but for the last images (see `TOGETHER`).

    Args:
        folder: The folder of this cache; see `cache_folder`.
        channels: C.
        labels: The labels of the model.
        hide_unseen: Map unseen classes to `ignore_index`.
        dtype: Of the maps.
    """

    def __init__(self, folder: Path, channels: int, labels: LabelSpace, *, hide_unseen: bool, dtype=np.float16):
        self.folder, self.channels, self.labels, self.hide_unseen = folder, channels, labels, hide_unseen
        self.dtype = np.dtype(dtype)
        self.cells, self.index = folder / "cells.bin", folder / "index.jsonl"
        self.records: list[Record] = []
        self._memory: np.ndarray | None = None

    def __getstate__(self) -> dict:
        """Without the bytes of the file, which a process that is not forked would get a copy of."""
        return self.__dict__ | {"_memory": None}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The maps `(F, C, h, w)` of an image and the labels `(h, w)` of their cells in model order."""
        record = self.records[number]
        maps, stored = self._parts(record)
        source = f"mask of {record.id}"
        labels = self.labels.to_model_order(stored.astype(np.uint8), hide_unseen=self.hide_unseen, source=source)
        return torch.from_numpy(maps).permute(0, 3, 1, 2), torch.from_numpy(labels)

    def in_order(self) -> Iterator[torch.Tensor]:
        """The map `(C, h, w)` of every image, not mirrored, in the order of the images."""
        for number in sorted(range(len(self)), key=lambda number: self.records[number].row):
            yield torch.from_numpy(self._parts(self.records[number])[0][0]).movedim(-1, 0)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return (self[number] for number in range(len(self)))

    def image_ids(self, numbers: Sequence[int]) -> list[str]:
        """What the images of these records are called."""
        return [self.records[number].id for number in numbers]

    def _bytes(self, shape: tuple[int, int, int]) -> int:
        copies, height, width = shape
        return height * width * (copies * self.channels * self.dtype.itemsize + ID_BYTES)

    def _parts(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        """The maps `(F, h, w, C)` and the stored ids `(h, w)` of a record, in memory of their own."""
        copies, height, width = record.shape
        if self._memory is None:
            self._memory = np.memmap(self.cells, np.uint8, "r")
        data = self._memory[record.start : record.start + self._bytes(record.shape)].copy()
        cells = copies * height * width * self.channels * self.dtype.itemsize
        maps = data[:cells].view(self.dtype).reshape(copies, height, width, self.channels)
        return maps, data[cells:].view(np.uint16).reshape(height, width)

    # Writing

    def open(self, depends_on: dict) -> IO | None:
        """Read what is there.

        Args:
            depends_on: What the features depend on.

        Returns:
            None where the cache is whole; else the index, open and locked, for `fill`. Where another process is
            writing this cache, its end is waited for.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        index = self.index.open("a+", encoding="utf-8")
        if not lock_file(index):
            logger.info("Waiting for another process that is computing %s", self.folder)
            while not lock_file(index):
                time.sleep(WAIT_SECONDS)
        index.seek(0)
        whole = self._read(index.read().splitlines(keepends=True), depends_on)
        if whole:
            index.close()
            return None
        index.truncate(0)
        index.write(json.dumps(depends_on) + "\n")
        index.writelines(_line(record) for record in self.records)
        index.flush()
        end = self._end()
        with self.cells.open("ab") as cells:
            cells.truncate(end)
        return index

    def _read(self, lines: list[str], depends_on: dict) -> bool:
        """Take over the records that are whole; returns whether all are there."""
        self.records, ended = [], False
        try:
            if lines and json.loads(lines[0]) != depends_on:
                raise ValueError("other features")
            for line in lines[1:]:
                if not line.endswith("\n"):  # a process was killed while writing
                    break
                entry = json.loads(line)
                if entry == {"images": len(self.records)}:
                    ended = True
                    break
                self.records.append(Record(entry[0], tuple(entry[1]), *entry[2:]))
            size = self.cells.stat().st_size if self.records else 0
            if self._end() > size:
                raise ValueError("cells are missing")
            self._memory = np.memmap(self.cells, np.uint8, "r") if self.records else None
            if not ended:
                del self.records[len(self.records) // TOGETHER * TOGETHER :]
                if {record.row for record in self.records} != set(range(len(self.records))):
                    raise ValueError("other batches")
            for record in self.records:
                data = self._memory[record.start : record.start + self._bytes(record.shape)]
                if zlib.crc32(data) != record.checksum:
                    raise ValueError(f"the cells of {record.id} are damaged")
        except (ValueError, TypeError, IndexError, KeyError, OSError) as error:
            logger.warning("%s: %s: computed anew", self.folder, error)
            self.records, self._memory, ended = [], None, False
        return ended

    def _end(self) -> int:
        return self.records[-1].start + self._bytes(self.records[-1].shape) if self.records else 0

    def fill(self, index: IO, examples: Iterable[tuple[int, str, np.ndarray, np.ndarray]]) -> None:
        """Write the records of (row, id, maps `(F, h, w, C)`, stored ids `(h, w)`), and that these are all."""
        with index, self.cells.open("ab") as cells:
            start = self._end()
            for row, image_id, maps, stored in examples:
                data = maps.astype(self.dtype).tobytes() + stored.astype(np.uint16).tobytes()
                record = Record(start, maps.shape[:3], zlib.crc32(data), row, image_id)
                cells.write(data)
                cells.flush()  # before the line that speaks of it
                index.write(_line(record))
                index.flush()
                self.records.append(record)
                start += len(data)
            if not self.records:
                raise ValueError("the training split is empty")
            index.write(json.dumps({"images": len(self.records)}) + "\n")
        self._memory = np.memmap(self.cells, np.uint8, "r")


def _line(record: Record) -> str:
    return json.dumps(list(record)) + "\n"


def check_feature_cache(recipe: Recipe, models: dict[str, CaGNetForSemanticSegmentation]) -> None:
    """Refuse stages that cannot be trained on features that were computed once.

    Raises:
        RecipeError: A stage trains the backbone, scales images, or looks at neighbours of single cells.
    """
    if recipe.feature_cache is None:
        return
    for name, stage in recipe.stages.items():
        if isinstance(stage, PassRecipe):
            if stage.images_without_unseen:
                raise RecipeError(
                    f"stages.{name}.images_without_unseen: cells do not tell what else an image shows: leave out "
                    "feature_cache"
                )
            continue
        config = models[name].config
        augmentation = stage.augmentation or recipe.augmentation
        if stage.network is not None and stage.network.multipliers.get("backbone", 1):
            raise RecipeError(
                f"stages.{name}.network trains the backbone, whose features are computed once: "
                "set multipliers.backbone=0, or leave out feature_cache"
            )
        if len(stage.scales) > 1 or tuple(augmentation.scale_range) != (1, 1):
            raise RecipeError(
                f"stages.{name}: features are computed at one scale: set scales=[1.0] and "
                "augmentation.scale_range=[1, 1], or leave out feature_cache"
            )
        if stage.pseudo_labels is not None and len(config.test_scales) > 1:
            raise RecipeError(f"stages.{name}.pseudo_labels: features are computed at one scale, not at test_scales")
        alone = config.aspp == "none" and not config.contextual and models[name].classifier.neighbourhood == 1
        if recipe.feature_cache.cells_per_image is not None and not alone:
            raise RecipeError(
                "feature_cache.cells_per_image: this network looks at neighbours of a cell, which are not kept; "
                "it needs aspp=none, contextual=false, patch_size=1"
            )


def cached_features(
    recipe: Recipe,
    place: Path,
    rows: Rows | StreamedRows,
    model: CaGNetForSemanticSegmentation,
    processor: CaGNetImageProcessor,
    accelerator: Accelerator,
    *,
    scored: bool = False,
) -> FeatureCache:
    """The features of this process's images; computed where they are not there yet.

    Args:
        place: The folder of caches, unless the recipe names one.
        rows: The images.
        model: With the resting backbone.
        scored: The images are those that the model is scored on. Their maps are whole and exact, not mirrored, and
            lie in the order of the images.

    Raises:
        RecipeError: They do not fit on the disk.
    """
    options, network = recipe.feature_cache, model.cagnet
    cells_per_image = None if scored else options.cells_per_image
    flips = (
        not scored
        and cells_per_image is None
        and any((stage.augmentation or recipe.augmentation).flip_probability > 0 for stage in recipe.stages.values())
    )
    maps = FeatureMaps(network, processor, cells_per_image, flips=flips)
    dtype = np.float32 if scored else np.float16
    depends_on = _dependencies(maps, rows, accelerator) | {"dtype": np.dtype(dtype).name}
    digest = hashlib.blake2b(json.dumps(depends_on, sort_keys=True).encode(), digest_size=8).hexdigest()
    folder = Path(options.folder or place) / digest
    channels, labels = network.backbone.num_channels, LabelSpace.of(model.config)
    cache = FeatureCache(folder, channels, labels, hide_unseen=not recipe.supervised, dtype=dtype)
    index = cache.open(depends_on)
    if index is None:
        logger.info("Features of %d images are in %s", len(cache), folder)
        return cache
    process, processes = accelerator.process_index, accelerator.num_processes
    total = len(range(process, len(rows), processes)) if isinstance(rows, Rows) else None
    _check_size(cache, total, maps, processes)
    known = len(cache)
    bar = tqdm(total=total, initial=known, desc="features", unit="image", disable=not accelerator.is_main_process)
    with bar:
        cache.fill(index, maps.of(_numbered(rows, process, processes, known), bar))
    return cache


def _numbered(rows: Rows | StreamedRows, process: int, processes: int, known: int) -> Iterator[tuple]:
    """(number, sample) of a process's share, without the first ones, which are known."""
    if isinstance(rows, Rows):  # what is known need not be decoded
        shares = range(process, len(rows), processes)
        yield from ((number, rows[shares[number]]) for number in range(known, len(shares)))
    else:
        yield from islice(enumerate(rows.share(process, processes)), known, None)


class FeatureMaps:
    """Computes maps of a backbone, those of several images of one size at once.

    Args:
        cells_per_image: How many cells to keep, drawn by the number of the image; all when None.
        flips: Make a map of the mirrored image, too.
    """

    def __init__(
        self, network: CaGNetModel, processor: CaGNetImageProcessor, cells_per_image: int | None, *, flips: bool
    ):
        self.network, self.processor, self.cells_per_image, self.flips = network, processor, cells_per_image, flips

    @torch.no_grad()
    def of(self, samples: Iterable, bar: tqdm) -> Iterator[tuple[int, str, np.ndarray, np.ndarray]]:
        """(number, id, maps `(F, h, w, C)`, stored ids `(h, w)`) of (number, sample); drawn cells are a map of one
        row."""
        backbone, device = self.network.backbone, self.network.device
        training = backbone.training
        backbone.eval()
        prepared = ((self.processor.prepare(sample.image.to(device)), number, sample) for number, sample in samples)
        try:
            for batch in _batches(prepared):
                pixels = torch.stack([example[0] for example in batch]).to(memory_format=torch.channels_last)
                copies = [backbone(pixels)] + ([backbone(pixels.flip(-1))] if self.flips else [])
                maps = torch.stack(copies, dim=1).permute(0, 1, 3, 4, 2).cpu().numpy()  # (B, F, h, w, C)
                for of_image, (_, number, sample) in zip(maps, batch, strict=True):
                    stored = centre_labels(sample.labels, of_image.shape[1:3]).numpy()
                    yield (number, sample.id, *self._drawn(of_image, stored, number))
                bar.update(len(batch))
        finally:
            backbone.train(training)

    def _drawn(self, maps: np.ndarray, stored: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        if self.cells_per_image is None:
            return maps, stored
        order = np.random.default_rng(number).permutation(stored.size)[: self.cells_per_image]
        return maps.reshape(len(maps), 1, -1, maps.shape[-1])[:, :, order], stored.reshape(1, -1)[:, order]


def _batches(examples: Iterator[tuple]) -> Iterator[list]:
    for first in examples:
        yield from batches_of_equal_size(chain([first], islice(examples, TOGETHER - 1)), BATCH)


def _dependencies(maps: FeatureMaps, rows: Rows | StreamedRows, accelerator: Accelerator) -> dict:
    """Everything that the records depend on."""
    network, config, digest = maps.network, maps.network.config, hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(network.backbone.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    fields = ("backbone", "output_stride", *getattr(BACKBONES[config.backbone], "weight_fields", ()))
    found = {
        "made_by": "cagnet-hf train",
        "format": FORMAT,
        "images": rows.fingerprint(contents=True),
        "share": [accelerator.process_index, accelerator.num_processes],
        "weights": digest.hexdigest(),
        "backbone": {field: getattr(config, field) for field in fields}
        | {"backbone_config": config.backbone_config and config.backbone_config.to_dict()},
        # A processor that was saved says whose code opens it, which changes no pixel.
        "processor": {
            key: value for key, value in json.loads(maps.processor.to_json_string()).items() if key != "auto_map"
        },
        "flips": maps.flips,
        "cells_per_image": maps.cells_per_image,
    }
    # The convolutions of a GPU round otherwise; caches of a CPU have no such entry.
    return found if network.device.type == "cpu" else found | {"device": network.device.type}


def _check_size(cache: FeatureCache, images: int | None, maps: FeatureMaps, processes: int) -> None:
    """Say what the features will take, and refuse what the disk cannot hold."""
    if images is None:
        return
    size = maps.processor.size
    side = size.get("longest_edge") or max(size["height"], size["width"])
    sides = fit_size(side, side, size)
    height, width = (-(-side // maps.network.feature_stride) for side in sides)
    shape = (1 + maps.flips, height, width) if maps.cells_per_image is None else (1, 1, maps.cells_per_image)
    needed = (images - len(cache)) * cache._bytes(shape)
    logger.info("Features of %d images: at most %.2f GB in %s", images, needed / 1e9, cache.folder)
    free = shutil.disk_usage(cache.folder).free
    if needed * processes > free:
        raise RecipeError(
            f"feature_cache: the features take up to {needed * processes / 1e9:.1f} GB, but {cache.folder} has "
            f"{free / 1e9:.1f} GB left: set feature_cache.cells_per_image, or feature_cache.folder"
        )


class FeatureTransform:
    """Crops and flips the maps of an image.

    Args:
        cells: The side of a crop in cells; None takes a map as it is.
    """

    def __init__(self, cells: int | None, *, flip_probability: float, ignore_index: int):
        self.cells, self.flip_probability, self.ignore_index = cells, flip_probability, ignore_index

    def draw(self, rng: np.random.Generator) -> Augmentation:
        return Augmentation(1.0, rng.random(), rng.random(), flip=bool(rng.random() < self.flip_probability))

    def __call__(self, maps, labels, augmentation: Augmentation) -> dict[str, torch.Tensor]:
        """One training example of maps `(F, C, h, w)` and labels `(h, w)` in model order.

        Returns:
            `backbone_features` `(C, cells, cells)`, `labels` int64 and `padding` bool, both `(cells, cells)`.
        """
        flips = augmentation.flip and len(maps) > 1
        features, labels = maps[int(flips)], (labels.flip(-1) if flips else labels).long()
        pads = [0, 0, 0, 0]
        if self.cells is not None:
            height, width = labels.shape
            top = int(augmentation.row * (max(height - self.cells, 0) + 1))
            left = int(augmentation.column * (max(width - self.cells, 0) + 1))
            window = (slice(top, top + self.cells), slice(left, left + self.cells))
            features, labels = features[(..., *window)], labels[window]
            pads = [0, self.cells - labels.shape[1], 0, self.cells - labels.shape[0]]
        return {
            "backbone_features": F.pad(features, pads),
            "labels": F.pad(labels, pads, value=self.ignore_index),
            "padding": F.pad(torch.zeros_like(labels, dtype=torch.bool), pads, value=True),
        }
