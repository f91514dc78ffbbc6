"""SPNet on the paper's network gives the reference's maps, predictions, losses and gradients."""

import json

import numpy as np
import pytest
import torch
from golden import recipe as golden
from golden_weights import GOLDEN, golden_spnet, our_key
from tiny import real_step

from cagnet_hf import CaGNetImageProcessor
from cagnet_hf.training.recipe_files import parse_recipe

VALUES = json.loads((GOLDEN / "spnet.json").read_text())
ARRAYS = np.load(GOLDEN / "spnet.npz")
TEST_SCALES = [1.0, 0.75, 0.5]


@pytest.fixture(scope="module")
def model():
    return golden_spnet()


@pytest.fixture
def multi_scale_model(model, monkeypatch):
    monkeypatch.setattr(model.config, "test_scales", TEST_SCALES)
    return model


def images(name: str = "spnet", batch: int = 2, side: int = 72) -> torch.Tensor:
    return torch.from_numpy(golden.image(name, batch, side, side))


@torch.no_grad()
def test_features_are_the_pyramid_s_map(model):
    right, error = golden.check_probe(ARRAYS, "aspp", model.cagnet(images()).features.numpy(), rtol=1e-4, atol=1e-5)
    assert right, error


@torch.no_grad()
def test_logits_of_one_scale(model):
    np.testing.assert_allclose(model(images()).logits, ARRAYS["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "batch", "side"), [("spnet", 2, 72), ("spnet200", 1, 200)])
@torch.no_grad()
def test_logits_at_test_time_are_the_maximum_over_three_scales(multi_scale_model, name, batch, side):
    logits = multi_scale_model(images(name, batch, side)).logits
    expected = ARRAYS["logits_msc" if name == "spnet" else "logits_msc_200"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_training_mode_looks_at_one_scale(multi_scale_model):
    try:
        logits = multi_scale_model.train()(images()).logits
    finally:
        multi_scale_model.eval()
    np.testing.assert_allclose(logits, ARRAYS["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("threshold", ["0", "0.005", "0.01", "0.02", "0.3"])
@torch.no_grad()
def test_predictions_at_image_size_with_calibration(multi_scale_model, threshold, monkeypatch):
    monkeypatch.setattr(multi_scale_model.config, "calibration", float(threshold))
    outputs = multi_scale_model(images())
    predictions = CaGNetImageProcessor().post_process_semantic_segmentation(outputs, [(72, 72)] * 2)
    assert (torch.stack(predictions).numpy() == ARRAYS[f"pred/thr_{threshold}"]).all()
    assert (torch.stack(predictions) < 15).sum() == VALUES["n_seen_pred"][str(float(threshold))]


# Training


@pytest.fixture(scope="module", params=["f32", "f64"])
def training(request):
    """(precision, result, norms of the gradients by parameter name) of a real step."""
    model = golden_spnet().to({"f32": torch.float32, "f64": torch.float64}[request.param]).train()
    stage = {
        "iterations": 1,
        "batch_size": 2,
        "crop_size": 72,
        "scale_loss": "sum",
        "weights": {"backbone_classification": 1},
        "network": {"optimizer": "sgd", "lr": 2.5e-4},
    }
    recipe = parse_recipe({"benchmark": "pascal_voc", "method": "spnet", "stages": {"only": stage}}, "golden")
    batch = {
        "pixel_values": images().to(model.dtype),
        "labels": torch.from_numpy(golden.labels("spnet", 2, 72, 72, 15)),
    }
    result = real_step(model, batch, recipe, recipe.stages["only"])
    result.total.backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    return request.param, result, norms


def test_the_loss_is_the_sum_over_three_scales_and_the_maximum_of_their_logits(training):
    precision, result, _ = training
    tolerance = {"f32": 1e-5, "f64": 1e-9}[precision]
    assert result.total.item() == pytest.approx(VALUES["f64"]["total"], rel=tolerance)


def test_gradients_of_every_parameter(training):
    precision, _, norms = training
    tolerance = {"f32": {"rel": 2e-3}, "f64": {"rel": 1e-9}}[precision]
    expected = {our_key(f"back.{key}"): norm for key, norm in VALUES["f64"]["grad_l2"].items()}
    assert norms == {name: pytest.approx(norm, **tolerance) for name, norm in expected.items()}
