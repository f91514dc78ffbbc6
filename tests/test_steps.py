"""Steps: which losses there are and who learns from them."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny import (
    NUM_CLASSES,
    NUM_SEEN,
    Tape,
    gradients,
    iterate,
    method_for,
    new_model,
    noise_batch,
    real_step,
    tiny_recipe,
)
from torch.utils._python_dispatch import TorchDispatchMode

from cagnet_hf.methods import cagnet
from cagnet_hf.methods import zs3net as joint
from cagnet_hf.methods.options import PseudoLabelRecipe, Recipe, RecipeError
from cagnet_hf.methods.pseudo_labels import label_ignored_pixels
from cagnet_hf.model.maps_cagnet import resize_labels, scale_maximum
from cagnet_hf.patches.layouts import PatchSource
from cagnet_hf.training.recipe_files import load_recipe


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


@pytest.mark.parametrize("groups", ["classes", "runs"])
def test_the_mmd_compares_classes_or_as_published_runs_of_equal_labels(batch, groups, monkeypatch):
    asked = []
    monkeypatch.setattr(cagnet, "content_loss", lambda kind, made, *rest, **_: asked.append(rest) or made.sum())
    run_real_step(batch, f"mmd_groups={groups}")
    ((_, of_pixel, count),) = asked
    changes = int((of_pixel[1:] != of_pixel[:-1]).sum())
    labels = resize_labels(batch["labels"], (6, 6))
    assert (changes + 1 == count) == (groups == "runs")
    assert (len(labels[labels != 255].unique()) == count) == (groups == "classes")


@pytest.mark.parametrize("latent", ["context", "noise"])
def test_the_generators_latent_is_the_context_or_as_an_ablation_noise(batch, latent):
    recipe = tiny_recipe("cagnet_pi", f"generator_latent={latent}")
    model, _ = new_model(recipe, "pretrain")
    made, given = [], []
    model.cagnet.context.register_forward_hook(lambda module, inputs, outputs: made.append(outputs[0]))
    model.generator.register_forward_pre_hook(lambda module, inputs: given.append(inputs[1]))
    real_step(model, batch, recipe, recipe.stages["pretrain"])
    labels = resize_labels(batch["labels"], made[0].shape[-2:])
    of_pixels = made[0].movedim(1, -1)[labels != 255]
    assert torch.equal(given[0][0, :, 0].t(), of_pixels) == (latent == "context")
    assert not given[0].requires_grad


@pytest.mark.parametrize("objective", ["released", "paper"])
def test_the_generators_losses_teach_the_contextual_module_where_the_papers_text_is_followed(batch, objective):
    options = f"objective={objective}", "content_loss=l2"
    one, _ = run_real_step(batch, *options, *weights(generator_adversarial=0, generator_content=0))
    other, _ = run_real_step(batch, *options, *weights(generator_adversarial=0, generator_content=10))
    same = [torch.equal(gradients(other.cagnet)[name], gradient) for name, gradient in gradients(one.cagnet).items()]
    assert all(same) == (objective == "released")


def test_an_objective_that_trains_what_the_generator_does_not_hear_is_refused():
    with pytest.raises(RecipeError, match="generator_latent"):
        tiny_recipe("cagnet_pi", "objective=paper", "generator_latent=noise")
    with pytest.raises(RecipeError, match="trains network and generator together"):
        load_recipe("pascal_voc_frozen/cagnet_pi", ["objective=paper"])
    load_recipe("pascal_voc_frozen/cagnet_pi", ["objective=paper", "until=pretrain"])  # what variants share


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
    for features in [*maps, scale_maximum(maps)]:
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


def run_synthetic_step(*overrides: str, run=lambda method: method.synthetic_step()):
    """(model with gradients, result) of one synthetic step."""
    recipe = tiny_recipe("cagnet_pi", *overrides)
    model, _ = new_model(recipe, "finetune")
    torch.manual_seed(1)
    result = run(method_for(model, recipe, recipe.stages["finetune"]))
    result.total.backward()
    return model, result


def test_a_synthetic_step_runs_no_part_of_the_network():
    def fail(module, inputs, output):
        raise AssertionError(f"{type(module).__name__} ran")

    def run(method):
        for module in method.model.cagnet.modules():
            module.register_forward_hook(fail)
        return method.synthetic_step()

    run_synthetic_step(run=run)


def test_a_synthetic_step_is_the_models_synthetic_loss_weighted():
    def run(method):
        state, stage = torch.get_rng_state(), method.stage
        result = method.synthetic_step()
        torch.set_rng_state(state)
        shape = (stage.batch_size, stage.synthetic_size, stage.synthetic_size)
        loss = method.model.synthetic_loss(method.draw_label_maps(shape))
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
    recipe = tiny_recipe("cagnet_pi", f"stages.finetune.unseen_rate={unseen_rate}")
    model, _ = new_model(recipe, "finetune")
    torch.manual_seed(0)
    maps = method_for(model, recipe, recipe.stages["finetune"]).draw_label_maps((10, 100, 100))
    assert maps.shape == (10, 100, 100)
    odds = torch.tensor([1.0] * NUM_SEEN + [1.0 + unseen_rate] * (NUM_CLASSES - NUM_SEEN))
    share = odds / odds.sum()
    deviation = (share * (1 - share) / maps.numel()).sqrt()
    counted = maps.flatten().bincount(minlength=NUM_CLASSES) / maps.numel()
    assert ((counted - share).abs() < 5 * deviation).all()


# Joint steps (ZS3Net)


@pytest.fixture
def zs3net():
    """(recipe, model, batch of two images with classes 0, 1 and 0, 5)."""
    recipe = tiny_recipe("zs3net")
    model, _ = new_model(recipe, "finetune")
    batch = noise_batch() | {"padding": torch.zeros(2, 32, 32, dtype=torch.bool)}
    batch["labels"][0, :16], batch["labels"][0, 16:] = 0, 1
    batch["labels"][1, :16], batch["labels"][1, 16:24], batch["labels"][1, 24:] = 0, 5, 255
    return recipe, model, batch


def joint_updates(zs3net, label_maps=None) -> Tape:
    recipe, model, batch = zs3net
    method = method_for(model, recipe, recipe.stages["finetune"])
    if label_maps is not None:
        method.draw_label_maps = label_maps
    return iterate(model, batch, recipe, recipe.stages["finetune"], method)[1]


def test_the_generator_learns_once_per_image_and_class_then_the_classifier_once(zs3net):
    assert joint_updates(zs3net).learners == [("generator",)] * 4 + [("classifier",)]


def test_each_joint_update_reaches_its_learner_alone(zs3net):
    tape = joint_updates(zs3net)
    assert tape.reached == [set(learners) for learners in tape.learners]


def test_joint_steps_compare_features_of_one_image_and_class(zs3net, monkeypatch):
    _, model, batch = zs3net
    compared, asked = [], []
    made = model.synthesize_features
    monkeypatch.setattr(model, "synthesize_features", lambda ids: asked.append(ids.unique().tolist()) or made(ids))
    monkeypatch.setattr(joint, "moment_matching_loss", lambda fake, real, **_: compared.append(real) or fake.sum())
    joint_updates(zs3net)
    assert asked[:4] == [[0], [1], [0], [5]]
    with torch.no_grad():
        features = model.cagnet(batch["pixel_values"]).features
    labels = resize_labels(batch["labels"], features.shape[-2:])
    for (image, label), real in zip([(0, 0), (0, 1), (1, 0), (1, 5)], compared, strict=True):
        of_class = features[image][:, labels[image] == label].t()
        assert (real[:, None] == of_class).all(dim=-1).any(dim=1).all()
        assert len(real) == 64


def test_the_classifier_sees_made_features_only_where_an_ignored_pixel_was_drawn_unseen(zs3net, monkeypatch):
    _, _, batch = zs3net
    seen_truths = []
    loss = joint.mean_cross_entropy
    monkeypatch.setattr(joint, "mean_cross_entropy", lambda x, y, **k: seen_truths.append(y) or loss(x, y, **k))
    half = lambda shape: torch.where(torch.arange(shape[2]) % 2 == 0, NUM_SEEN + 1, 3).expand(shape)  # noqa: E731
    joint_updates(zs3net, half)
    (truth,) = seen_truths
    counts = truth.flatten().bincount(minlength=NUM_CLASSES).tolist()
    expected = resize_labels(batch["labels"], (9, 9))
    expected[..., ::2][expected[..., ::2] == 255] = NUM_SEEN + 1  # the columns drawn unseen
    assert counts == expected[expected != 255].bincount(minlength=NUM_CLASSES).tolist()


def test_unseen_classes_weigh_more_for_the_classifier_when_asked(zs3net, monkeypatch):
    recipe, model, batch = zs3net
    given = []
    loss = joint.mean_cross_entropy
    monkeypatch.setattr(joint, "mean_cross_entropy", lambda *a, **k: given.append(k["class_weights"]) or loss(*a, **k))
    recipe = tiny_recipe("zs3net", "stages.finetune.moment_matching.unseen_class_weight=100")
    joint_updates((recipe, model, batch))
    assert given[0].tolist() == [1] * NUM_SEEN + [100] * (NUM_CLASSES - NUM_SEEN)


def test_a_batch_without_ignored_pixels_still_teaches_seen_classes(zs3net):
    _, model, batch = zs3net
    batch["labels"][:] = 3
    assert joint_updates(zs3net).learners[-1] == ("classifier",)
    assert gradients(model.classifier)


def test_a_batch_without_labels_still_teaches_unseen_classes(zs3net):
    _, model, batch = zs3net
    batch["labels"][:] = 255
    assert joint_updates(zs3net).learners == [("classifier",)]
    assert gradients(model.classifier)


# Self-training


class Confident(torch.nn.Module):
    """Stands for a model that sees class 13 in the left half of an image and class 2 in the right."""

    def __init__(self, model):
        super().__init__()
        self.config = model.config

    def forward(self, pixel_values):
        logits = torch.zeros(len(pixel_values), NUM_CLASSES, 8, 8)
        logits[:, 13, :, :4] = 9
        logits[:, 2, :, 4:] = 9
        logits[:, 14, :, 4:] = 8  # the second of the right half
        return SimpleNamespace(logits=logits)


def self_labelled(**rule):
    model, _ = new_model(tiny_recipe("cagnet_pi"))
    batch = noise_batch() | {"padding": torch.zeros(2, 32, 32, dtype=torch.bool)}
    batch["padding"][:, :8] = True
    batch["labels"][:, :16] = 255
    before = batch["labels"].clone()
    labels = label_ignored_pixels(Confident(model), batch, PseudoLabelRecipe(**rule))
    assert torch.equal(batch["labels"], before)
    return batch, labels


@pytest.mark.parametrize(("k", "right"), [(1, 255), (2, 14)])
def test_ignored_pixels_get_the_highest_unseen_class_among_the_top_k(k, right):
    _, labels = self_labelled(rule="top_k", top_k=k)
    assert labels[:, 8:16, :16].unique().tolist() == [13]
    assert labels[:, 8:16, 16:].unique().tolist() == [right]


def test_the_confident_share_of_ignored_pixels_is_labelled():
    _, labels = self_labelled(rule="confidence", share=1.0)
    assert labels[:, 8:16, :16].unique().tolist() == [13]
    assert labels[:, 8:16, 16:].unique().tolist() == [255]


@pytest.mark.parametrize("rule", ["top_k", "confidence"])
def test_padding_and_labelled_pixels_are_left_alone(rule):
    batch, labels = self_labelled(rule=rule)
    assert (labels[:, :8] == 255).all()
    labelled = batch["labels"] != 255
    assert torch.equal(labels[labelled], batch["labels"][labelled])


def test_labelling_leaves_the_model_as_it_was():
    recipe = tiny_recipe("cagnet_pi")
    model, _ = new_model(recipe, "finetune")
    model.cagnet.backbone.eval()
    modes = [module.training for module in model.modules()]
    batch = noise_batch() | {"padding": torch.zeros(2, 32, 32, dtype=torch.bool)}
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    label_ignored_pixels(model, batch, PseudoLabelRecipe(rule="top_k"))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.named_buffers())


def test_self_training_makes_the_whole_model_learn_from_its_own_labels(batch):
    recipe = tiny_recipe("cagnet_pi_st")
    stage = recipe.stages["self_train"]
    model, _ = new_model(recipe, "self_train")
    batch = batch | {"padding": torch.zeros(2, 32, 32, dtype=torch.bool)}
    batch["labels"][:] = 255  # what is learnt comes from the model's own labels
    stage = stage.model_copy(update={"pseudo_labels": PseudoLabelRecipe(rule="top_k", top_k=NUM_CLASSES)})
    terms, _ = iterate(model, batch, recipe, stage)
    assert terms["classification"] > 0
    assert gradients(model.cagnet)
    assert gradients(model.classifier)
    assert gradients(model.generator)


# Deterministic algorithms


class SumsOfMaps(TorchDispatchMode):
    """Notes losses of maps that are summed up as they are taken, which has no deterministic kernel on a GPU."""

    def __init__(self):
        super().__init__()
        self.taken, self.summed = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.nll_loss2d_forward.default:
            self.taken += 1
            self.summed += args[3] != 0  # reduction: none is 0
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("method", "stage", "real"),
    [
        ("cagnet_pi", "pretrain", True),
        ("cagnet_pi", "finetune", True),
        ("cagnet_pi", "finetune", False),
        ("cagnet_pa", "finetune", False),
        ("spnet", "pretrain", True),
        ("zs3net", "finetune", True),
    ],
)
def test_every_step_has_a_deterministic_form(batch, method, stage, real):
    recipe = tiny_recipe(method)
    model, _ = new_model(recipe, stage)
    runner = method_for(model, recipe, recipe.stages[stage])
    if method == "cagnet_pa":
        runner._patches = PatchSource(torch.randint(NUM_CLASSES, (8, 3, 3)), torch.ones(NUM_CLASSES))
    with SumsOfMaps() as sums:
        iterate(model, batch if real else None, recipe, recipe.stages[stage], runner)
    assert sums.taken and not sums.summed
