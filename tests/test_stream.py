"""The stream of training batches: endless, restartable, shared between processes, blind to unseen classes."""

import multiprocessing
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PilImage

from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data.rows import Rows
from cagnet_hf.data.stream import EndlessBatches, LabelledImages, TrainingBatches, TrainingExamples
from cagnet_hf.data.transforms import TrainingTransform
from cagnet_hf.model.image_processing_cagnet import CaGNetImageProcessor
from cagnet_hf.training.batches import workers
from cagnet_hf.training.recipe_files import load_recipe

SCENES = load_benchmark("scenes")
NUM_SEEN = len(SCENES.seen_ids)
SIZE = 32


@pytest.mark.parametrize(
    ("keys", "device", "processes", "expected"),
    [
        ([], "cpu", 1, 1),
        ([], "cuda", 1, 8),
        ([], "cuda", 4, 3),
        ([], "cuda", 64, 1),
        (["num_workers=2"], "cuda", 1, 2),
        (["num_workers=0"], "cpu", 1, 0),
        (["in_memory=true"], "cuda", 1, 0),
        (["feature_cache={}"], "cpu", 1, 0),
        (["feature_cache={}"], "cuda", 4, 3),
    ],
)
def test_workers_prepare_what_must_be_decoded_and_what_a_gpu_would_wait_for(
    keys, device, processes, expected, monkeypatch
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: range(12), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=processes)
    assert workers(load_recipe("scenes/cagnet_pi", keys), accelerator) == expected


def test_workers_share_the_cores_of_their_own_machine(monkeypatch):
    """Two machines of four GPUs: each has its own cores."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: range(24), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    accelerator = SimpleNamespace(device=torch.device("cuda"), num_processes=8)
    assert workers(load_recipe("scenes/cagnet_pi"), accelerator) == 6


def take(batches, count: int) -> list:
    return list(islice(batches, count))


def flat(batches) -> list:
    return [key for batch in batches for key in batch]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Four images of noise; each mask shows every stored id and 255."""
    rng = np.random.default_rng(0)
    ids = np.array([*range(17), 255], np.uint8)
    return Dataset.from_dict(
        {
            "image": [PilImage.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)) for _ in range(4)],
            "mask": [
                PilImage.fromarray(rng.permutation(np.resize(ids, SIZE**2)).reshape(SIZE, SIZE)) for _ in range(4)
            ],
            "image_id": list("abcd"),
        },
        features=Features({"image": Image(), "mask": Image(), "image_id": Value("string")}),
    )


@pytest.fixture
def examples(dataset):
    """`examples(hide_unseen=..., seed=..., **augmentation)`: training examples at the size of their images."""

    def make(hide_unseen=True, seed=0, benchmark=SCENES, **augmentation) -> TrainingExamples:
        processor = CaGNetImageProcessor(size={"height": SIZE, "width": SIZE})
        transform = TrainingTransform(processor, SIZE, **augmentation)
        images = LabelledImages(Rows(dataset), benchmark.label_space, hide_unseen=hide_unseen)
        return TrainingExamples(images, transform, seed)

    return make


def labels_as_they_are(examples) -> np.ndarray:
    return np.stack([examples[0, row]["labels"].numpy() for row in range(4)])


STILL = {"scale_range": (1.0, 1.0), "flip_probability": 0}


# Order


def test_positions_count_up():
    keys = flat(take(EndlessBatches(10, 4, seed=0), 25))
    assert [position for position, _ in keys] == list(range(100))


def test_every_epoch_is_a_permutation():
    rows = [row for _, row in flat(take(EndlessBatches(10, 4, seed=0), 25))]
    for start in range(0, 100, 10):
        assert sorted(rows[start : start + 10]) == list(range(10))


def test_epochs_differ_in_order():
    rows = [row for _, row in flat(take(EndlessBatches(10, 10, seed=0), 3))]
    assert rows[:10] != rows[10:20] != rows[20:30]


def test_a_batch_may_be_larger_than_the_dataset():
    (batch,) = take(EndlessBatches(3, 8, seed=0), 1)
    assert sorted(row for _, row in batch[:3]) == sorted(row for _, row in batch[3:6]) == [0, 1, 2]


def test_seeds_differ_in_order():
    assert take(EndlessBatches(10, 10, seed=0), 1) != take(EndlessBatches(10, 10, seed=1), 1)


@pytest.mark.parametrize("start", [1, 2, 3, 7, 30])
def test_starting_later_equals_skipping(start):
    assert (
        take(EndlessBatches(10, 4, seed=5, start=start), 6) == take(EndlessBatches(10, 4, seed=5), start + 6)[start:]
    )


def test_iterating_twice_starts_again():
    batches = EndlessBatches(10, 4, seed=0, start=3)
    assert take(batches, 5) == take(batches, 5)


@pytest.mark.parametrize("start", [0, 3])
def test_two_processes_share_the_batches_of_one(start):
    shares = [EndlessBatches(10, 4, seed=0, start=start, process=process, processes=2) for process in range(2)]
    together = [one + other for one, other in zip(*(take(share, 9) for share in shares), strict=True)]
    assert together == take(EndlessBatches(10, 8, seed=0, start=start), 9)


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="training split is empty"):
        EndlessBatches(0, 4, seed=0)


# Examples


def test_an_example_depends_on_its_key_alone(examples):
    first, again = examples(), examples()
    again[3, 1]
    for key in [(0, 0), (7, 2), (1000, 2)]:
        one, other = first[key], again[key]
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert torch.equal(one["labels"], other["labels"])


def test_global_random_numbers_play_no_part(examples):
    np.random.seed(0)
    one = examples()[5, 0]["pixel_values"]
    np.random.seed(1)
    assert torch.equal(one, examples()[5, 0]["pixel_values"])


@pytest.mark.parametrize(("seed", "position"), [(0, 1), (1, 0)])
def test_position_and_seed_change_the_augmentation(examples, seed, position):
    one, other = examples()[0, 0], examples(seed=seed)[position, 0]
    assert not torch.equal(one["pixel_values"], other["pixel_values"])


def test_examples_have_the_size_of_the_crop(examples):
    example = examples(scale_range=(0.5, 1.5))[0, 0]
    assert (example["pixel_values"].shape, example["pixel_values"].dtype) == ((3, SIZE, SIZE), torch.float32)
    assert (example["labels"].shape, example["labels"].dtype) == ((SIZE, SIZE), torch.int64)


def test_workers_change_nothing(examples):
    def draw(num_workers):
        stream = TrainingBatches(examples(), EndlessBatches(4, 2, seed=0), num_workers, pin_memory=False)
        return torch.cat([batch["pixel_values"] for batch in islice(stream, 4)])

    assert torch.equal(draw(0), draw(1))


def test_workers_end_with_their_batches_whoever_still_refers_to_them(examples):
    for end in (TrainingBatches.close, lambda batches: None):
        batches = TrainingBatches(examples(), EndlessBatches(4, 2, seed=0), num_workers=1, pin_memory=False)
        next(batches)
        referred = batches._batches  # as a traceback does
        assert multiprocessing.active_children()
        end(batches)
        del batches
        assert not multiprocessing.active_children()
        del referred


# Labels


@pytest.mark.parametrize("benchmark", [SCENES, SCENES.for_tuning()], ids=["test", "tuning"])
def test_no_label_of_an_unseen_class_is_ever_shown(examples, benchmark):
    hidden = examples(benchmark=benchmark, scale_range=(0.5, 1.5))
    shown = {label for position in range(40) for label in hidden[position, position % 4]["labels"].unique().tolist()}
    assert shown == {*range(len(benchmark.seen_ids)), 255}


def test_every_other_label_stays_as_it_is(examples, dataset):
    masks = np.stack([np.asarray(mask) for mask in dataset["mask"]])
    labels = labels_as_they_are(examples(**STILL))
    for index, stored_id in enumerate(SCENES.seen_ids):
        assert ((labels == index) == (masks == stored_id)).all()


def test_unseen_classes_are_shown_to_the_supervised_upper_bound(examples, dataset):
    masks = np.stack([np.asarray(mask) for mask in dataset["mask"]])
    labels = labels_as_they_are(examples(hide_unseen=False, **STILL))
    for index, stored_id in enumerate(SCENES.class_ids):
        assert ((labels == index) == (masks == stored_id)).all()


@pytest.mark.parametrize("hide_unseen", [True, False])
def test_background_and_unlabelled_pixels_stay_ignored(examples, dataset, hide_unseen):
    masks = np.stack([np.asarray(mask) for mask in dataset["mask"]])
    labels = labels_as_they_are(examples(hide_unseen=hide_unseen, **STILL))
    assert (labels[(masks == 0) | (masks == 255)] == 255).all()


def test_padding_is_ignored(examples):
    labels = examples(hide_unseen=False, scale_range=(0.5, 0.5), flip_probability=0)[0, 0]["labels"]
    assert (labels[: SIZE // 4] == 255).all()
    assert (labels[SIZE // 4 : -SIZE // 4, SIZE // 4 : -SIZE // 4] != 255).any()


def test_masks_are_never_changed(examples, dataset):
    before = [np.asarray(mask).copy() for mask in dataset["mask"]]
    labels_as_they_are(examples())
    assert all((np.asarray(mask) == old).all() for mask, old in zip(dataset["mask"], before, strict=True))


def test_a_label_outside_the_label_set_names_the_image(dataset):
    rows = [Rows(dataset)[0]._replace(labels=torch.full((SIZE, SIZE), 99, dtype=torch.uint8), id="e")]
    with pytest.raises(ValueError, match="mask of e: label 99"):
        LabelledImages(rows, SCENES.label_space, hide_unseen=True)[0]
