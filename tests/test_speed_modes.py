"""Half precision, `device_map` and `torch.compile`, as PyTorch and transformers offer them."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate import infer_auto_device_map
from test_modeling import SPNET, TINY, build, images
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from cagnet_hf import CaGNetConfig, CaGNetForSemanticSegmentation, CaGNetImageProcessor
from cagnet_hf.apps.prediction import segment
from cagnet_hf.data.scenes import scenes_dataset
from cagnet_hf.data.sources import open_dataset
from cagnet_hf.evaluation.scoring import count, scored_batches
from cagnet_hf.weights.folders import load_model

HALVES = [torch.bfloat16, torch.float16]


def labels(model, processor, image) -> torch.Tensor:
    (prediction,) = segment(model, processor, [image])
    return torch.from_numpy(prediction.label_map)


@pytest.fixture(scope="module")
def folder(trained_run):
    return trained_run / "model"


@pytest.fixture(scope="module")
def image():
    return scenes_dataset(0, "test")[0]["image"]


@pytest.fixture(scope="module")
def expected(folder, image):
    """The label map in full precision."""
    return labels(*load_model(str(folder)), image)


# Half precision


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALVES)
def test_a_half_precision_model_takes_what_the_processor_gives(folder, image, expected, dtype):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=dtype)
    processor = AutoImageProcessor.from_pretrained(folder)
    outputs = model(**processor(images=image, return_tensors="pt"))
    assert outputs.logits.dtype == dtype
    label_map = processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)])[0]
    assert (label_map == expected).float().mean() > 0.97


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("options", [{"patch_size": 3}, SPNET | {"test_scales": (1.0, 0.5)}], ids=["patches", "spnet"])
def test_half_precision_logits_are_near_the_full_ones(dtype, options):
    model = build(**options)
    full = model(images()).logits
    half = model.to(dtype)(images()).logits
    assert (half.float() - full).abs().max() < 0.05 * full.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALVES)
def test_calibration_in_half_precision(dtype):
    """The offset is larger than any probability: no pixel stays with a seen class."""
    model = build(calibration=1.5).to(dtype)
    label_maps = CaGNetImageProcessor().post_process_semantic_segmentation(model(images()), [(33, 49)] * 2)
    assert torch.stack(label_maps).min() >= 3


@torch.no_grad()
def test_the_loss_of_many_pixels_fits_half_precision():
    """3,136 cells that cost 30 each sum up to more than 65,504, the largest number of float16."""
    model = build(output_stride=4).to(torch.float16)
    model.classifier.class_head.weight.zero_()
    model.classifier.class_head.bias.copy_(torch.tensor([-30.0, 0, -30, -30, -30]))
    loss = model(images(1, 224, 224), torch.zeros(1, 224, 224, dtype=torch.long)).loss
    torch.testing.assert_close(loss, torch.tensor(30.0))


@torch.no_grad()
def test_synthetic_features_in_half_precision():
    model = build().to(torch.bfloat16)
    class_ids = torch.tensor([[[0, 4]]])
    assert model.synthesize_features(class_ids).dtype == torch.bfloat16
    assert model.synthetic_loss(class_ids).isfinite()


# device_map


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_map(folder, image, expected, device_map):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, device_map=device_map)
    assert (labels(model, CaGNetImageProcessor.from_pretrained(folder), image) == expected).all()


def test_images_are_scored_on_the_device_of_the_model(folder, tiny_dataset):
    """Not on the accelerator's, where the caller has not brought the model there."""
    model, processor = load_model(str(folder))
    elsewhere = SimpleNamespace(
        device=torch.device("meta"), process_index=0, num_processes=1, is_main_process=False, autocast=nullcontext
    )
    rows = open_dataset(str(tiny_dataset), "test")
    matrix, num_images = count(model.config, processor, scored_batches(model, processor, rows, accelerator=elsewhere))
    assert num_images == len(rows)
    assert matrix.counts.sum() > 0


def test_a_part_that_only_training_needs_may_lie_on_the_disk(folder, image, expected, tmp_path):
    places = {"cagnet": "cpu", "classifier": "cpu", "class_embeddings": "cpu", "generator": "disk"}
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, device_map=places, offload_folder=tmp_path)
    assert model.generator.layers[0].weight.is_meta
    assert (labels(model, CaGNetImageProcessor.from_pretrained(folder), image) == expected).all()


def test_parts_whose_maps_are_added_share_a_device():
    """Two devices, too small for the whole: the features stay together."""
    with torch.device("meta"):
        model = CaGNetForSemanticSegmentation(CaGNetConfig(**TINY))
    size = sum(parameter.numel() for parameter in model.cagnet.parameters()) * 4 + 2000
    places = infer_auto_device_map(
        model, {0: size, 1: size, "cpu": 10 * size}, no_split_module_classes=model._no_split_modules
    )
    assert len(set(places.values())) > 1
    assert "cagnet" in places


@pytest.mark.parametrize("generator", ["contextual", "moment_matching", "gaussian"])
def test_every_generator_is_kept_whole(generator):
    contextual = {"classifier": "linear", "contextual": False} if generator != "contextual" else {}
    model = CaGNetForSemanticSegmentation(CaGNetConfig(**TINY | contextual, generator=generator))
    assert type(model.generator).__name__ in model._no_split_modules


def test_pipeline_in_half_precision_on_a_mapped_device(folder, image, expected):
    segment = pipeline("image-segmentation", model=str(folder), dtype=torch.bfloat16, device_map="auto")
    segments = segment(image)
    assert sum(s["mask"].histogram()[255] for s in segments) == expected.numel()


# torch.compile


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [{"patch_size": 3}, SPNET | {"test_scales": (1.0, 0.5), "calibration": 0.3}],
    ids=["patches", "spnet at two scales"],
)
def test_the_whole_model_is_one_graph(options):
    model = build(**options)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()).logits, model(images()).logits)
