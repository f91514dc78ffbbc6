"""The paper's network gives the reference's numbers on the reference's weights."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import recipe
from golden_weights import FULL, GOLDEN, golden_model, golden_shapes, our_key

from cagnet_hf.image_processing_cagnet import resize_label_map
from cagnet_hf.losses import kl_to_standard_normal
from cagnet_hf.modeling_cagnet import resize_labels

BACKBONE = np.load(GOLDEN / "backbone.npz")
HEADS = np.load(GOLDEN / "heads.npz")
RESIZE = np.load(GOLDEN / "resize.npz")
ACTIVATION = {"rtol": 1e-4, "atol": 1e-5}


@dataclass
class Case:
    """A golden input and the network it went through."""

    tag: str
    model: torch.nn.Module

    @property
    def size(self):
        return {"s56": (1, 56, 56), "s72x104": (2, 72, 104), "s200": (1, 200, 200), "f72": (2, 72, 72)}[self.tag]

    @property
    def image(self):
        return torch.from_numpy(recipe.image("back", *self.size))

    @property
    def labelled(self):
        return torch.from_numpy(recipe.labels("back", *self.size, 15)) != 255


@pytest.fixture(scope="module")
def small_model():
    return golden_model()


@pytest.fixture(scope="module", params=["s56", "s72x104", "s200", "f72"])
def case(request, small_model):
    return Case(request.param, golden_model(FULL) if request.param == "f72" else small_model)


@pytest.fixture
def in_training(case):
    """The model in training mode, its latent noise the golden one of each scale's feature size."""

    def with_golden_noise(context, inputs):
        batch, channels, height, width = inputs[0].shape
        noise = recipe.noise(f"eps:{height}x{width}", (batch, channels, height, width))
        return inputs[0], torch.from_numpy(noise).to(inputs[0])

    hook = case.model.cagnet.context.register_forward_pre_hook(with_golden_noise)
    yield case.model.train()
    case.model.eval()
    hook.remove()


def assert_golden(case: Case, name: str, values: torch.Tensor, **tolerance):
    matches, error = recipe.check_probe(BACKBONE, f"{case.tag}/{name}", values.numpy(), **(tolerance or ACTIVATION))
    assert matches, f"{case.tag}/{name}: {error}"


def forward_with_outputs(model, modules, image):
    """Outputs of the named modules in one forward pass."""
    outputs = {}
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: outputs.update({name: output}))
        for name, module in modules.items()
    ]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def test_every_original_tensor_has_a_place_in_the_full_network():
    with torch.device("meta"):
        ours = {name: list(tensor.shape) for name, tensor in golden_model_on_meta().items()}
    assert {our_key(key): shape for key, shape in golden_shapes().items()} == ours
