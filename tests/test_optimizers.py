"""Optimisers: who is in them, with which rate and which decay; and that what is hidden never reaches them."""

import numpy as np
import pytest
import torch
from tiny import new_model, noise_batch, real_step, tiny_recipe

from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data.samples import Sample
from cagnet_hf.data.stream import LabelledImages, TrainingExamples
from cagnet_hf.data.transforms import TrainingTransform
from cagnet_hf.model.decoding_cagnet import image_tensor
from cagnet_hf.training.optimizers import build_optimizers, set_learning_rates
from cagnet_hf.training.setup import build_processor

FACTORS = "{context: 5, aspp_weights: 10, aspp_biases: 20}"


def groups_by_name(recipe, stage: str = "pretrain") -> dict[str, dict]:
    """The optimiser group of every parameter that learns in a stage, by parameter name."""
    model, optimizers = new_model(recipe, stage)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}


def test_every_parameter_learns_in_pretraining():
    recipe = tiny_recipe("cagnet_pi")
    model, _ = new_model(recipe)
    assert groups_by_name(recipe).keys() == dict(model.named_parameters()).keys()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_frozen_batch_normalisation_takes_no_part():
    names = groups_by_name(tiny_recipe("cagnet_pi", "model.freeze_batch_norm=true"))
    assert not [name for name in names if "normalization" in name]
    assert "cagnet.backbone.stem.convolution.weight" in names


def test_the_network_takes_no_part_in_finetuning():
    names = groups_by_name(tiny_recipe("cagnet_pi"), "finetune")
    assert {name.partition(".")[0] for name in names} == {"classifier", "generator"}


def test_what_does_not_learn_requires_no_gradient():
    model, _ = new_model(tiny_recipe("cagnet_pi"), "finetune")
    assert not any(parameter.requires_grad for parameter in model.cagnet.parameters())


def test_a_stage_that_follows_gives_back_the_right_to_learn():
    recipe = tiny_recipe("cagnet_pi")
    model, _ = new_model(recipe, "finetune")
    build_optimizers(model, recipe.stages["pretrain"])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_biases_of_the_pyramid_and_batch_normalisation_do_not_decay():
    groups = groups_by_name(tiny_recipe("cagnet_pi"))
    for name, group in groups.items():
        if name.startswith("cagnet."):
            spared = "normalization" in name or (name.startswith("cagnet.aspp.") and name.endswith("bias"))
            assert group["weight_decay"] == (0 if spared else 0.0005), name


def test_parts_of_the_network_have_their_own_rates():
    recipe = tiny_recipe("cagnet_pi", f"stages.pretrain.network.multipliers={FACTORS}")
    model, optimizers = new_model(recipe)
    set_learning_rates(optimizers, recipe.stages["pretrain"], 0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizers["network"].param_groups for p in group["params"]}
    expected = {
        "cagnet.backbone.stem.convolution.weight": 0.002,
        "cagnet.context.mean.weight": 0.01,
        "cagnet.context.selector.weight": 0.01,
        "cagnet.aspp.branches.0.weight": 0.02,
        "cagnet.aspp.branches.0.bias": 0.04,
    }
    assert {name: rates[name] for name in expected} == pytest.approx(expected)


def step_once(recipe):
    """(selector before, selector after) one real step of pre-training."""
    model, optimizers = new_model(recipe)
    before = model.cagnet.context.selector.weight.detach().clone()
    real_step(model, noise_batch(), recipe, recipe.stages["pretrain"]).total.backward()
    for optimizer in optimizers.values():
        optimizer.step()
    return before, model.cagnet.context.selector.weight


def test_the_selector_is_trained():
    before, after = step_once(tiny_recipe("cagnet_pi"))
    assert not torch.equal(after, before)


def test_the_selector_can_be_left_untrained():
    before, after = step_once(tiny_recipe("cagnet_pi", "stages.pretrain.network.multipliers={selector: 0}"))
    assert torch.equal(after, before)
    assert after.grad is None


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_fused_updates_are_the_plain_ones(kind):
    """In the layout of training, in which the weights of a convolution do not lie in the order of their indices."""
    recipe = tiny_recipe("cagnet_pi", *(f"stages.pretrain.{p}.optimizer={kind}" for p in ("network", "classifier")))
    weights = {}
    for fused in (False, True):
        model, _ = new_model(recipe)
        optimizers = build_optimizers(model.to(memory_format=torch.channels_last), recipe.stages["pretrain"])
        for optimizer in optimizers.values():
            optimizer.defaults["fused"] = fused
            for group in optimizer.param_groups:
                group["fused"] = fused
        for _ in range(3):
            torch.manual_seed(1)
            model.zero_grad()
            real_step(model, noise_batch(), recipe, recipe.stages["pretrain"]).total.backward()
            for optimizer in optimizers.values():
                optimizer.step()
        weights[fused] = dict(model.named_parameters())
    for name, values in weights[True].items():
        torch.testing.assert_close(values, weights[False][name], msg=name)


# What training must not see


def total_of_a_real_step(mask: np.ndarray, *overrides: str) -> torch.Tensor:
    """The loss of a real step on one image of noise with the stored mask `(96, 96)`."""
    recipe = tiny_recipe("cagnet_pi", *overrides)
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    rows = [Sample(image_tensor(pixels), torch.from_numpy(mask), "noise")]
    transform = TrainingTransform(build_processor(recipe), 96, **recipe.augmentation.model_dump())
    labels = load_benchmark("scenes").label_space
    images = LabelledImages(rows, labels, hide_unseen=not recipe.supervised)
    example = TrainingExamples(images, transform, seed=0)[0, 0]
    model, _ = new_model(recipe)
    torch.manual_seed(1)
    batch = {key: value[None] for key, value in example.items()}
    return real_step(model, batch, recipe, recipe.stages["pretrain"]).total


@pytest.fixture
def mask() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 17, (12, 12), dtype=np.uint8).repeat(8, 0).repeat(8, 1)


@pytest.mark.parametrize("poison", [0, 13, 16, 255])
def test_labels_of_unseen_classes_enter_no_loss(mask, poison):
    poisoned = np.where(mask > 12, poison, mask).astype(np.uint8)
    assert torch.equal(total_of_a_real_step(poisoned), total_of_a_real_step(mask))


def test_labels_of_unseen_classes_do_enter_the_supervised_upper_bound(mask):
    poisoned = np.where(mask > 12, 13, mask).astype(np.uint8)
    supervised = "supervised=true"
    assert not torch.equal(total_of_a_real_step(poisoned, supervised), total_of_a_real_step(mask, supervised))
