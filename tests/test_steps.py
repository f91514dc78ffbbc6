"""Steps: which losses there are and who learns from them."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import NUM_CLASSES, NUM_SEEN, gradients, new_model, noise_batch, tiny_recipe

from cagnet_hf.training.recipe import Recipe
from cagnet_hf.training.steps import draw_label_maps, real_step, synthetic_step


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return noise_batch()


def run_real_step(batch, *overrides: str, stage: str = "pretrain"):
    """(model with gradients, result) of one real step, the same random numbers whatever the recipe."""
    recipe = tiny_recipe("cagnet_pi", *overrides)
    model, _ = new_model(recipe, stage)
    torch.manual_seed(1)
    result = real_step(model, batch, recipe, recipe.stages[stage])
    result.total.backward()
    return model, result


def weights(stage: str = "pretrain", **values: float) -> list[str]:
    return [f"stages.{stage}.weights.{name}={value}" for name, value in values.items()]


# Who learns in a real step


def test_everything_learns_in_pretraining(batch):
    model, _ = run_real_step(batch)
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, _ in model.named_parameters()}


def test_the_network_does_not_learn_in_finetuning(batch):
    model, _ = run_real_step(batch, stage="finetune")
    assert all(parameter.grad is None for parameter in model.cagnet.parameters())
    assert gradients(model.classifier)
    assert gradients(model.generator)


def test_no_graph_is_built_through_a_frozen_network(batch):
    recipe = tiny_recipe("cagnet_pi")
    model, _ = new_model(recipe, "finetune")
    outputs = []
    for module in model.cagnet.modules():
        module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    real_step(model, batch, recipe, recipe.stages["finetune"])
    tensors = [output for output in outputs if isinstance(output, torch.Tensor)]
    assert tensors
    assert not any(tensor.requires_grad for tensor in tensors)


def test_the_network_learns_from_classification_and_kl_alone(batch):
    model, _ = run_real_step(batch, *weights(backbone_classification=0, backbone_kl=0))
    assert gradients(model.cagnet) == {}


def test_the_networks_share_of_classification_is_the_ratio_of_the_weights(batch):
    whole, _ = run_real_step(batch, *weights(backbone_classification=1, backbone_kl=0))
    half, _ = run_real_step(batch, *weights(backbone_classification=0.5, backbone_kl=0))
    expected = gradients(whole.cagnet)
    assert gradients(half.cagnet).keys() == expected.keys()
    for name, gradient in gradients(half.cagnet).items():
        assert torch.equal(gradient, expected[name] / 2), name


def test_the_networks_share_does_not_depend_on_the_classifiers(batch):
    one, _ = run_real_step(batch, *weights(backbone_classification=0.5, backbone_kl=0))
    other, _ = run_real_step(batch, *weights(backbone_classification=0.5, backbone_kl=0, classifier_real=4))
    for name, gradient in gradients(one.cagnet).items():
        torch.testing.assert_close(gradients(other.cagnet)[name], gradient)


def test_the_classifier_does_not_feel_the_networks_share(batch):
    one, _ = run_real_step(batch, *weights(backbone_classification=1))
    other, _ = run_real_step(batch, *weights(backbone_classification=0.5))
    for name, gradient in gradients(one.classifier).items():
        assert torch.equal(gradients(other.classifier)[name], gradient), name


@pytest.mark.parametrize("kind", ["lsgan", "l1", "bce", "wgan", "wgan-gp"])
def test_the_classifier_does_not_learn_to_please_the_generator(batch, kind):
    one, _ = run_real_step(batch, f"adversarial_loss={kind}", *weights(generator_adversarial=0))
    other, _ = run_real_step(batch, f"adversarial_loss={kind}", *weights(generator_adversarial=1000))
    for name, gradient in gradients(one.classifier).items():
        assert torch.equal(gradients(other.classifier)[name], gradient), name


@pytest.mark.parametrize("kind", ["lsgan", "l1", "bce", "wgan", "wgan-gp"])
def test_the_generator_does_not_learn_from_the_critics_loss(batch, kind):
    silent = weights(generator_adversarial=0, generator_content=0, classifier_synthetic=1)
    model, _ = run_real_step(batch, f"adversarial_loss={kind}", *silent)
    assert gradients(model.generator) == {}
    assert "critic_head.weight" in gradients(model.classifier)


@pytest.mark.parametrize("content_loss", ["mmd", "l1", "l2"])
def test_the_generator_learns_from_the_content_loss(batch, content_loss):
    model, _ = run_real_step(batch, f"content_loss={content_loss}", *weights(generator_adversarial=0))
    assert gradients(model.generator).keys() == dict(model.generator.named_parameters()).keys()


def test_the_classifiers_weights_learn_again_after_a_step(batch):
    model, _ = run_real_step(batch)
    assert all(parameter.requires_grad for parameter in model.classifier.parameters())


# Losses of a real step


def test_the_total_is_the_weighted_sum_of_the_terms(batch):
    _, result = run_real_step(batch)
    terms = {name: value.item() for name, value in result.terms.items()}
    factors = {"classification": 1, "kl": 100, "critic": 1, "generator": 1, "content": 50}
    assert terms.keys() == factors.keys()
    assert result.total.item() == pytest.approx(sum(factors[name] * terms[name] for name in terms), rel=1e-5)


def test_classification_averages_the_scales_and_their_maximum(batch):
    recipe = tiny_recipe("cagnet_pi", "stages.pretrain.scales=[1.0, 0.5]", "model.classifier_dropout=0")
    model, _ = new_model(recipe)
    torch.manual_seed(1)
    _, maps = model.cagnet.multi_scale(batch["pixel_values"], (1.0, 0.5))
    losses = []
    for features in maps:
        labels = F.interpolate(batch["labels"][None].float(), features.shape[-2:])[0].long()
        losses.append(F.cross_entropy(model.classify(features), labels, ignore_index=255))
    torch.manual_seed(1)
    result = real_step(model, batch, recipe, recipe.stages["pretrain"])
    assert len(losses) == 3
    assert result.terms["classification"].item() == pytest.approx(sum(losses).item() / 3, rel=1e-5)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_batch_without_a_labelled_pixel_is_survived(batch, stage):
    recipe = tiny_recipe("cagnet_pi")
    model, optimizers = new_model(recipe, stage)
    batch["labels"][:] = 255
    result = real_step(model, batch, recipe, recipe.stages[stage])
    result.total.backward()
    for optimizer in optimizers.values():
        optimizer.step()
    assert result.total.item() == 0
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["lsgan", "l1", "bce", "wgan", "wgan-gp"])
def test_a_single_labelled_pixel_is_enough(batch, kind):
    batch["labels"][:] = 255
    batch["labels"][0, 0, 0] = 3
    _, result = run_real_step(batch, f"adversarial_loss={kind}")
    assert "content" in result.terms
    assert math.isfinite(result.total.item())


# SPNet


@pytest.fixture
def spnet() -> Recipe:
    return tiny_recipe("spnet")


def test_spnet_learns_without_classifier_and_generator(batch, spnet):
    model, optimizers = new_model(spnet)
    result = real_step(model, batch, spnet, spnet.stages["pretrain"])
    assert set(result.terms) == {"classification"}
    assert set(optimizers) == {"network"}


def test_spnet_is_trained_on_the_seen_columns_alone(batch, spnet):
    model, _ = new_model(spnet)
    before = real_step(model, batch, spnet, spnet.stages["pretrain"]).total
    model.class_embeddings[NUM_SEEN:] = torch.randn(NUM_CLASSES - NUM_SEEN, model.config.embedding_size)
    assert torch.equal(real_step(model, batch, spnet, spnet.stages["pretrain"]).total, before)


def test_supervised_spnet_is_trained_on_all_columns(batch, spnet):
    model, _ = new_model(spnet)
    supervised = spnet.model_copy(update={"supervised": True})
    batch["labels"][:, :16] = NUM_CLASSES - 1
    assert real_step(model, batch, supervised, spnet.stages["pretrain"]).total.isfinite()


# Synthetic steps


def run_synthetic_step(*overrides: str, run=synthetic_step):
    """(model with gradients, result) of one synthetic step."""
    recipe = tiny_recipe("cagnet_pi", *overrides)
    model, _ = new_model(recipe, "finetune")
    torch.manual_seed(1)
    result = run(model, recipe.stages["finetune"])
    result.total.backward()
    return model, result


def test_a_synthetic_step_runs_no_part_of_the_network():
    def fail(module, inputs, output):
        raise AssertionError(f"{type(module).__name__} ran")

    def run(model, stage):
        for module in model.cagnet.modules():
            module.register_forward_hook(fail)
        return synthetic_step(model, stage)

    run_synthetic_step(run=run)


def test_a_synthetic_step_is_the_models_synthetic_loss_weighted():
    def run(model, stage):
        state = torch.get_rng_state()
        result = synthetic_step(model, stage)
        torch.set_rng_state(state)
        shape = (stage.batch_size, stage.synthetic_size, stage.synthetic_size)
        loss = model.synthetic_loss(draw_label_maps(model, shape, stage.unseen_rate))
        assert torch.equal(result.terms["synthetic"], loss)
        assert torch.equal(result.total, 0.25 * loss)
        return result

    run_synthetic_step(*weights("finetune", synthetic_step=0.25), run=run)


def test_the_generator_does_not_learn_in_a_synthetic_step():
    model, _ = run_synthetic_step()
    assert all(parameter.grad is None for parameter in model.generator.parameters())
    assert gradients(model.classifier).keys() == {"trunk.weight", "trunk.bias", "class_head.weight", "class_head.bias"}


def test_the_generator_learns_in_a_synthetic_step_when_asked():
    model, _ = run_synthetic_step("stages.finetune.generator_learns_from_synthetic=true")
    assert gradients(model.generator).keys() == dict(model.generator.named_parameters()).keys()


@pytest.mark.parametrize("unseen_rate", [0, 9, 59])
def test_synthetic_pixels_prefer_unseen_classes_by_their_rate(unseen_rate):
    model, _ = new_model(tiny_recipe("cagnet_pi"))
    torch.manual_seed(0)
    maps = draw_label_maps(model, (10, 100, 100), unseen_rate)
    assert maps.shape == (10, 100, 100)
    odds = torch.tensor([1.0] * NUM_SEEN + [1.0 + unseen_rate] * (NUM_CLASSES - NUM_SEEN))
    share = odds / odds.sum()
    deviation = (share * (1 - share) / maps.numel()).sqrt()
    counted = maps.flatten().bincount(minlength=NUM_CLASSES) / maps.numel()
    assert ((counted - share).abs() < 5 * deviation).all()
