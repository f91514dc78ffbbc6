"""Classes of a trained model: what adding, removing and renaming change, and what they leave alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_remote_code import NAMES, tiny_config
from transformers import AutoModelForSemanticSegmentation, pipeline

from cagnet_hf import CaGNetForSemanticSegmentation, CaGNetImageProcessor

KINDS = {
    "contextual": {},
    "patches": {"patch_size": 3},
    "moment_matching": {"contextual": False, "classifier": "linear", "generator": "moment_matching"},
    "gaussian": {"contextual": False, "classifier": "linear", "generator": "gaussian"},
    "projection": {"contextual": False, "classifier": "projection", "generator": None, "feature_size": 6},
}
NEW = ["zebra", "traffic cone"]
PIXELS = torch.randn(1, 3, 33, 49, generator=torch.Generator().manual_seed(1))
PRIORS = torch.tensor([1.0, 1, 1, 4, 4]).log()  # of a Gaussian generator's rule; unseen classes are favoured
every_kind = pytest.mark.parametrize("kind", KINDS)


def new_model(kind: str = "contextual", **options) -> CaGNetForSemanticSegmentation:
    torch.manual_seed(0)
    sizes = {"embedding_size": 6, "feature_size": 12} | KINDS[kind] | options
    model = CaGNetForSemanticSegmentation(tiny_config(**sizes)).eval()
    model.class_embeddings.copy_(vectors(model.config.num_labels))
    if kind == "gaussian":
        fit_gaussian(model)
    return model


@torch.no_grad()
def fit_gaussian(model) -> None:
    """Observe features of the seen classes, whose Bayes rule with `PRIORS` becomes the classifier."""
    random = torch.Generator().manual_seed(4)
    labels = torch.arange(len(model.config.seen_ids)).repeat_interleave(200)
    features = torch.randn(len(labels), 12, generator=random) + 2 * torch.randn(5, 12, generator=random)[labels]
    model.generator.observe(features, labels)
    model.generator.fit(model.class_embeddings, ridge=0.1, shrinkage=0.1, covariance_scale=2)
    weights, biases = model.generator.bayes_rule(model.class_embeddings, PRIORS[: model.config.num_labels])
    model.classifier.weight.copy_(weights[:, :, None, None])
    model.classifier.bias.copy_(biases)


def vectors(count: int, seed: int = 2) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)), dim=1)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(PIXELS).logits


# Adding


@every_kind
def test_the_logits_of_the_old_classes_stay_as_they_are(kind):
    model = new_model(kind)
    before = logits(model)
    model.add_classes(NEW, vectors(2, seed=3))
    assert logits(model).shape[1] == 7
    assert torch.equal(logits(model)[:, :5], before)


@every_kind
def test_new_classes_are_unseen_ones_in_every_list(kind):
    model = new_model(kind)
    model.add_classes(NEW, vectors(2, seed=3))
    config = model.config
    assert list(config.id2label.values()) == NAMES + NEW
    assert config.label2id["traffic cone"] == 6
    assert (config.num_labels, config.seen_ids, config.unseen_ids) == (7, [0, 1, 2], [3, 4, 5, 6])
    assert config.dataset_ids == [0, 1, 2, 3, 4, 5, 6]
    assert model.cagnet.config is config


@every_kind
def test_a_model_with_new_classes_is_saved_and_opened(kind, tmp_path):
    model = new_model(kind)
    model.add_classes(NEW, vectors(2, seed=3))
    model.save_pretrained(tmp_path)
    reloaded, report = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(logits(reloaded), logits(model))
    assert reloaded.config.to_dict() == model.config.to_dict() | {
        key: reloaded.config.to_dict()[key] for key in ("transformers_version", "dtype", "_name_or_path")
    }


def test_a_pipeline_names_the_new_classes():
    model, processor = new_model(), CaGNetImageProcessor(size={"height": 33, "width": 49})
    model.add_classes(NEW, vectors(2, seed=3))
    with torch.no_grad():
        model.classifier.class_head.bias[:5] -= 100
    segment = pipeline("image-segmentation", model=model, image_processor=processor)
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert {entry["label"] for entry in segment(Image.fromarray(noise))} <= set(NEW)


@pytest.mark.parametrize("kind", ["contextual", "patches", "moment_matching"])
def test_made_features_of_a_new_class_are_recognised(kind):
    """The generator and the classifier are drawn at random, but for the classes: these can be told apart."""
    model = new_model(kind, generator_embedding_scale=8, generator_dropout=(0.0,))
    model.add_classes(NEW, vectors(2, seed=3))
    side = model.config.patch_size
    drawn = torch.tensor([[5, 6], [6, 5]]).repeat(8, 8).repeat_interleave(side, 0).repeat_interleave(side, 1)[None]
    with torch.no_grad():
        features = model.synthesize_features(drawn, torch.Generator().manual_seed(5))
        guesses = model.classify(features).argmax(dim=1)
    centre = slice(side // 2, None, side)
    assert (guesses == drawn)[:, centre, centre].float().mean() > 0.8


def test_a_projection_scores_a_new_class_by_its_embedding():
    model = new_model("projection")
    zebra = vectors(1, seed=3)
    model.add_classes(["zebra"], zebra)
    with torch.no_grad():
        features = model.cagnet(PIXELS).features
    torch.testing.assert_close(logits(model)[:, 5], torch.einsum("bdhw,d->bhw", features, zebra[0]))


def test_a_gaussian_generator_gives_a_new_class_its_bayes_rule():
    """As if the class had been there, unseen, from the start."""
    model = new_model("gaussian")
    model.add_classes(["zebra"], vectors(1, seed=3), bias=2)
    model.add_classes(["cone"], vectors(1, seed=4))
    log_priors = torch.cat([PRIORS, torch.tensor([4.0, 4]).log()])
    weights, biases = model.generator.bayes_rule(model.class_embeddings, log_priors)
    torch.testing.assert_close(model.classifier.weight[:, :, 0, 0], weights.float())
    torch.testing.assert_close(model.classifier.bias, (biases + torch.tensor([0, 0, 0, 0, 0, 2, 0])).float())
    assert model.generator.class_counts.tolist() == [200, 200, 200, 0, 0, 0, 0]


def test_a_gaussian_generator_without_unseen_classes_favours_none():
    model = new_model("gaussian", unseen_ids=(), id2label=dict(enumerate(NAMES[:3])))
    model.add_classes(["zebra"], vectors(1, seed=3))
    weights, biases = model.generator.bayes_rule(model.class_embeddings, torch.zeros(4))
    torch.testing.assert_close(model.classifier.weight[:, :, 0, 0], weights.float())
    torch.testing.assert_close(model.classifier.bias, biases.float())


def test_a_gaussian_generator_that_observed_nothing_knows_no_new_class():
    model = new_model("gaussian")
    model.generator.class_counts.zero_()
    with pytest.raises(ValueError, match="has observed no features yet"):
        model.add_classes(["zebra"], vectors(1, seed=3))
    assert model.config.num_labels == 5


@torch.no_grad()
def test_the_covariance_stays_when_a_class_that_was_observed_goes():
    """The scatter of a class cannot be taken out of that of all."""
    model = new_model("gaussian")
    before = model.generator.deviation.weight.clone()
    model.remove_classes(["dog"])
    assert model.generator.class_counts.tolist() == [200, 200, 0, 0]
    model.generator.fit(model.class_embeddings, ridge=0.1, shrinkage=0.1, covariance_scale=2)
    torch.testing.assert_close(model.generator.deviation.weight, before)


def test_a_bias_shifts_the_new_classes_alone():
    models = [new_model(), new_model()]
    for model, bias in zip(models, (0, 2), strict=True):
        model.add_classes(["zebra"], vectors(1, seed=3), bias=bias)
    difference = logits(models[1]) - logits(models[0])
    torch.testing.assert_close(difference, torch.tensor([0, 0, 0, 0, 0, 2.0]).view(1, 6, 1, 1).expand_as(difference))
    with pytest.raises(ValueError, match="a projection onto the class embeddings has no bias"):
        new_model("projection").add_classes(["zebra"], vectors(1, seed=3), bias=2)


def test_embeddings_get_the_length_of_the_model_s_own():
    models = [new_model(), new_model()]
    for model, scale in zip(models, (1, 7), strict=True):
        model.add_classes(["zebra"], scale * vectors(1, seed=3).numpy())
    torch.testing.assert_close(models[0].class_embeddings, models[1].class_embeddings)
    assert models[1].class_embeddings[5].norm().item() == pytest.approx(1)


def test_the_same_seed_gives_the_same_rows_whatever_the_global_random_state():
    rows = []
    for number in range(2):
        model = new_model()
        torch.manual_seed(number)
        state = torch.get_rng_state()
        model.add_classes(["zebra"], vectors(1, seed=3), seed=11)
        assert torch.equal(torch.get_rng_state(), state)
        rows.append(model.classifier.class_head.weight)
    assert torch.equal(*rows)


def test_adding_leaves_modes_and_gradients_alone():
    model = new_model()
    model.generator.train().requires_grad_(True)
    model.classifier.requires_grad_(False)
    with torch.inference_mode():
        model.add_classes(["zebra"], vectors(1, seed=3))
    assert model.generator.training and not model.classifier.training
    assert not any(p.requires_grad for p in model.classifier.parameters())
    assert all(p.requires_grad and p.grad is None for p in model.generator.parameters())
    assert not model.classifier.class_head.weight.is_inference()


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_a_half_precision_model_learns_too(kind, dtype):
    models = [new_model(kind), new_model(kind).to(dtype)]
    for model in models:
        model.add_classes(["zebra"], vectors(1, seed=3))
    full, half = (logits(model)[:, 5] for model in models)
    assert half.dtype == models[1].class_embeddings.dtype == dtype
    assert (half.float() - full).abs().max() < 0.1 * full.abs().max()


def test_stored_ids_are_the_next_free_ones_or_those_given():
    model = new_model(dataset_ids=(1, 2, 3, 4, 254), ignored_dataset_ids=(0, 5))
    model.add_classes(["zebra"], vectors(1, seed=3))
    model.add_classes(["cone"], vectors(1, seed=4), dataset_ids=[5])
    assert model.config.dataset_ids == [1, 2, 3, 4, 254, 6, 5]
    assert model.config.ignored_dataset_ids == [0]


@pytest.mark.parametrize(
    ("names", "embeddings", "options", "reason"),
    [
        (["Cat"], vectors(1), {}, "two classes would be called 'Cat'"),
        (["zebra", "Zebra "], vectors(2), {}, "two classes would be called 'Zebra'"),
        ([" "], vectors(1), {}, "a class needs a name"),
        ("zebra", vectors(1), {}, r"write \['zebra'\]"),
        ([], vectors(0), {}, "no names"),
        (["zebra"], vectors(2), {}, r"embeddings of shape \(1, 6\), got \(2, 6\)"),
        (["zebra"], torch.ones(1, 7), {}, r"embeddings of shape \(1, 6\), got \(1, 7\)"),
        (["zebra"], torch.zeros(1, 6), {}, "'zebra' is zero or not finite"),
        (["zebra"], torch.tensor([[np.nan, 1, 1, 1, 1, 1]]), {}, "'zebra' is zero or not finite"),
        (["zebra"], vectors(1), {"dataset_ids": [3]}, "dataset id 3 of 'zebra' is taken"),
        (["zebra"], vectors(1), {"dataset_ids": [255]}, "dataset id 255 of 'zebra' is taken or none of 0 to 254"),
        (["zebra"], vectors(1), {"dataset_ids": [7, 8]}, "1 new classes, but 2 dataset_ids"),
    ],
)
def test_what_cannot_be_added_is_refused_and_changes_nothing(names, embeddings, options, reason):
    model = new_model()
    before = {name: values.clone() for name, values in model.state_dict().items()}, model.config.to_dict()
    with pytest.raises(ValueError, match=reason):
        model.add_classes(names, embeddings, **options)
    assert model.config.to_dict() == before[1]
    assert all(torch.equal(values, before[0][name]) for name, values in model.state_dict().items())


# Removing and renaming


@every_kind
def test_removing_what_was_added_gives_the_model_back(kind):
    model = new_model(kind)
    before, config = logits(model), model.config.to_dict()
    model.add_classes(NEW, vectors(2, seed=3))
    model.remove_classes(NEW)
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config | {"ignored_dataset_ids": [5, 6]}


@every_kind
def test_the_rows_of_removed_classes_go_and_the_others_stay(kind):
    model = new_model(kind)
    before = logits(model)
    model.remove_classes(["dog", "sofa"])
    assert list(model.config.id2label.values()) == ["cat", "train", "tv"]
    assert (model.config.seen_ids, model.config.unseen_ids) == ([0, 1], [2])
    assert (model.config.dataset_ids, model.config.ignored_dataset_ids) == ([0, 2, 4], [1, 3])
    torch.testing.assert_close(logits(model), before[:, [0, 2, 4]])


def test_the_last_class_stays():
    with pytest.raises(ValueError, match="keep at least one"):
        new_model().remove_classes(NAMES)


def test_renaming_changes_names_alone():
    model = new_model()
    before = logits(model)
    model.rename_classes({"tv": "television", "Cat": "dog", "dog": "cat"})
    assert list(model.config.id2label.values()) == ["dog", "cat", "train", "sofa", "television"]
    assert model.config.label2id["television"] == 4
    assert torch.equal(logits(model), before)


def test_a_name_that_is_taken_or_unknown_is_refused():
    model = new_model()
    with pytest.raises(ValueError, match="two classes would be called 'Train'"):
        model.rename_classes({"tv": "Train"})
    with pytest.raises(ValueError, match="no class 'horse'; the model has cat, dog"):
        model.rename_classes({"horse": "pony"})
    with pytest.raises(ValueError, match="no class 'horse'"):
        model.remove_classes(["horse"])
