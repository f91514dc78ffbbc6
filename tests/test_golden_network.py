"""The paper's network gives the reference's numbers on the reference's weights."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import recipe
from golden_weights import FULL, GOLDEN, golden_model, golden_network, golden_shapes, our_key

from cagnet_hf import CaGNetForSemanticSegmentation
from cagnet_hf.methods.losses import kl_to_standard_normal
from cagnet_hf.model.maps_cagnet import resize_labels, scale_maximum

BACKBONE = np.load(GOLDEN / "backbone.npz")
HEADS = np.load(GOLDEN / "heads.npz")
RESIZE = np.load(GOLDEN / "resize.npz")
SIZES = {"s56": (1, 56, 56), "s72x104": (2, 72, 104), "s200": (1, 200, 200), "f72": (1, 72, 72)}
SCALES = (1.0, 0.5, 0.75)


@dataclass
class Case:
    """A golden input and the network it goes through."""

    tag: str
    model: CaGNetForSemanticSegmentation

    @property
    def image(self) -> torch.Tensor:
        return torch.from_numpy(recipe.image("back", *SIZES[self.tag]))

    @property
    def labelled(self) -> torch.Tensor:
        """Which pixels of the feature map carry a label."""
        labels = torch.from_numpy(recipe.labels("back", *SIZES[self.tag], 15))
        return resize_labels(labels, BACKBONE[f"{self.tag}/h0/shape"][-2:].tolist()) != 255

    def check(self, name: str, values: torch.Tensor, rtol=1e-4, atol=1e-5):
        right, error = recipe.check_probe(BACKBONE, f"{self.tag}/{name}", values.numpy(), rtol, atol)
        assert right, f"{self.tag}/{name} is off by {error}"


@pytest.fixture(scope="module")
def small_model():
    return golden_model()


@pytest.fixture(scope="module", params=SIZES)
def case(request, small_model):
    return Case(request.param, golden_model(FULL) if request.param.startswith("f") else small_model)


@pytest.fixture
def training(case):
    """The case in training mode, with the golden noise of each scale's feature size."""

    def golden_noise(_module, inputs):
        shape = tuple(inputs[0].shape)
        return inputs[0], torch.from_numpy(recipe.noise("eps:{2}x{3}".format(*shape), shape))

    hook = case.model.cagnet.context.register_forward_pre_hook(golden_noise)
    case.model.train()
    yield case
    case.model.eval()
    hook.remove()


@torch.no_grad()
def recorded(model, modules: dict, image) -> dict[str, torch.Tensor]:
    """Outputs of the named modules in one forward pass."""
    outputs = {}
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: outputs.update({name: output}))
        for name, module in modules.items()
    ]
    model(image)
    for hook in hooks:
        hook.remove()
    return outputs


def test_every_original_tensor_has_its_place():
    with torch.device("meta"):
        ours = golden_network(FULL).state_dict()
    ours.pop("class_embeddings")
    assert {our_key(key): shape for key, shape in golden_shapes().items()} == {k: [*v.shape] for k, v in ours.items()}


# Images to features


def test_stages_and_aspp(case):
    backbone = case.model.cagnet.backbone
    modules = {f"layer{i}": stage for i, stage in enumerate(backbone.stages, start=2)}
    outputs = recorded(case.model, {"layer1": backbone.pool, **modules, "aspp": case.model.cagnet.aspp}, case.image)
    for name, values in outputs.items():
        case.check(f"inter/{name}", values)


def test_contextual_module(training):
    context = training.model.cagnet.context
    modules = {
        "contextual1": context.scales[0],
        "contextual2": context.scales[1],
        "contextual3": context.scales[2],
        "scale_weights": context.selector,
        "contextualpool": context.merge,
        "logvar": context.log_variance,
    }
    outputs = recorded(training.model, modules, training.image)
    activated = {name: F.relu(values) for name, values in outputs.items()}
    activated["scale_weights"] = torch.sigmoid(activated["scale_weights"])
    for name, values in activated.items():
        training.check(f"inter/{name}", values)


@torch.no_grad()
def test_features_and_latent(case):
    output = case.model.cagnet(case.image)
    case.check("h0", output.features)
    case.check("h1", output.latent)
    case.check("inter/mu", output.latent_mean)


@torch.no_grad()
def test_multi_scale_features(case):
    _, maps = case.model.cagnet.multi_scale(case.image, SCALES)
    for name, values in zip(("h0", "h0_0.5", "h0_0.75", "h0_msc"), [*maps, scale_maximum(maps)], strict=True):
        case.check(name, values)


@torch.no_grad()
def test_multi_scale_features_in_training(training):
    first, maps = training.model.cagnet.multi_scale(training.image, SCALES)
    for name, values in zip(("h0_1", "h0_0.5", "h0_0.75", "h0_max"), [*maps, scale_maximum(maps)], strict=True):
        training.check(f"train/{name}", values)
    training.check("train/latent", first.latent)


@torch.no_grad()
def test_latent_noise_is_the_noise_of_the_latent(small_model):
    case = Case("s56", copy.deepcopy(small_model).train())
    noise = torch.from_numpy(recipe.noise("eps:8x8", (1, 600, 8, 8)))
    output = case.model.cagnet(case.image, latent_noise=noise)
    case.check("train/latent", output.latent)
    case.check("train/h0_1", output.features)


@torch.no_grad()
def test_kl_divergence(training):
    output = training.model.cagnet(training.image)
    divergence = kl_to_standard_normal(output.latent_mean, output.latent_log_variance, training.labelled)
    assert divergence.item() == pytest.approx(BACKBONE[f"{training.tag}/KLD:f64"], rel=1e-5)


@torch.no_grad()
def test_double_precision(small_model):
    case = Case("s72x104", copy.deepcopy(small_model).double())
    _, maps = case.model.cagnet.multi_scale(case.image.double(), SCALES)
    for name, values in zip(("h0", "h0_0.5", "h0_0.75", "h0_msc"), [*maps, scale_maximum(maps)], strict=True):
        case.check(name, values, rtol=0, atol=2e-6)  # the probes are single precision
    output = case.model.train().cagnet(case.image.double())
    divergence = kl_to_standard_normal(output.latent_mean, output.latent_log_variance, case.labelled)
    assert divergence.item() == pytest.approx(BACKBONE["s72x104/KLD:f64"], rel=1e-9)


# Features to scores, embeddings to features


def real_features():
    return torch.from_numpy(recipe.features("heads", (2, 600, 9, 9)))


def generator_inputs(model):
    class_ids = torch.from_numpy(recipe.labels("heads", 2, 9, 9, 20, cell=3, ignore_one_in=0))
    return model.embed_classes(class_ids), torch.from_numpy(recipe.noise("heads", (2, 600, 9, 9)))


@torch.no_grad()
def test_generator(small_model):
    features = small_model.generator(*generator_inputs(small_model))
    right, error = recipe.check_probe(HEADS, "gen/out", features.numpy(), rtol=1e-4, atol=1e-5)
    assert right, error


@torch.no_grad()
def test_generator_before_the_sigmoid(small_model):
    features = small_model.generator.layers(torch.cat(generator_inputs(small_model), dim=1))
    right, error = recipe.check_probe(HEADS, "gen/mlp_out", features.numpy(), rtol=1e-4, atol=1e-5)
    assert right, error


@torch.no_grad()
def test_trunk(small_model):
    hidden = small_model.classifier.hidden(real_features())
    right, error = recipe.check_probe(HEADS, "dis/fc", hidden.numpy(), rtol=1e-4, atol=1e-5)
    assert right, error


@torch.no_grad()
@pytest.mark.parametrize("source", ["real", "fake"])
def test_class_scores_and_realness(small_model, source):
    features = real_features() if source == "real" else small_model.generator(*generator_inputs(small_model))
    classifier = small_model.classifier
    np.testing.assert_allclose(classifier(features), HEADS[f"dis/cls_{source}"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(classifier.criticise(features), HEADS[f"dis/gan_{source}"], rtol=1e-4, atol=1e-5)


# Labels to feature resolution


def golden_label_maps(name: str) -> tuple[np.ndarray, np.ndarray]:
    old = name.split("_")[0]
    if old == "30x50":
        return recipe.labels("resize:ns", 1, 30, 50, 20, cell=5), RESIZE[name]
    return recipe.labels(f"resize:{old}", 2, int(old), int(old), 20, cell=5), RESIZE[name]


@pytest.mark.parametrize("name", RESIZE.files)
def test_resized_label_tensors(name):
    labels, resized = golden_label_maps(name)
    assert (resize_labels(torch.from_numpy(labels), resized.shape[1:]).numpy() == resized).all()


@pytest.mark.parametrize("name", RESIZE.files)
def test_resized_label_arrays(name):
    labels, resized = golden_label_maps(name)
    for label_map, small_map in zip(labels, resized, strict=True):
        assert (resize_labels(label_map, small_map.shape) == small_map).all()
