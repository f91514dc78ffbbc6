"""Images in, label maps out: one rule for every entrance, and what cannot be honoured is refused in one line."""

import io
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Image as ImageFeature
from PIL import Image
from test_modeling import build
from transformers import pipeline

from cagnet_hf import CaGNetImageProcessor
from cagnet_hf.apps.demo import Visit
from cagnet_hf.apps.prediction import segment
from cagnet_hf.data.label_space import LabelSpace
from cagnet_hf.data.samples import decode_row
from cagnet_hf.weights.folders import load_model

AS_IT_IS = {"do_resize": False, "do_normalize": False, "do_flip_channel_order": False}


def png(image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "PNG"), **options)
    return buffer.getvalue()


def half_transparent() -> Image.Image:
    pixels = np.full((4, 6, 4), (10, 20, 30, 255), np.uint8)
    pixels[:, 3:, 3] = 0
    return Image.fromarray(pixels)


def palette_with_transparency() -> Image.Image:
    image = Image.fromarray(np.array([[0] * 3 + [1] * 3] * 4, np.uint8))
    image.putpalette([10, 20, 30, 70, 80, 90])
    return Image.open(io.BytesIO(png(image, transparency=1)))


WHITE_RIGHT = np.array([[[10, 20, 30]] * 3 + [[255] * 3] * 3] * 4, np.float32).transpose(2, 0, 1)


@pytest.mark.parametrize("image", [half_transparent(), palette_with_transparency()], ids=["RGBA", "P with tRNS"])
def test_transparent_pictures_stand_on_white_at_every_entrance(image):
    processor = CaGNetImageProcessor(**AS_IT_IS)
    np.testing.assert_array_equal(processor(image)["pixel_values"][0], WHITE_RIGHT)
    (prediction,) = segment(build(), processor, [image])
    np.testing.assert_array_equal(np.asarray(prediction.picture).transpose(2, 0, 1), WHITE_RIGHT)
    mask = {"bytes": png(Image.new("L", (6, 4))), "path": None}
    row = {"image": ImageFeature().encode_example(image), "mask": mask, "image_id": "one"}
    np.testing.assert_array_equal(decode_row(row, LabelSpace()).image.numpy(), WHITE_RIGHT)


@pytest.mark.parametrize("channels_first", [False, True])
def test_an_array_with_transparency_stands_on_white(channels_first):
    array = np.asarray(half_transparent().resize((6, 8), Image.Resampling.NEAREST))
    array = array.transpose(2, 0, 1) if channels_first else array
    values = CaGNetImageProcessor(**AS_IT_IS)(array)["pixel_values"][0]
    np.testing.assert_array_equal(values, WHITE_RIGHT.repeat(2, axis=1))


# Every entrance


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """(folder, model, processor) of a model whose labels depend on single pixels."""
    folder = tmp_path_factory.mktemp("opened") / "model"
    build().save_pretrained(folder)
    CaGNetImageProcessor(do_resize=False, image_std=20.0).save_pretrained(folder)
    return folder, *load_model(str(folder))


def by_processor(opened, picture) -> np.ndarray:
    _, model, processor = opened
    with torch.no_grad():
        outputs = model(**processor(picture, return_tensors="pt"))
    return processor.post_process_semantic_segmentation(outputs, [(24, 32)])[0].numpy()


def by_segment(opened, picture) -> np.ndarray:
    (prediction,) = segment(*opened[1:], [picture])
    return prediction.label_map


def by_page(opened, path) -> np.ndarray:
    visit = Visit(*opened[1:])
    visit.open(path)
    visit.segment(0)
    return visit.prediction.label_map


def by_predict(opened, path, load_script) -> np.ndarray:
    output = path.with_suffix("")
    assert load_script("predict").main([str(path), "--model", str(opened[0]), "--output", str(output)]) == 0
    return np.asarray(Image.open(output / path.name))


def by_training(opened, path) -> np.ndarray:
    """Labels of the image as training reads it."""
    image, mask = ({"bytes": data, "path": None} for data in (path.read_bytes(), png(Image.new("L", (32, 24)))))
    sample = decode_row({"image": image, "mask": mask, "image_id": "one"}, LabelSpace())
    return by_processor(opened, sample.image)


def noise(*shape) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def pictures() -> dict[str, tuple[Image.Image, Image.Image]]:
    """Pictures of every kind, and as what each is seen."""
    colours, grey = noise(24, 32, 3), noise(24, 32)
    holes = np.arange(24)[:, None] % 8 < 4
    on_white = {
        name: Image.fromarray(np.where(holes if values.ndim == 2 else holes[..., None], 255, values).astype(np.uint8))
        for name, values in (("RGB", colours), ("L", np.broadcast_to(grey, (24, 32))))
    }
    alpha = np.broadcast_to(np.where(holes, 0, 255), (24, 32)).astype(np.uint8)
    palette = Image.fromarray(np.where(holes, 1, grey // 128 * 2).astype(np.uint8))
    palette.putpalette([10, 20, 30, 70, 80, 90, 200, 150, 100])
    palette.info["transparency"] = 1
    seen = Image.fromarray(np.array([[10, 20, 30], [255] * 3, [200, 150, 100]], np.uint8)[np.asarray(palette)])
    return {
        "RGBA": (Image.fromarray(np.dstack([colours, alpha])), on_white["RGB"]),
        "LA": (Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]), on_white["L"]),
        "P with tRNS": (palette, seen),
        "16-bit grey": (Image.fromarray(grey.astype(np.uint16) * 257), Image.fromarray(grey)),
    }


@pytest.mark.parametrize("kind", pictures())
def test_a_picture_has_one_label_map_at_every_entrance(kind, opened, load_script, tmp_path):
    picture, seen = pictures()[kind]
    path = tmp_path / "picture.png"
    picture.save(path)
    expected = by_processor(opened, seen.convert("RGB"))
    assert len(np.unique(expected)) > 1
    given = Image.open(path)
    assert given.mode != "RGB"
    found = {
        "processor": by_processor(opened, given),
        "segment": by_segment(opened, given),
        "page": by_page(opened, path),
        "predict": by_predict(opened, path, load_script),
        "training": by_training(opened, path),
    }
    for entrance, label_map in found.items():
        np.testing.assert_array_equal(label_map, expected, err_msg=entrance)
    dropped = by_processor(opened, Image.fromarray(np.asarray(given.convert("RGB"))))
    assert (dropped != expected).any()  # what is not settled here would be seen


@pytest.mark.parametrize(
    "convert",
    [lambda pixels: pixels / 255, lambda pixels: pixels.astype(np.uint16) * 257, lambda pixels: pixels.astype(int)],
    ids=["float 0..1", "uint16", "int64"],
)
def test_an_array_has_one_label_map_at_every_entrance(convert, opened):
    pixels = noise(24, 32, 3)
    expected = by_processor(opened, Image.fromarray(pixels))
    for entrance in (by_processor, by_segment):
        np.testing.assert_array_equal(entrance(opened, convert(pixels)), expected)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, lambda grey: grey / 255])
def test_a_grey_array_is_a_grey_picture(convert, opened):
    grey = noise(24, 32)
    processor, picture = opened[2], Image.fromarray(grey)
    expected = processor(picture)["pixel_values"][0]
    for given in (convert(grey), [convert(grey)]):
        for options in ({}, {"input_data_format": "channels_last"}):
            np.testing.assert_allclose(processor(given, **options)["pixel_values"][0], expected, atol=1e-5)


@pytest.mark.parametrize("size", [(24,), (24, 32, 3), (0, 32), (24, -1)])
def test_a_target_size_that_is_none_is_refused(size, opened):
    _, model, processor = opened
    with torch.no_grad():
        outputs = model(torch.zeros(1, 3, 24, 32))
    for with_scores in (False, True):
        with pytest.raises(ValueError, match=r"^target size \(.*\): give a height and a width above 0$"):
            processor.post_process_semantic_segmentation(outputs, [size], return_segmentation_scores=with_scores)


@pytest.mark.parametrize("value", [np.nan, -1.0, 300.0])
def test_an_array_is_refused_alike_at_every_entrance(value, opened):
    for entrance in (by_processor, by_segment):
        with pytest.raises(ValueError, match=r"an image of float64 with values .* give 0 to 255, or 0.0 to 1.0"):
            entrance(opened, np.full((24, 32, 3), value))


def test_sixteen_bit_grey_is_scaled_in_segment():
    (prediction,) = segment(
        build(), CaGNetImageProcessor(size=16), [Image.fromarray(np.full((4, 6), 25700, np.uint16))]
    )
    assert (np.asarray(prediction.picture) == 100).all()


@pytest.mark.parametrize(
    "convert",
    [
        lambda pixels: (pixels / 255).astype(np.float32),
        lambda pixels: pixels / 255,
        lambda pixels: pixels.astype(np.uint16) * 257,
        lambda pixels: pixels.astype(np.float32),
        lambda pixels: pixels.astype(np.int64),
        lambda pixels: torch.from_numpy(pixels / 255).permute(2, 0, 1),
    ],
    ids=["float 0..1", "double 0..1", "uint16", "float 0..255", "int64", "tensor 0..1"],
)
def test_arrays_of_any_type_are_brought_to_the_scale_of_bytes(convert):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    values = CaGNetImageProcessor(**AS_IT_IS)(convert(pixels))["pixel_values"][0]
    np.testing.assert_allclose(values, pixels.transpose(2, 0, 1), atol=1e-4)


def test_what_the_caller_has_rescaled_is_left_alone():
    processor = CaGNetImageProcessor(do_rescale=True, **AS_IT_IS)
    pixels = np.random.default_rng(0).random((5, 7, 3), np.float32)
    np.testing.assert_array_equal(processor(pixels, do_rescale=False)["pixel_values"][0], pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, 256.0])
def test_values_that_are_on_no_scale_are_refused(value):
    with pytest.raises(ValueError, match=r"an image of float64 with values .* give 0 to 255, or 0.0 to 1.0"):
        CaGNetImageProcessor()(np.full((4, 6, 3), value))


# Sizes and other arguments


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (32, (32, 32)),
        ({"shortest_edge": 20}, (20, 30)),
        ({"shortest_edge": 20, "longest_edge": 24}, (16, 24)),
        ({"longest_edge": 30}, (20, 30)),
        ({"max_height": 30, "max_width": 30}, (20, 30)),
        ({"height": 7, "width": 9}, (7, 9)),
    ],
)
def test_sizes_are_those_of_transformers(size, expected):
    image, label_map = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
    for processor, options in ((CaGNetImageProcessor(size=size), {}), (CaGNetImageProcessor(), {"size": size})):
        batch = processor(image, label_map, return_tensors="pt", **options)
        assert batch["pixel_values"].shape == (1, 3, *expected)
        assert batch["labels"].shape == (1, *expected)


def test_one_number_stands_for_all_channels():
    image = np.full((5, 6, 3), 100, np.uint8)
    processor = CaGNetImageProcessor(do_resize=False, image_mean=50.0, image_std=2.0)
    assert (processor(image)["pixel_values"][0] == 25).all()
    assert (processor(image, image_mean=60.0)["pixel_values"][0] == 20).all()
    assert (processor.prepare(torch.from_numpy(image).permute(2, 0, 1)) == 25).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_resise": False}, "do_resise: no argument of this image processor"),
        ({"padding": True}, "padding: no argument"),
        ({"resample": 3}, "resample=3: images are resized bilinearly"),
        ({"do_center_crop": True}, "do_center_crop=True: this image processor neither crops nor pads"),
        ({"do_pad": True}, "do_pad=True"),
        ({"data_format": "channels_last"}, "data_format=channels_last"),
        ({"image_mean": [1.0, 2.0]}, "image_mean="),
        ({"size": {"height": 0, "width": 4}}, "choose sides above 0"),
    ],
)
def test_what_is_not_honoured_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CaGNetImageProcessor()(np.zeros((4, 6, 3), np.uint8), **options)
    with pytest.raises(ValueError, match=message):
        CaGNetImageProcessor(**options)


def test_images_of_two_shapes_make_no_batch():
    processor = CaGNetImageProcessor(size={"longest_edge": 24})
    images = [np.zeros((40, 60, 3), np.uint8), np.zeros((60, 40, 3), np.uint8)]
    assert [pixels.shape for pixels in processor(images)["pixel_values"]] == [(3, 16, 24), (3, 24, 16)]
    with pytest.raises(ValueError, match=r"sizes \(16, 24\) and \(24, 16\) make no batch: give size=.*batch_size=1"):
        processor(images, return_tensors="pt")


@pytest.mark.parametrize("options", [{"size": {"longest_edge": 24}}, {"do_resize": False}])
def test_a_pipeline_that_makes_batches_says_beforehand_what_cannot_be_one(options):
    processor, model = CaGNetImageProcessor(**options), build().eval()
    batches, one_by_one = (
        pipeline("image-segmentation", model=model, image_processor=processor, batch_size=size) for size in (2, 1)
    )
    images = [Image.new("RGB", (24, 16), "red"), Image.new("RGB", (16, 24), "red")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segments = one_by_one([images[0]] * 2 + [images[1]])
    kept = "size={'longest_edge': 24}" if "size" in options else "do_resize=False"
    told = rf"^{kept} keeps the shape of each image.*use batch_size=1, or cagnet_hf.segment, or size="
    with pytest.warns(UserWarning, match=told):
        assert batches([images[0]] * 2) == segments[:2]
    with pytest.warns(UserWarning, match=told), pytest.raises(RuntimeError):
        batches(images)


def test_a_pipeline_joins_images_that_are_brought_to_one_size():
    processor, model = CaGNetImageProcessor(size=24), build().eval()
    images = [Image.new("RGB", (24, 16), "red"), Image.new("RGB", (16, 24), "red")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches, one_by_one = (
            pipeline("image-segmentation", model=model, image_processor=processor, batch_size=size)(images)
            for size in (2, 1)
        )
    assert batches == one_by_one
    assert [segments[0]["mask"].size for segments in batches] == [(24, 16), (16, 24)]


# Label maps


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Image.new("RGB", (6, 4)), "got an image of mode RGB"),
        (Image.open(io.BytesIO(png(Image.new("L", (6, 4)), format="JPEG"))), "got an image of JPEG"),
        (np.zeros((4, 6, 3), np.uint8), r"got shape \(4, 6, 3\)"),
        (np.zeros((4, 6, 1), np.uint8), r"got shape \(4, 6, 1\)"),
        ("mask.png", "got 'mask.png'"),
        (np.full((4, 6), np.nan), "got values of float64 that are no whole numbers"),
        (np.full((4, 6), 0.5), "got values of float64 that are no whole numbers"),
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_a_map_of_a_wrong_kind_is_named(wrong, message, listed):
    image = np.zeros((4, 6, 3), np.uint8)
    with pytest.raises(ValueError, match=rf"a segmentation map must be \(H, W\).*{message}") as refusal:
        CaGNetImageProcessor()([image] if listed else image, [wrong] if listed else wrong)
    assert "\n" not in str(refusal.value)


def test_maps_come_as_a_batch():
    images, maps = np.zeros((2, 5, 6, 3), np.uint8), np.arange(60).reshape(2, 5, 6)
    labels = CaGNetImageProcessor(do_resize=False)(list(images), maps)["labels"]
    np.testing.assert_array_equal(labels, maps)


@pytest.mark.parametrize("calibration", [0.0, 0.4])
def test_segmentation_scores_are_what_the_map_is_the_argmax_of(calibration):
    model, processor = build(calibration=calibration), CaGNetImageProcessor()
    with torch.no_grad():
        outputs = model(torch.randn(2, 3, 33, 49))
    sizes = [(20, 30), (9, 7)]
    results = processor.post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
    maps = processor.post_process_semantic_segmentation(outputs, sizes)
    for result, label_map, logits, size in zip(results, maps, outputs.logits, sizes, strict=True):
        assert torch.equal(result["segmentation"], label_map)
        assert torch.equal(result.segmentation_scores.argmax(0), label_map)
        expected = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
        if calibration:
            expected = expected.softmax(0)
            expected[:3] -= calibration
        torch.testing.assert_close(result.segmentation_scores, expected)
