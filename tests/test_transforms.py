"""The training transform: the reference's crops, and what random augmentation must keep."""

import numpy as np
import pytest
import torch
from golden_weights import GOLDEN
from PIL import Image

from cagnet_hf import CaGNetImageProcessor
from cagnet_hf.data.transforms import Augmentation, TrainingTransform
from cagnet_hf.model.maps_cagnet import resize_image, resize_labels

ARRAYS = np.load(GOLDEN / "transforms.npz")
WARP, ASPECT = {"height": 33, "width": 33}, {"longest_edge": 33}


def golden_image():
    """RGB image `(50, 70, 3)`; the golden set stores BGR."""
    return ARRAYS["in/image"][:, :, ::-1]


def golden_labels():
    """Label map with the ids of the data set: 0 background, 1 to 20 classes."""
    return ARRAYS["in/label"]


def golden_training_labels():
    """Seen classes 1 to 15 become 0 to 14, the rest is ignored."""
    stored = golden_labels().astype(int)
    return np.where((stored >= 1) & (stored <= 15), stored - 1, 255).astype(np.uint8)


def check(example, name):
    np.testing.assert_allclose(example["pixel_values"], ARRAYS[f"{name}/image"], atol=5e-4)
    np.testing.assert_array_equal(example["labels"], ARRAYS[f"{name}/label"])


def share(start, size, crop):
    """The augmentation's position that starts a crop at `start`."""
    return (start + 0.5) / (size - crop + 1)


# The reference's numbers


@pytest.mark.parametrize(("name", "size"), [("test_warp", WARP), ("test_nowarp", ASPECT)])
def test_evaluation_input(name, size):
    prepared = CaGNetImageProcessor(size=size)(golden_image(), segmentation_maps=golden_labels())
    check({key: values[0] for key, values in prepared.items()}, name)


@pytest.mark.parametrize(
    ("name", "size", "scale", "padded", "flip"),
    [
        ("train_s0.6", WARP, 0.6, (33, 33), False),
        ("train_s1.37_flip", WARP, 1.37, (45, 45), True),
        ("train_nowarp_s0.8", ASPECT, 0.8, (24, 33), False),
    ],
)
def test_training_example(name, size, scale, padded, flip):
    row, column = (share(2 * (side - 24) // 3, side, 24) for side in padded)
    transform = TrainingTransform(CaGNetImageProcessor(size=size), crop_size=24)
    check(transform(golden_image(), golden_training_labels(), Augmentation(scale, row, column, flip)), name)


# Random augmentation


@pytest.fixture(params=[WARP, ASPECT], ids=["warp", "aspect kept"])
def transform(request):
    """No mean, no channel flip: pixel values are the image's own."""
    processor = CaGNetImageProcessor(size=request.param, do_normalize=False, do_flip_channel_order=False)
    return TrainingTransform(processor, crop_size=24)


def augmentations(transform, number=30):
    rng = np.random.default_rng(0)
    return [transform.draw(rng) for _ in range(number)]


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_image_and_labels_stay_aligned(transform, axis):
    position = np.indices((50, 70))[axis].astype(np.uint8)  # image and labels hold their own coordinate
    image = np.stack([position] * 3, axis=-1)
    for augmentation in augmentations(transform):
        example = transform(image, position, augmentation)
        labelled = example["labels"] != 255
        offset = (example["pixel_values"][0] - example["labels"])[labelled]
        assert offset.abs().max() < 5  # pixels of the source: about one of the training example


def test_padding_is_ignored(transform):
    image, labels = np.full((50, 70, 3), 200, np.uint8), np.zeros((50, 70), np.uint8)
    for augmentation in augmentations(transform):
        example = transform(image, labels, augmentation)
        assert ((example["pixel_values"][0] == 0) == (example["labels"] == 255)).all()


def test_padding_takes_the_ignore_index_of_the_model():
    processor = CaGNetImageProcessor(size=WARP)
    transform = TrainingTransform(processor, crop_size=24, ignore_index=200)
    example = transform(golden_image(), np.zeros((50, 70), np.uint8), Augmentation(0.5, 0.0, 0.0, False))
    assert example["labels"].unique().tolist() == [0, 200]


def test_shapes_and_types(transform):
    for augmentation in augmentations(transform):
        example = transform(golden_image(), golden_training_labels(), augmentation)
        assert example["pixel_values"].shape == (3, 24, 24)
        assert example["labels"].shape == (24, 24)
        assert [str(values.dtype) for values in example.values()] == ["torch.float32", "torch.int64", "torch.bool"]


def test_image_smaller_than_the_crop_is_padded():
    transform = TrainingTransform(CaGNetImageProcessor(size=WARP), crop_size=48)
    example = transform(golden_image(), golden_training_labels(), Augmentation(0.5, 0.99, 0.99, False))
    assert example["labels"].shape == (48, 48)
    assert (example["labels"] != 255).sum() <= 17**2


def test_padding_is_what_is_no_part_of_the_image():
    transform = TrainingTransform(CaGNetImageProcessor(size={"longest_edge": 40}), crop_size=60)
    for augmentation in augmentations(transform):
        labelled = transform(golden_image(), np.zeros((50, 70), np.uint8), augmentation)  # every pixel of the image is
        assert torch.equal(labelled["padding"], labelled["labels"] == 255)
        assert labelled["padding"].any()


def test_flip_mirrors_image_and_labels(transform):
    straight = transform(golden_image(), golden_training_labels(), Augmentation(1.2, 0.4, 0.6, False))
    mirrored = transform(golden_image(), golden_training_labels(), Augmentation(1.2, 0.4, 0.6, True))
    assert all((straight[key].flip(-1) == mirrored[key]).all() for key in straight)


def test_callers_image_and_mask_are_left_alone(transform):
    image, labels = golden_image().copy(), golden_training_labels()
    before = image.copy(), labels.copy()
    for augmentation in augmentations(transform, 10):
        for values in transform(image, labels, augmentation).values():
            values.fill_(7)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(labels, before[1])


def test_read_only_arrays_and_pil_images_are_accepted(transform):
    labels = golden_training_labels()
    labels.flags.writeable = False
    augmentation = Augmentation(1.0, 0.0, 0.0, False)
    from_array = transform(golden_image(), labels, augmentation)
    from_pil = transform(Image.fromarray(golden_image().copy()), labels, augmentation)
    assert all((from_array[key] == from_pil[key]).all() for key in from_array)


def test_drawn_augmentations_lie_in_their_ranges(transform):
    drawn = augmentations(transform, 300)
    scales = [augmentation.scale for augmentation in drawn]
    assert 0.5 <= min(scales) < 0.55
    assert 1.45 < max(scales) <= 1.5
    assert all(0 <= position < 1 for augmentation in drawn for position in (augmentation.row, augmentation.column))
    assert 100 < sum(augmentation.flip for augmentation in drawn) < 200


def test_the_same_generator_draws_the_same_augmentation(transform):
    assert augmentations(transform, 3) == augmentations(transform, 3)


def test_every_crop_position_is_reached():
    transform = TrainingTransform(CaGNetImageProcessor(size={"height": 10, "width": 10}), crop_size=8)
    columns = np.broadcast_to(np.arange(10, dtype=np.uint8), (10, 10))
    image = np.zeros((10, 10, 3), np.uint8)
    starts = {
        transform(image, columns, Augmentation(1.0, 0.0, column, False))["labels"][0, 0].item()
        for column in np.linspace(0, 0.999, 30)
    }
    assert starts == {0, 1, 2}


@pytest.mark.parametrize("scale", [0.7, 0.999, 1.02, 1.5])
@pytest.mark.parametrize("until", [(1, 1), (9, 40), (33, 45), (34, 20), (50, 67)])
def test_a_part_of_a_resized_image_is_that_of_the_whole(scale, until, one_thread):
    """Bit by bit on one thread, also where the part is as large as the image that is resized."""
    image, labels = torch.rand(3, 33, 45), torch.randint(9, (33, 45))
    size = tuple(round(side * scale) for side in image.shape[1:])
    until = tuple(map(min, until, size))
    part = (..., slice(until[0]), slice(until[1]))
    assert torch.equal(resize_image(image, size, scale, until), resize_image(image, size, scale)[part])
    assert torch.equal(resize_labels(labels, size, scale, until), resize_labels(labels, size, scale)[part])
