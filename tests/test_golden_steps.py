"""Steps of the paper's network give the reference's losses, gradients and updates.

Dropout is off and every random number is the golden set's. The reference's generator may also learn to please the
classifier (`G_cls`), which no published schedule uses; that term is left out of the comparison.
"""

import json

import numpy as np
import pytest
import torch
from golden import recipe as golden
from golden_weights import GOLDEN, golden_model, golden_patch_model, our_patch_key
from tiny import real_step
from torch import nn

from cagnet_hf.methods import cagnet
from cagnet_hf.methods.losses import classwise_mmd, content_loss
from cagnet_hf.methods.options import Recipe
from cagnet_hf.training.optimizers import build_optimizers, set_learning_rates
from cagnet_hf.training.recipe_files import parse_recipe

STEPS = json.loads((GOLDEN / "steps.json").read_text())
CASES, UPDATES = STEPS["cases"], STEPS["updates"]["pa3_voc12/simultaneous"]
# The release's name -> ours: its "lsgan" takes absolute values.
ADVERSARIAL = {"lsgan": "l1", "gan": "bce", "wgan": "wgan"}
CONTENT = {"MMDLoss": "mmd", "ContentLoss": "l1", "ContentLossMSE": "l2"}
PRECISIONS = {torch.float32: {"rel": 1e-5}, torch.float64: {"rel": 1e-9}}
PARTS = {"network": "loss_B", "classifier": "loss_D", "generator": "loss_G"}


def recipe_of(case: str) -> Recipe:
    """The case's weights with the published rates; a case without a loss for the backbone freezes it."""
    lambdas = CASES[case]["lambdas"]
    factors = {"context": 5, "selector": 0, "aspp_weights": 10, "aspp_biases": 20}
    network = {"optimizer": "sgd", "lr": 2.5e-4, "weight_decay": 5e-4, "schedule": "poly", "update_every": 10}
    stage = {
        "iterations": 40000,
        "batch_size": 2,
        "crop_size": 88,
        "weights": {
            "classifier_real": lambdas["lambda_D_cls_real"],
            "classifier_synthetic": lambdas["lambda_D_cls_fake"],
            "backbone_classification": lambdas["lambda_B_cls"],
            "backbone_kl": lambdas["lambda_B_KLD"],
            "generator_adversarial": lambdas["lambda_G_GAN"],
            "generator_content": lambdas["lambda_G_Content"],
            "synthetic_step": lambdas["lambda_D_cls_fake_transfer"],
        },
        "network": {**network, "multipliers": factors} if CASES[case]["f64"]["step1"]["B"] else None,
        "classifier": {"optimizer": "adam", "lr": 2.5e-4, "weight_decay": 5e-4},
        "generator": {"optimizer": "adam", "lr": 2e-4},
    }
    tree = {
        "benchmark": "pascal_voc",
        "method": "cagnet_pi",
        "adversarial_loss": ADVERSARIAL[lambdas["gan_type"]],
        "content_loss": CONTENT[lambdas["content_loss"]],
        "stages": {"only": stage},
    }
    return parse_recipe(tree, "golden")


def golden_batch(dtype) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.from_numpy(golden.image("step", 2, 88, 88)).to(dtype),
        "labels": torch.from_numpy(golden.labels("step", 2, 88, 88, 15)),
    }


def prepared(model):
    """The network in training mode, without dropout, with the golden noise of each scale's feature size."""

    def golden_noise(_module, inputs):
        shape = tuple(inputs[0].shape)
        return inputs[0], torch.from_numpy(golden.noise("eps:{2}x{3}".format(*shape), shape)).to(inputs[0])

    model.cagnet.context.register_forward_pre_hook(golden_noise)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.requires_grad_(True).train()


@pytest.fixture(scope="module", params=PRECISIONS, ids=["float32", "float64"])
def networks(request):
    """The pixel-wise (1) and the patch-wise (3) network, by patch size.

    They share their weights and what they see of the batch, which is computed once.
    """
    model = prepared(golden_model().to(request.param))
    with torch.no_grad():
        seen = model.cagnet.multi_scale(golden_batch(model.dtype)["pixel_values"])
    networks = {1: model, 3: prepared(golden_patch_model(model))}
    for network in networks.values():
        network.cagnet.multi_scale = lambda pixel_values, scales: seen
    return networks


@pytest.fixture(scope="module", autouse=True)
def mmd_of_runs():
    """The release takes the MMD of runs of equal labels along the raster, where ours takes it of classes."""

    def of_runs(kind, synthetic, real, labels, num_classes, **options):
        if kind != "mmd":
            return content_loss(kind, synthetic, real, labels, num_classes, **options)
        lengths = labels.unique_consecutive(return_counts=True)[1]
        runs = torch.arange(len(lengths)).repeat_interleave(lengths)
        return classwise_mmd(synthetic, real, runs, len(lengths), max_pixels=lengths.max().item())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cagnet, "content_loss", of_runs)
        yield


def run_real_step(model, recipe: Recipe):
    return real_step(model, golden_batch(model.dtype), recipe, recipe.stages["only"])


def as_released(terms: dict, weights) -> dict[str, float]:
    """The terms of a real step, weighted, by their released names; of the network's only where it learns."""
    term = {name: value.item() for name, value in terms.items()}
    values = {
        "D_GAN": term["critic"],
        "D_cls_real": weights.classifier_real * term["classification"],
        "D_cls_fake": weights.classifier_synthetic * term.get("classification_synthetic", 0),
        "G_GAN": weights.generator_adversarial * term["generator"],
        "G_Content": weights.generator_content * term["content"],
    }
    if "kl" in term:
        values["B_cls"] = weights.backbone_classification * term["classification"]
        values["B_KLD"] = weights.backbone_kl * term["kl"]
    return values


# Losses


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_losses_of_a_real_step_are_the_reference_s(networks, case):
    model, recipe = networks[CASES[case]["overrides"]["patchsize"]], recipe_of(case)
    result, expected = run_real_step(model, recipe), CASES[case]["f64"]["step1"]
    values = as_released(result.terms, recipe.stages["only"].weights)
    assert ("B_KLD" in values) == (expected["B"] > 0)
    assert values == {name: pytest.approx(expected[name], **PRECISIONS[model.dtype]) for name in values}
    # The classification loss counts once in our total: the network's share is a scale on its gradient.
    released = expected["D"] + expected["B_KLD"] + expected["G"] - expected["G_cls"]
    assert result.total.item() == pytest.approx(released, **PRECISIONS[model.dtype])


def golden_class_ids(patch_size: int) -> np.ndarray:
    """`(2, 12, 12)` synthetic labels: single pixels, or 16 patches an image in raster order."""
    if patch_size == 1:
        return golden.integers("step2:gt", (2, 12, 12), 20)
    patches = golden.integers("patches", (4096, 3, 3), 20)
    drawn = [np.argsort(golden._bits(f"step2:pick:{k}", 4096), kind="stable")[:16] for k in range(2)]
    return patches[np.stack(drawn)].reshape(2, 4, 4, 3, 3).swapaxes(2, 3).reshape(2, 12, 12)


def synthetic_loss(model, monkeypatch, train_generator: bool = False) -> torch.Tensor:
    def golden_latent(shape, generator, device, dtype):
        return torch.from_numpy(golden.noise("step2:z", shape)).to(device, dtype)

    monkeypatch.setattr(model.generator, "draw_latent", golden_latent)
    class_ids = torch.from_numpy(golden_class_ids(model.config.patch_size))
    return model.synthetic_loss(class_ids, train_generator=train_generator)


@pytest.mark.parametrize("case", ["pi_finetune", "pa3_finetune"])
@torch.no_grad()
def test_loss_of_a_synthetic_step_is_the_reference_s(networks, case, monkeypatch):
    model, expected = networks[CASES[case]["overrides"]["patchsize"]], CASES[case]["f64"]
    assert golden.sha(golden_class_ids(model.config.patch_size)) == expected["step2_gt_sha"]
    loss = synthetic_loss(model, monkeypatch).item()
    assert loss == pytest.approx(expected["step2"]["cls_fake"], **PRECISIONS[model.dtype])
    weight = recipe_of(case).stages["only"].weights.synthetic_step
    assert weight * loss == pytest.approx(expected["step2"]["D"], **PRECISIONS[model.dtype])


# Gradients


@pytest.fixture(scope="module")
def model():
    """The pixel-wise network in double precision."""
    return prepared(golden_model().double())


def gradient_norms(model, part: str) -> dict[str, float]:
    """Norms of the gradients of a part, by parameter name, where there is one."""
    prefix = "cagnet" if part == "network" else part
    parameters = {name: p for name, p in model.named_parameters() if name.startswith(prefix)}
    return {name: p.grad.norm().item() for name, p in parameters.items() if p.grad is not None}


def golden_norms(norms: dict[str, float], names) -> dict[str, float]:
    ours = {our_patch_key(original): norm for original, norm in norms.items()}
    return {name: pytest.approx(ours[name], rel=1e-9) for name in names}


@pytest.mark.parametrize(
    ("case", "parts"),
    [("pi_alllambda", ["network", "classifier"]), ("pi_finetune", ["classifier", "generator"])],
)
def test_one_total_gives_every_part_the_gradient_of_its_own_loss(model, case, parts):
    model.zero_grad()
    run_real_step(model, recipe_of(case)).total.backward()
    expected = CASES[case]["f64"]["grad_norm"]
    for part in parts:
        norms = gradient_norms(model, part)
        with_path = [our_patch_key(key) for key, norm in expected[PARTS[part]].items() if norm is not None]
        prefix = "cagnet" if part == "network" else part
        assert norms.keys() == {name for name in with_path if name.startswith(prefix)}
        assert norms == golden_norms(expected[PARTS[part]], norms)
    if "network" not in parts:
        assert gradient_norms(model, "network") == {}


def test_a_synthetic_step_gives_the_classifier_the_reference_s_gradient(model, monkeypatch):
    model.zero_grad()
    weight = recipe_of("pi_finetune").stages["only"].weights.synthetic_step
    (weight * synthetic_loss(model, monkeypatch)).backward()
    norms = gradient_norms(model, "classifier")
    learning = {f"classifier.{layer}.{leaf}" for layer in ("trunk", "class_head") for leaf in ("weight", "bias")}
    assert norms.keys() == learning
    assert norms == golden_norms(CASES["pi_finetune"]["f64"]["grad_norm_step2"]["loss_D"], norms)


# Updates


@pytest.fixture(scope="module")
def updates():
    """(terms of both iterations, gradient norms of the first, change of every parameter) in double precision."""
    model, recipe = prepared(golden_patch_model(golden_model().double())), recipe_of("pa3_voc12")
    stage = recipe.stages["only"]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizers, terms, norms = build_optimizers(model, stage), [], {}
    for iteration in range(2):
        set_learning_rates(optimizers, stage, iteration)
        result = run_real_step(model, recipe)
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        result.total.backward()
        norms = norms or {part: gradient_norms(model, part) for part in PARTS}
        for optimizer in optimizers.values():
            optimizer.step()
        terms.append(as_released(result.terms, stage.weights))
    return terms, norms, {name: p.detach() - before[name] for name, p in model.named_parameters()}


def test_losses_of_two_updates_are_the_reference_s(updates):
    for values, expected in zip(updates[0], UPDATES["losses"], strict=True):
        assert values == {name: pytest.approx(expected[f"loss_{name}"], rel=1e-9) for name in values}


@pytest.mark.parametrize("part", PARTS)
def test_gradients_of_the_patch_wise_network_are_the_reference_s(updates, part):
    norms = updates[1][part]
    assert norms == golden_norms(CASES["pa3_voc12"]["f64"]["grad_norm"][PARTS[part]], norms)


def test_two_updates_change_the_parameters_as_the_reference_does(updates):
    """The selector stands still there, and frozen batch normalisation; all else moves."""
    changes = updates[2]
    expected = {our_patch_key(key): (key, d) for key, d in UPDATES["delta"].items() if not key.startswith("Em_")}
    assert changes.keys() == expected.keys()
    for name, (original, delta) in expected.items():
        change = changes[name].flatten()
        if not delta:
            assert not change.any(), name
            continue
        values = change[golden.probe_index(f"delta:{original}", change.numel(), 4)].tolist()
        assert change.norm().item() == pytest.approx(delta["l2"], rel=1e-9), name
        assert values == pytest.approx(delta["values"], rel=1e-6, abs=1e-12), name
