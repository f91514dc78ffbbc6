"""`scenes`: a synthetic benchmark that this file draws, so that everything runs without a download.

Sixteen classes are compositions of five attributes: the colour (4), texture (2) and shape (2) of an object, the half
of the image it lives in (place, 2) and the ground it lies on (surroundings, 2). The first three name a class, the
other two are parities of them. Twelve classes are seen; four are unseen, one of each colour: new combinations of
levels that all occur in seen classes. An object shows each attribute only with probability `FIDELITY`, so no single
cue is enough and context helps. A class's embedding is its attributes one-hot plus nuisance dimensions, of unit
length.

Everything is drawn from the seed with `Generator.random` and integer arithmetic alone: equal on every platform, tested
by hash. The benchmark is frozen: changing an image is changing the benchmark.
"""

import numpy as np
from PIL import Image

from .benchmarks import Benchmark, load_benchmark

IMAGE_SIZE = 96
NUM_TRAIN, NUM_TEST = 480, 160
FIDELITY = 0.9
NUM_NUISANCE = 12

COLOURS = {"red": (205, 65, 55), "green": (70, 170, 75), "blue": (65, 90, 205), "yellow": (215, 190, 70)}
TEXTURES = ("striped", "dotted")
SHAPES = ("disc", "cross")
PLACES = ("top", "bottom")
SURROUNDINGS = ("bricks", "grass")
LEVELS = (len(COLOURS), len(TEXTURES), len(SHAPES), len(PLACES), len(SURROUNDINGS))
_GROUND_COLOURS = ((160, 124, 112), (124, 152, 112))

_BACKGROUND = 0
_QUADRANT = IMAGE_SIZE // 2
# (colour, texture, shape): stored ids 10 to 12 play the unseen classes in the tuning split, 13 to 16 are unseen.
_TUNING_CLASSES = ((0, 1, 0), (1, 0, 1), (2, 0, 0))
_UNSEEN_CLASSES = ((0, 0, 1), (1, 1, 0), (2, 1, 1), (3, 0, 0))


def class_attributes() -> np.ndarray:
    """Levels `(16, 5)` of colour, texture, shape, place and surroundings; row i is stored id i + 1."""
    special = _TUNING_CLASSES + _UNSEEN_CLASSES
    every = [(c, t, s) for c in range(LEVELS[0]) for t in range(LEVELS[1]) for s in range(LEVELS[2])]
    ordered = [*(attributes for attributes in every if attributes not in special), *special]
    return np.array([(c, t, s, (c >> 1) ^ t, (c & 1) ^ s) for c, t, s in ordered])


def class_name(attributes) -> str:
    colour, texture, shape = (int(level) for level in attributes[:3])
    return f"{list(COLOURS)[colour]} {TEXTURES[texture]} {SHAPES[shape]}"


def scenes_class_embeddings(benchmark: Benchmark | None = None) -> np.ndarray:
    """Embeddings `(N, 24)` float32 in model order: 12 attribute levels, 12 nuisance dimensions, unit length."""
    benchmark = benchmark or load_benchmark("scenes")
    attributes = class_attributes()
    one_hot = np.concatenate([np.eye(levels)[column] for levels, column in zip(LEVELS, attributes.T, strict=True)], 1)
    nuisance = _uniform(np.random.Generator(np.random.PCG64(2020)), len(attributes), NUM_NUISANCE)
    table = np.concatenate([one_hot, 0.3 * nuisance], axis=1)
    table = np.concatenate([np.ones((1, table.shape[1])), table])  # background has all levels alike
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    return table[list(benchmark.class_ids)].astype(np.float32)


def draw_scenes(seed: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images `(n, 96, 96, 3)` uint8 and masks `(n, 96, 96)` uint8 of a split; masks hold stored ids."""
    counts = {"train": NUM_TRAIN, "test": NUM_TEST}
    if split not in counts:
        raise ValueError(f"scenes: no split {split!r}; it has {', '.join(counts)}")
    count = counts[split]
    attributes = class_attributes()
    images = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    masks = np.empty((count, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    for index in range(count):
        key = [seed, ("train", "test").index(split), index]
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
        images[index], masks[index] = _draw_image(rng, attributes)
    return images, masks


def scenes_dataset(seed: int, split: str):
    """A split as a `datasets.Dataset` with the columns of a prepared dataset: image, mask, image_id."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    images, masks = draw_scenes(seed, split)
    return Dataset.from_dict(
        {
            "image": [Image.fromarray(image) for image in images],
            "mask": [Image.fromarray(mask) for mask in masks],
            "image_id": [f"scenes_{seed}_{split}_{index:04d}" for index in range(len(images))],
        },
        features=Features({"image": ImageFeature(), "mask": ImageFeature(), "image_id": Value("string")}),
    )


def _uniform(rng, *shape):
    return 2 * rng.random(shape) - 1


def _level(rng, faithful: int, levels: int) -> int:
    """The attribute's own level with probability FIDELITY, any level otherwise."""
    return int(faithful) if rng.random() < FIDELITY else int(levels * rng.random())


def _draw_image(rng, attributes):
    rows, columns = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE]
    tilt = _uniform(rng, 2)
    backdrop = 118 + 20 * _uniform(rng) + (tilt[0] * (rows - 48) + tilt[1] * (columns - 48)) * 0.4
    pixels = np.repeat(backdrop[:, :, None], 3, axis=2)
    mask = np.full((IMAGE_SIZE, IMAGE_SIZE), _BACKGROUND, dtype=np.uint8)
    for quadrant in range(4):
        if rng.random() < 0.2:
            continue
        place = _level(rng, quadrant // 2, LEVELS[3])
        candidates = np.flatnonzero(attributes[:, 3] == place)
        index = int(candidates[int(len(candidates) * rng.random())])
        _draw_object(rng, pixels, mask, rows, columns, quadrant, attributes[index], index + 1)
    pixels += 14 * _uniform(rng, IMAGE_SIZE, IMAGE_SIZE, 1) + 8 * _uniform(rng, IMAGE_SIZE, IMAGE_SIZE, 3)
    return np.clip(pixels, 0, 255).astype(np.uint8), mask


def _draw_object(rng, pixels, mask, rows, columns, quadrant, attributes, stored_id):
    colour, texture, shape = (_level(rng, attributes[i], LEVELS[i]) for i in range(3))
    ground = _level(rng, attributes[4], LEVELS[4])
    jitter = 5 * _uniform(rng, 2)
    y = rows - (quadrant // 2 * _QUADRANT + _QUADRANT // 2 + jitter[0])
    x = columns - (quadrant % 2 * _QUADRANT + _QUADRANT // 2 + jitter[1])
    radius = 11 + 5 * rng.random()
    phase = np.floor(6 * rng.random(2)).astype(int)

    inside = np.maximum(np.abs(y), np.abs(x)) < radius + 8
    inside &= (rows // _QUADRANT == quadrant // 2) & (columns // _QUADRANT == quadrant % 2)
    tint = np.array(_GROUND_COLOURS[ground]) + 10 * _uniform(rng, 3)
    relief = np.where(_ground_pattern(ground, rows + phase[0], columns + phase[1]), 0.78, 1.08)
    pixels[inside] = (tint * relief[:, :, None])[inside]

    inside = _shape(shape, y, x, radius)
    paint = np.array(list(COLOURS.values())[colour]) + 28 * _uniform(rng, 3)
    relief = np.where(_texture(texture, rows + phase[0], columns + phase[1]), 0.5, 1.0)
    pixels[inside] = (paint * relief[:, :, None])[inside]
    mask[inside] = stored_id


def _shape(level: int, y, x, radius):
    if SHAPES[level] == "disc":
        return y * y + x * x < radius * radius
    return (np.minimum(np.abs(y), np.abs(x)) < 0.4 * radius) & (np.maximum(np.abs(y), np.abs(x)) < radius)


def _texture(level: int, rows, columns):
    """Where the paint is dark."""
    if TEXTURES[level] == "striped":
        return rows % 6 < 3
    return (rows % 6 - 2) ** 2 + (columns % 6 - 2) ** 2 <= 2


def _ground_pattern(level: int, rows, columns):
    """Where the ground is dark."""
    if SURROUNDINGS[level] == "bricks":
        return (rows % 8 == 0) | ((columns + rows // 8 % 2 * 5) % 10 == 0)
    return (columns % 5 == 0) & (rows % 8 < 5)


__all__ = ["class_attributes", "draw_scenes", "scenes_class_embeddings", "scenes_dataset"]
