"""The synthetic benchmark: what its classes are, and that its pictures never change."""

from functools import cache
from hashlib import sha256
from itertools import combinations

import numpy as np
import pytest

from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data.scenes import (
    LEVELS,
    NUM_TEST,
    NUM_TRAIN,
    class_attributes,
    class_name,
    draw_scenes,
    scenes_class_embeddings,
    scenes_dataset,
)

SCENES = load_benchmark("scenes")
SPLITS = ("train", "test")
# The benchmark is frozen: another hash is another benchmark.
FROZEN = {
    "train": (
        "0a656168646b4b754df8c7bb18438ebffb5f0651b9832460cc255327f15b8a75",
        "e5a2b1ebab2f347e3de764c496308966475f009b3470ca1bcac24769384abd05",
    ),
    "test": (
        "99f8256fd9fa4cf8899ea6288ddbdcd0f7643633ed76c79e4ed0c1f49d2d23db",
        "b338cede6fd92b37d97ef05e64f9f9d9c32f871779a47ade7471aa10a31e6470",
    ),
}


@cache
def drawn(seed: int, split: str):
    return draw_scenes(seed, split)


def attributes_of(stored_ids) -> np.ndarray:
    return class_attributes()[np.array(stored_ids) - 1]


# Classes


def test_twelve_classes_are_seen_and_four_unseen():
    assert (len(SCENES.seen_ids), len(SCENES.unseen_ids)) == (12, 4)


def test_names_follow_the_attributes():
    names = ("background", *(class_name(attributes) for attributes in class_attributes()))
    assert SCENES.label_names == names


def test_only_the_background_is_ignored():
    assert SCENES.ignored_ids == (0,)
    assert SCENES.label_names[0] == "background"


def test_no_two_classes_differ_in_one_attribute_alone():
    for one, other in combinations(class_attributes(), 2):
        assert (one != other).sum() >= 2


def test_levels_are_equally_common():
    for levels, column in zip(LEVELS, class_attributes().T, strict=True):
        assert np.bincount(column).tolist() == [16 // levels] * levels


def test_unseen_classes_have_every_colour():
    assert sorted(attributes_of(SCENES.unseen_ids)[:, 0]) == [0, 1, 2, 3]


# In the tuning split, which has fewer seen classes, one is all that any choice of classes reaches.
@pytest.mark.parametrize(("benchmark", "times"), [(SCENES, 2), (SCENES.for_tuning(), 1)], ids=["test", "tuning"])
def test_every_attribute_of_an_unseen_class_is_known_from_seen_ones(benchmark, times):
    seen = attributes_of(benchmark.seen_ids)
    for unseen in attributes_of(benchmark.unseen_ids):
        assert ((seen == unseen).sum(axis=0) >= times).all()


# Embeddings


@pytest.mark.parametrize("benchmark", [SCENES, SCENES.for_tuning()], ids=["test", "tuning"])
def test_embeddings_name_the_attributes_in_model_order(benchmark):
    embeddings = scenes_class_embeddings(benchmark)
    assert (embeddings.shape, embeddings.dtype) == ((len(benchmark.class_ids), sum(LEVELS) + 12), np.float32)
    one_hots = np.split(embeddings[:, : sum(LEVELS)], np.cumsum(LEVELS)[:-1], axis=1)
    assert all(((one_hot > 0).sum(axis=1) == 1).all() for one_hot in one_hots)
    levels = np.stack([one_hot.argmax(axis=1) for one_hot in one_hots], axis=1)
    assert (levels == attributes_of(benchmark.class_ids)).all()


def test_embeddings_have_unit_length():
    assert np.linalg.norm(scenes_class_embeddings(), axis=1) == pytest.approx(1, abs=1e-6)


def test_no_two_classes_have_nearly_the_same_embedding():
    cosines = scenes_class_embeddings() @ scenes_class_embeddings().T
    assert cosines[~np.eye(16, dtype=bool)].max() < 0.9


def test_a_class_has_one_embedding_whatever_the_split():
    tuning = SCENES.for_tuning()
    rows = [SCENES.class_ids.index(stored_id) for stored_id in tuning.class_ids]
    assert (scenes_class_embeddings(tuning) == scenes_class_embeddings(SCENES)[rows]).all()


# Pictures


@pytest.mark.parametrize("split", SPLITS)
def test_pictures_are_frozen(split):
    images, masks = drawn(0, split)
    assert (sha256(images.tobytes()).hexdigest(), sha256(masks.tobytes()).hexdigest()) == FROZEN[split]


@pytest.mark.parametrize(("split", "count"), [("train", NUM_TRAIN), ("test", NUM_TEST)])
def test_pictures_are_small_and_few(split, count):
    images, masks = drawn(0, split)
    assert (images.shape, images.dtype) == ((count, 96, 96, 3), np.uint8)
    assert (masks.shape, masks.dtype) == ((count, 96, 96), np.uint8)


def test_drawing_again_draws_the_same():
    images, masks = draw_scenes(0, "test")
    assert (images == drawn(0, "test")[0]).all()
    assert (masks == drawn(0, "test")[1]).all()


def test_no_picture_occurs_twice_over_seeds_and_splits():
    pictures = [image.tobytes() for seed in (0, 1) for split in SPLITS for image in drawn(seed, split)[0]]
    assert len(set(pictures)) == 2 * (NUM_TRAIN + NUM_TEST)


@pytest.mark.parametrize("seed", [0, 1, 2, 10, 11, 12])
def test_every_class_occurs_in_both_splits(seed):
    for split in SPLITS:
        assert set(np.unique(drawn(seed, split)[1]).tolist()) == set(range(17))


def test_unknown_splits_are_refused():
    with pytest.raises(ValueError, match="no split 'validation'; it has train, test"):
        draw_scenes(0, "validation")


def test_the_dataset_has_the_columns_of_a_prepared_one():
    dataset = scenes_dataset(0, "test")
    images, masks = drawn(0, "test")
    assert dataset.column_names == ["image", "mask", "image_id"]
    assert len(set(dataset["image_id"])) == len(dataset) == NUM_TEST
    assert (np.asarray(dataset[3]["image"]) == images[3]).all()
    assert (np.asarray(dataset[3]["mask"]) == masks[3]).all()
