"""Images to tensors and logits to label maps."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from cagnet_hf import CaGNetImageProcessor

MEAN_BGR = np.array([104.008, 116.669, 122.675], np.float32)
AS_IT_IS = {"do_resize": False, "do_normalize": False, "do_flip_channel_order": False}


@pytest.fixture
def image() -> np.ndarray:
    """RGB, 5 x 6."""
    return np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)


def pixels(processor, image, **options) -> np.ndarray:
    return processor(image, return_tensors="np", **options)["pixel_values"][0]


# Images


def test_default_is_the_paper_s_input(image):
    values = pixels(CaGNetImageProcessor(), image)
    assert (values.shape, values.dtype) == ((3, 513, 513), np.float32)


def test_blue_comes_first_and_the_mean_is_subtracted_without_division(image):
    values = pixels(CaGNetImageProcessor(), image, do_resize=False)
    expected = image[:, :, ::-1].astype(np.float32) - MEAN_BGR
    np.testing.assert_allclose(values, expected.transpose(2, 0, 1), atol=1e-4)


def test_imagenet_statistics_in_rgb(image):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    processor = CaGNetImageProcessor(
        do_flip_channel_order=False, do_rescale=True, do_resize=False, image_mean=mean, image_std=std
    )
    expected = (image / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(pixels(processor, image), expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize(
    "convert",
    [
        Image.fromarray,
        torch.from_numpy,
        lambda image: image.transpose(2, 0, 1),
        lambda image: torch.from_numpy(image).permute(2, 0, 1),
    ],
    ids=["PIL", "torch channels last", "numpy channels first", "torch channels first"],
)
def test_containers_are_equal(image, convert):
    processor = CaGNetImageProcessor()
    np.testing.assert_array_equal(pixels(processor, convert(image)), pixels(processor, image))


@pytest.mark.parametrize("convert", [Image.fromarray, lambda grey: grey[:, :, None]], ids=["PIL", "numpy"])
def test_greyscale_becomes_three_equal_channels(image, convert):
    grey = image[:, :, 0]
    np.testing.assert_array_equal(pixels(CaGNetImageProcessor(**AS_IT_IS), convert(grey)), np.stack([grey] * 3))


def test_transparent_pixels_become_white(image):
    alpha = np.array([[0, 255] * 3] * 5, np.uint8)
    values = pixels(CaGNetImageProcessor(**AS_IT_IS), Image.fromarray(np.dstack([image, alpha])))
    np.testing.assert_array_equal(values[:, :, 0::2], 255)
    np.testing.assert_array_equal(values[:, :, 1::2], image.transpose(2, 0, 1)[:, :, 1::2])


def test_palette_images_show_their_colours(image):
    two_colours = Image.fromarray(image).quantize(2)
    expected = np.asarray(two_colours.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels(CaGNetImageProcessor(**AS_IT_IS), two_colours), expected)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(40, 60, (32, 48)), (60, 40, (48, 32)), (50, 50, (48, 48)), (8, 500, (1, 48)), (10, 12, (40, 48))],
)
def test_longest_edge_keeps_the_aspect(height, width, expected):
    processor = CaGNetImageProcessor(size={"longest_edge": 48})
    assert pixels(processor, np.zeros((height, width, 3), np.uint8)).shape == (3, *expected)


def test_height_and_width_warp(image):
    assert pixels(CaGNetImageProcessor(size={"height": 10, "width": 20}), image).shape == (3, 10, 20)


def test_shrinking_does_not_antialias():
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[:, ::4] = 255
    values = pixels(CaGNetImageProcessor(**AS_IT_IS), stripes, do_resize=True, size={"height": 2, "width": 2})
    assert not values.any()  # each new pixel reads between source pixels 1 and 2, or 5 and 6


def test_several_images_are_one_batch(image):
    batch = CaGNetImageProcessor()([image, image[:2]], return_tensors="pt")["pixel_values"]
    assert (batch.shape, batch.dtype) == ((2, 3, 513, 513), torch.float32)


def test_callers_image_is_left_alone(image):
    before = image.copy()
    CaGNetImageProcessor()(image, do_resize=False)["pixel_values"][0][:] = 7
    np.testing.assert_array_equal(image, before)


# Label maps


@pytest.fixture
def label_map() -> np.ndarray:
    return np.array([[0, 1, 2, 3, 4, 255]] * 5, np.uint8)


@pytest.mark.parametrize(
    "convert",
    [np.asarray, Image.fromarray, torch.from_numpy, lambda m: m.astype(np.int32)],
    ids=["uint8", "PIL", "torch", "int32"],
)
def test_label_maps_become_int64(image, label_map, convert):
    labels = CaGNetImageProcessor()(image, convert(label_map), do_resize=False, return_tensors="pt")["labels"]
    assert labels.dtype == torch.int64
    assert labels.tolist() == [label_map.tolist()]


def test_palette_label_maps_give_their_indices(image, label_map):
    palette_map = Image.fromarray(label_map)
    palette_map.putpalette(list(range(255, -1, -1)) * 3)
    labels = CaGNetImageProcessor()(image, palette_map, do_resize=False)["labels"][0]
    np.testing.assert_array_equal(labels, label_map)


def test_label_maps_are_resized_to_the_nearest_pixel(image, label_map):
    labels = CaGNetImageProcessor(size={"height": 2, "width": 3})(image, label_map)["labels"][0]
    assert labels.tolist() == [[0, 2, 4]] * 2


def test_labels_beyond_a_byte_survive(image, label_map):
    labels = CaGNetImageProcessor()(image, label_map.astype(np.int64) + 1000, do_resize=False)["labels"][0]
    np.testing.assert_array_equal(labels, label_map.astype(int) + 1000)


def test_callers_label_map_is_left_alone(image, label_map):
    stored = label_map.astype(np.int64)
    CaGNetImageProcessor()(image, stored, do_resize=False)["labels"][0][:] = 7
    np.testing.assert_array_equal(stored, label_map)


def test_a_label_map_per_image_is_demanded(image, label_map):
    with pytest.raises(ValueError, match="2 images but 1 segmentation map"):
        CaGNetImageProcessor()([image, image], [label_map])


def test_a_label_map_of_another_size_is_refused(image, label_map):
    with pytest.raises(ValueError, match=r"\(5, 5\).*\(5, 6\)"):
        CaGNetImageProcessor()(image, label_map[:, :5])


# Predictions


def segmenter_output(logits, calibration=None):
    return SimpleNamespace(logits=logits, calibration=calibration)


def test_prediction_is_the_argmax_of_upsampled_logits():
    logits = torch.randn(2, 5, 4, 6)
    sizes = [(7, 11), (20, 9)]
    maps = CaGNetImageProcessor().post_process_semantic_segmentation(segmenter_output(logits), target_sizes=sizes)
    for label_map, one, size in zip(maps, logits, sizes, strict=True):
        upsampled = F.interpolate(one[None], size, mode="bilinear", align_corners=False)
        assert label_map.dtype == torch.int64
        assert (label_map == upsampled[0].argmax(dim=0)).all()


def test_prediction_without_target_sizes_keeps_the_feature_resolution():
    logits = torch.randn(2, 5, 4, 6)
    maps = CaGNetImageProcessor().post_process_semantic_segmentation(segmenter_output(logits))
    assert torch.equal(torch.stack(maps), logits.argmax(dim=1))


def test_target_sizes_may_be_a_tensor():
    maps = CaGNetImageProcessor().post_process_semantic_segmentation(
        segmenter_output(torch.randn(1, 5, 4, 6)), target_sizes=torch.tensor([[8, 9]])
    )
    assert maps[0].shape == (8, 9)


@pytest.mark.parametrize(("offset", "winner"), [(0.0, 0), (0.3, 0), (0.5, 1)])
def test_calibration_is_subtracted_from_softmax_probabilities(offset, winner):
    probabilities = torch.tensor([0.7, 0.3]).view(1, 2, 1, 1)  # class 0 is seen
    output = segmenter_output(probabilities.log(), calibration=torch.tensor([[offset, 0.0]]))
    assert CaGNetImageProcessor().post_process_semantic_segmentation(output)[0].item() == winner


def test_half_precision_logits_are_scored():
    logits = torch.randn(1, 5, 4, 6)
    output = segmenter_output(logits.bfloat16(), calibration=torch.tensor([[0.1, 0, 0, 0, 0]]).bfloat16())
    maps = CaGNetImageProcessor().post_process_semantic_segmentation(output, target_sizes=[(8, 12)])
    assert maps[0].shape == (8, 12)


def test_a_target_size_per_image_is_demanded():
    with pytest.raises(ValueError, match="2 images but 1 target sizes"):
        CaGNetImageProcessor().post_process_semantic_segmentation(
            segmenter_output(torch.randn(2, 5, 4, 6)), target_sizes=[(8, 12)]
        )


# On disk


def test_saving_and_loading_keeps_every_setting(tmp_path, image):
    processor = CaGNetImageProcessor(
        size={"longest_edge": 40}, do_rescale=True, do_flip_channel_order=False, image_mean=[0.1, 0.2, 0.3]
    )
    processor.save_pretrained(tmp_path)
    loaded = CaGNetImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    np.testing.assert_array_equal(pixels(loaded, image), pixels(processor, image))


# Files of every kind, as Pillow and `datasets` open them: judged by value


def encoded(image: Image.Image, kind: str, **options) -> Image.Image:
    """An image as it comes out of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    opened = Image.open(io.BytesIO(buffer.getvalue()))
    opened.load()
    return opened


def test_a_png_of_16_bits_is_scaled_and_not_cut_off():
    grey = np.array([[0, 257, 257 * 100, 65535]] * 3, np.uint16)
    opened = encoded(Image.fromarray(grey), "PNG")
    assert opened.mode == "I;16"
    expected = np.broadcast_to(np.array([0, 1, 100, 255], np.float32), (3, 3, 4))
    np.testing.assert_array_equal(pixels(CaGNetImageProcessor(**AS_IT_IS), opened), expected)


@pytest.mark.parametrize(
    ("mode", "kind", "colour", "expected"),
    [
        ("L", "PNG", 90, (90, 90, 90)),
        ("LA", "PNG", (90, 255), (90, 90, 90)),
        ("RGBA", "PNG", (10, 20, 30, 255), (10, 20, 30)),
        ("CMYK", "TIFF", (0, 255, 255, 0), (255, 0, 0)),
        ("1", "PNG", 1, (255, 255, 255)),
    ],
)
def test_modes_become_rgb_by_their_colours(mode, kind, colour, expected):
    opened = encoded(Image.new(mode, (4, 3), colour), kind)
    assert opened.mode == mode
    values = pixels(CaGNetImageProcessor(**AS_IT_IS), opened)
    np.testing.assert_array_equal(values, np.broadcast_to(np.array(expected, np.float32)[:, None, None], (3, 3, 4)))


def test_a_photograph_that_its_camera_turned_is_read_upright(tmp_path):
    """By `datasets`, which feeds training and evaluation."""
    pixels_lying = np.zeros((8, 16, 3), np.uint8)
    pixels_lying[:, :8] = 200  # left; upright it is above
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    path = tmp_path / "a photograph, größer.png"
    Image.fromarray(pixels_lying).save(path, exif=exif)
    rows = Dataset.from_dict({"image": [str(path)]}, features=Features({"image": ImageFeature()}))
    upright = np.asarray(rows[0]["image"])
    assert upright.shape == (16, 8, 3)
    assert (upright[:8] == 200).all() and (upright[8:] == 0).all()
