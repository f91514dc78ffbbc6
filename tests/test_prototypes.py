"""Prototypes: their maths against a plain transcription in NumPy, the pass over whole images, the heads of image
classifiers, and models from names alone."""

import json

import numpy as np
import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from cagnet_hf.apps.names import from_names
from cagnet_hf.apps.training import train
from cagnet_hf.data.label_space import LabelSpace
from cagnet_hf.evaluation.scoring import batches_of_equal_size
from cagnet_hf.evaluation.zero_shot_segmentation.confusion_matrix import ConfusionMatrix
from cagnet_hf.methods.leaving_out import CHOSEN, MOST_BATCHES, CellSample, Setting, class_ious
from cagnet_hf.model.maps_cagnet import centre_labels, with_image_prior
from cagnet_hf.model.modeling_cagnet import CaGNetForSemanticSegmentation
from cagnet_hf.model.prototypes_cagnet import TEMPERATURES, PrototypeGenerator
from cagnet_hf.training.loop import Trainer
from cagnet_hf.training.recipe_files import load_recipe
from cagnet_hf.vectors.class_embeddings import save_embedding_table
from cagnet_hf.vectors.imagenet_names import imagenet_names, known_names, lemmas
from cagnet_hf.weights.backbones import PACKAGES
from cagnet_hf.weights.classifier_heads import load_image_classifier_head

CLASSES, SEEN, SIZE, EMBEDDING, KNOWN = 5, 3, 4, 6, 7


class Sizes:
    num_labels, feature_size, embedding_size, known_classes = CLASSES, SIZE, EMBEDDING, KNOWN


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.fixture
def observed():
    """(generator that has observed, embeddings, vectors of known names, features, labels, posteriors)."""
    random = np.random.default_rng(0)
    embeddings, vectors = unit(random.normal(size=(CLASSES, EMBEDDING))), unit(random.normal(size=(KNOWN, EMBEDDING)))
    labels = random.choice(SEEN + 1, size=600, p=[0.6, 0.2, 0.05, 0.15])  # the last of them means no label
    labels[:60] = 0  # a part without most of the classes
    features = random.normal(size=(600, SIZE)) + 3 * np.eye(SIZE)[labels]
    posteriors = random.dirichlet(np.ones(KNOWN), size=600)
    generator = PrototypeGenerator(Sizes).requires_grad_(False)
    generator.start_weights()
    generator.mean.start_weights()
    generator.mean.names.vectors.copy_(torch.from_numpy(vectors))
    generator.mean.names.known.fill_(1)
    observe(generator, features, labels, posteriors, (slice(0, 200), slice(200, 600)))
    generator.share()
    return generator, embeddings, vectors, features, labels, posteriors


def observe(generator, features, labels, posteriors, parts):
    """Let a generator observe some parts of the pixels."""
    generator.start_observing()
    for part in parts:
        labelled = labels[part] < SEEN
        x, p = (torch.from_numpy(array[part]).float() for array in (features, posteriors))
        generator.observe(x[labelled], torch.from_numpy(labels[part])[labelled])
        generator.mean.observe(x[~labelled], p[~labelled])


FIT = {"temperature": 0.2, "shrinkage": 0.05, "covariance_scale": 6.0}


def transcription(embeddings, vectors, features, labels, posteriors, tau, known=None):
    """METHODS of the row in NumPy: (means of all classes, covariance, s)."""
    scores = embeddings @ vectors.T / tau
    if known is not None:
        scores[:, ~known] = -np.inf
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)  # a(c, k)
    x, p = features[labels == SEEN], posteriors[labels == SEEN]
    known_means = p.T @ x / p.sum(0)[:, None]  # M_k
    z = weights @ known_means
    seen = np.stack([features[labels == c].mean(0) for c in range(SEEN)])
    moved = z[:SEEN] - z[:SEEN].mean(0)
    s = (moved * (seen - seen.mean(0))).sum() / (moved**2).sum()
    means = np.concatenate([seen, seen.mean(0) + s * (z[SEEN:] - z[:SEEN].mean(0))])
    residuals = [features[labels == c] - seen[c] for c in range(SEEN)]
    covariance = np.mean([r.T @ r / len(r) for r in residuals], axis=0)
    covariance = 0.95 * covariance + 0.05 * np.diag(np.diag(covariance))
    return means, 6.0 * covariance, s


def test_the_rule_is_that_of_the_specification(observed):
    generator, embeddings, *arrays = observed
    table = torch.from_numpy(embeddings).float()
    generator.fit(table, **FIT)
    means, covariance, s = transcription(embeddings, *arrays, tau=0.2)
    priors = np.log([1, 1, 1, 4, 4])
    weights, biases = generator.bayes_rule(table, torch.tensor(priors))
    expected = means @ np.linalg.inv(covariance)
    assert float(generator.mean.scales[0]) == pytest.approx(s, rel=1e-4)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(biases.numpy(), priors - 0.5 * (means * expected).sum(1), rtol=1e-3, atol=1e-3)


def test_known_classes_can_be_left_out(observed):
    generator, embeddings, *arrays = observed
    kept = np.arange(KNOWN) % 2 == 0
    generator.mean.names.known.copy_(torch.from_numpy(kept))
    table = torch.from_numpy(embeddings).float()
    generator.fit(table, **FIT)
    means, *_ = transcription(embeddings, *arrays, tau=0.2, known=kept)
    made = generator.mean(table[:, :, None, None])[SEEN:, :, 0, 0]
    np.testing.assert_allclose(made.numpy(), means[SEEN:], rtol=1e-3, atol=1e-4)


def test_without_a_temperature_means_are_averaged_over_several(observed):
    generator, embeddings, *_ = observed
    table = torch.from_numpy(embeddings).float()
    made = []
    for temperature in TEMPERATURES:
        generator.fit(table, **FIT | {"temperature": temperature})
        made.append(generator.mean(table[:, :, None, None]))
    generator.fit(table, **FIT | {"temperature": None})
    torch.testing.assert_close(generator.mean(table[:, :, None, None]), torch.stack(made).mean(0))


def test_unseen_classes_take_no_part_in_fitting(observed):
    generator, embeddings, *_ = observed
    table = torch.from_numpy(embeddings).float()
    generator.fit(table, **FIT | {"temperature": None})
    before = generator.mean.scales.clone()
    table[SEEN:] = torch.randn(CLASSES - SEEN, EMBEDDING)
    generator.fit(table, **FIT | {"temperature": None})
    assert torch.equal(generator.mean.scales, before)


def test_processes_together_have_the_statistics_of_all_pixels(observed, monkeypatch):
    whole, _, _, features, labels, posteriors = observed
    of_classes, of_known = [], []
    for part in (slice(0, 60), slice(60, None)):  # a process each
        generator = PrototypeGenerator(Sizes).requires_grad_(False)
        observe(generator, features, labels, posteriors, [part])
        of_classes.append((generator.class_counts, generator.class_means, generator._class_scatters))
        of_known.append((generator.mean.mass, generator.mean.means))
    gathered = iter([of_classes, of_known])
    monkeypatch.setattr("cagnet_hf.model.prototypes_cagnet.of_all_processes", lambda *own: next(gathered))
    generator = PrototypeGenerator(Sizes).requires_grad_(False)
    generator.start_observing()
    generator.share()
    for name in ("class_counts", "class_means", "scatter", "batch_counts", "batch_means", "mean.mass", "mean.means"):
        expected = whole.get_buffer(name)
        torch.testing.assert_close(generator.get_buffer(name), expected, rtol=1e-4, atol=1e-5, msg=name)


# Leaving out classes


def test_a_generator_without_a_class_is_one_that_never_saw_it(observed):
    generator, embeddings, _, features, labels, posteriors = observed
    table, left_out = torch.from_numpy(embeddings).float(), labels == 1
    part = generator.without(1)
    part.mean.observe_share(*(torch.from_numpy(a[left_out]).float() for a in (features, posteriors)), left_out.sum())
    hidden = np.where(left_out, SEEN, labels)
    other = PrototypeGenerator(Sizes).requires_grad_(False)
    other.mean.names.load_state_dict(generator.mean.names.state_dict())
    observe(other, features, hidden, posteriors, [slice(None)])
    other.share()
    for one in (part, other):
        one.fit(table, **FIT)
    for one, expected in zip(*(g.bayes_rule(table, torch.zeros(CLASSES)) for g in (part, other)), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-3, atol=1e-3)
    assert generator.class_counts[1] == left_out.sum()  # it is left as it was


def test_every_setting_is_scored_as_the_model_would_be():
    """Against the decision written out for each cell of two images."""
    torch.manual_seed(0)
    features, labels = torch.randn(2, SIZE, 6, 8), torch.randint(0, CLASSES, (2, 6, 8))
    labels[:, 0] = 255
    weights, biases, unseen = torch.randn(CLASSES, SIZE), torch.randn(CLASSES), torch.arange(CLASSES) >= SEEN
    settings = [Setting(0.0, 0.0, 0.0), Setting(1.0, 2.0, -0.4), Setting(1.0, 2.0, 0.6)]
    found = class_ious([(features, labels)], weights, biases, unseen, settings)
    for setting, ious in zip(settings, found, strict=True):
        matrix = ConfusionMatrix(CLASSES)
        logits = torch.einsum("nd,bdhw->bnhw", weights, features) + biases[:, None, None]
        logits = logits + (unseen * np.log(1 + setting.unseen_rate))[:, None, None]
        probabilities = with_image_prior(logits, setting.image_prior).softmax(1)
        probabilities[:, ~unseen] -= setting.calibration
        matrix.add(probabilities.argmax(1), labels)
        expected = [entry["iou"] for entry in matrix.scores()["per_class"].values()]
        assert ious.tolist() == pytest.approx(expected)


def test_a_sample_of_cells_stays_small():
    cells = CellSample()
    for number in range(3 * MOST_BATCHES):
        cells.add(torch.full((1, 2, 4, 6), float(number)), torch.zeros(1, 4, 6))
    kept = [int(features[0, 0, 0, 0]) for features, _ in cells.batches]
    assert kept == list(range(0, 3 * MOST_BATCHES, 4))
    assert cells.batches[0][0].shape == (1, 2, 2, 3)


def test_what_was_chosen_is_in_the_model_and_found_again(recipe, tmp_path):
    first = Trainer(recipe("stages.fit.choose=true", "model.image_prior=1"), tmp_path / "run")
    metrics = first.run()
    facts = json.loads((tmp_path / "run" / CHOSEN).read_text())
    assert facts["default"] == {"unseen_rate": 0.0, "image_prior": 1, "calibration": 0.0}
    assert facts["scores"]["chosen"]["hIoU"] >= facts["scores"]["default"]["hIoU"]
    config = first.model.config
    assert (config.image_prior, config.calibration) == tuple(list(facts["chosen"].values())[1:])
    second = Trainer(recipe("stages.fit.choose=true", "model.image_prior=1"), tmp_path / "run", resume=True)
    assert second.run() == metrics
    assert second.model.config.image_prior == config.image_prior


def test_labels_are_taken_at_the_centres_of_cells():
    labels = torch.arange(6 * 8).view(6, 8)
    assert centre_labels(labels, (3, 2)).tolist() == [[10, 14], [26, 30], [42, 46]]


def test_batches_hold_images_of_one_size_and_none_is_lost():
    shapes = [(1, 2), (2, 1), (1, 2), (3, 3), (1, 2)]
    batches = list(batches_of_equal_size(((torch.zeros(shape), i) for i, shape in enumerate(shapes)), 2))
    assert sorted(i for batch in batches for _, i in batch) == [0, 1, 2, 3, 4]
    assert all(len({image.shape for image, _ in batch}) == 1 and len(batch) <= 2 for batch in batches)


# Heads of image classifiers


@pytest.fixture(scope="module")
def tiny_classifier(tmp_path_factory):
    """A ResNet for images of three classes, as a folder."""
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    config.id2label = {0: "cat", 1: "dog", 2: "polar bear"}
    classifier = ResNetForImageClassification(config).eval()
    folder = tmp_path_factory.mktemp("classifier")
    classifier.save_pretrained(folder)
    return folder, classifier


def test_the_head_of_a_transformers_classifier_scores_cells_as_it_scores_means(tiny_classifier):
    folder, classifier = tiny_classifier
    head, names = load_image_classifier_head("auto", str(folder))
    assert names == ("cat", "dog", "polar bear")
    with torch.no_grad():
        images = torch.randn(2, 3, 64, 64)
        features = classifier.resnet(images).last_hidden_state
        torch.testing.assert_close(head(features).mean((2, 3)), classifier(images).logits, rtol=1e-4, atol=1e-5)


def test_a_head_of_another_kind_is_refused(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=3, **sizes)).save_pretrained(tmp_path)
    head, _ = load_image_classifier_head("auto", str(tmp_path))  # one linear layer: it may be asked of every token
    assert head.num_classes == 3
    with pytest.raises(ValueError, match="the head of its image classifier is not known"):
        load_image_classifier_head("resnet", "weights.pth")


@pytest.mark.parametrize("backbone", PACKAGES)
def test_the_head_of_the_package_is_the_classifier_of_its_authors(backbone):
    """Batch normalisation is folded into the convolution."""
    pytest.importorskip(PACKAGES[backbone][0])
    from cagnet_hf.weights.backbones import read_package

    head, names = load_image_classifier_head(backbone, "package")
    assert names is None and head.num_classes == 1000
    tensors = read_package(backbone)[1]
    features = torch.randn(1, head.in_channels, 2, 2)
    hidden = torch.nn.functional.conv2d(features, tensors["_conv_head.weight"])
    statistics = [tensors[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    hidden = torch.nn.functional.batch_norm(hidden, *statistics, eps=1e-3).clamp(0, 6)
    expected = torch.nn.functional.linear(hidden.mean((2, 3)), tensors["_fc.weight"], tensors["_fc.bias"])
    torch.testing.assert_close(head(features).mean((2, 3)), expected, rtol=1e-3, atol=1e-3)


# Names


def test_the_bundled_names_are_imagenets():
    names = imagenet_names()
    assert (len(names.texts), names.vectors.shape) == (1000, (1000, 384))
    assert names.texts[0].startswith("tench, Tinca tinca: ")
    assert names.positions(["n01440764", "studio couch", "crane"]) == [0, 134, 517, 831]
    with pytest.raises(ValueError, match="'tenhc' is no class of this classifier; did you mean"):
        names.positions(["tenhc"])


def test_names_of_another_classifier_need_a_table(tmp_path):
    imagenet = [", ".join(lemmas(text)) for text in imagenet_names().texts]
    assert known_names(imagenet) is imagenet_names()
    with pytest.raises(ValueError, match="are not ImageNet's: make a table"):
        known_names(["cat", "dog"])
    save_embedding_table(tmp_path / "names.safetensors", ["dog", "cat", "cow"], np.eye(3) * 2)
    known = known_names(["cat", "dog"], str(tmp_path / "names.safetensors"))
    assert known.vectors.tolist() == [[0, 1, 0], [1, 0, 0]]
    with pytest.raises(ValueError, match="no vector of 'sheep'"):
        known_names(["sheep"], str(tmp_path / "names.safetensors"))


# A run


RECIPE = """
benchmark: scenes
method: prototypes
class_embeddings: attributes
backbone_weights: {folder}
processor: {{size: {{height: 96, width: 96}}}}
model: {{backbone: {folder}, contextual: false, aspp: none, feature_size: 16, classifier: linear,
        generator: prototypes, known_classes: 3}}
stages: {{fit: {{head: {folder}, known_embeddings: {table}, batch_size: 2}}}}
trackers: []
"""


@pytest.fixture
def recipe(tiny_classifier, tmp_path, tiny_dataset):
    """`recipe(*overrides)` reads a recipe of prototypes on the tiny classifier."""
    folder, _ = tiny_classifier
    random = np.random.default_rng(0)
    save_embedding_table(tmp_path / "known.safetensors", ["cat", "dog", "polar bear"], random.normal(size=(3, 24)))
    (tmp_path / "prototypes.yaml").write_text(RECIPE.format(folder=folder, table=tmp_path / "known.safetensors"))
    return lambda *overrides: load_recipe(str(tmp_path / "prototypes.yaml"), [f"dataset={tiny_dataset}", *overrides])


def test_a_run_sees_every_image_once_and_its_model_learns_names(recipe, tmp_path):
    trainer = Trainer(recipe(), tmp_path / "run")
    metrics = trainer.run()
    generator = trainer.model.generator
    cells = len(trainer.train_set) * 12 * 12  # stride 8
    assert metrics["num_images"] == 6
    assert float(generator.class_counts.sum() + generator.mean.mass.sum()) == pytest.approx(cells, rel=1e-4)
    assert not generator.class_counts[list(trainer.model.config.unseen_ids)].any()
    trainer.model.save_pretrained(tmp_path / "model")
    again = CaGNetForSemanticSegmentation.from_pretrained(tmp_path / "model")
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, msg=name)
    with pytest.warns(UserWarning, match="knows nothing near this name"):
        again.add_classes(["stranger"], -again.generator.mean.names.vectors.sum(0)[None])
    assert again.classifier.weight.isfinite().all() and len(again.classifier.weight) == 17


def test_a_run_resumed_after_its_end_has_the_same_model(recipe, tmp_path):
    first = Trainer(recipe(), tmp_path / "run")
    metrics = first.run()
    second = Trainer(recipe(), tmp_path / "run", resume=True)
    assert second.run() == metrics
    assert torch.equal(second.model.classifier.weight, first.model.classifier.weight)


def test_images_in_which_every_pixel_has_a_label_are_observed(recipe, tmp_path):
    trainer = Trainer(recipe(), tmp_path / "run")
    model = trainer.models["fit"]
    method = trainer.new_method(trainer.recipe.stages["fit"], model)
    method.prepare([], tmp_path)
    pixels = torch.randn(2, 3, 64, 64)
    labels = torch.arange(64 * 64).view(1, 64, 64) % 3
    part = {"pixel_values": pixels[:1], "labels": labels}
    method.iterate([part, {"pixel_values": pixels[1:], "labels": labels.where(labels > 0, 255)}], None)
    assert float(model.generator.class_counts.sum() + model.generator.mean.mass.sum()) == pytest.approx(2 * 64)
    method.iterate([part], None)
    method.finish()
    assert model.classifier.weight.isfinite().all() and not model.generator.mean.mass.any()


def test_a_streamed_dataset_gives_the_same_model(recipe, tmp_path):
    weights = []
    for streaming in ("false", "true"):
        trainer = Trainer(recipe(f"streaming={streaming}"), tmp_path / streaming)
        trainer.run()
        weights.append(trainer.model.classifier.weight)
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


def test_images_with_unseen_classes_can_be_passed_over(recipe, tmp_path):
    trainer = Trainer(recipe("stages.fit.images_without_unseen=true"), tmp_path / "run")
    labels = LabelSpace.of(trainer.model.config)
    unseen = torch.tensor(labels.class_ids[labels.num_seen :])
    images = sum(not torch.isin(sample.labels, unseen).any() for sample in trainer.train_set)
    trainer.run()
    generator = trainer.model.generator
    assert images < len(trainer.train_set)
    assert float(generator.class_counts.sum() + generator.mean.mass.sum()) == pytest.approx(images * 144, rel=1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.fit.crop_size=32", "crop_size: a pass takes whole images as they are"),
        ("stages.fit.classifier={optimizer: sgd, lr: 0.1}", "prototypes follow in closed form, but classifier has an"),
        ("model.known_classes=4", "model.known_classes is 4, but the head of .* has 3"),
        ("model.feature_size=8", r'aspp="none" leaves the 16 channels of the backbone: set feature_size=16'),
        ("stages.fit.without=[cow]", "'cow' is no class of this classifier"),
        ("stages.fit.without=nowhere.txt", "without: nowhere.txt cannot be read"),
        ("stages.fit.without=[cat, dog, polar bear]", "leaves out every class"),
    ],
)
def test_what_cannot_run_is_refused(recipe, tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        Trainer(recipe(override), tmp_path / "run").run()


def test_variants_of_a_run_are_scored_as_runs_of_their_own(recipe, tmp_path, tiny_dataset, load_script, capsys):
    recipe()  # writes the file of the recipe
    keys = [f"dataset={tiny_dataset}", "stages.fit.tau=0.1"]
    for name, prior in (("plain", 0), ("moved", 2)):
        train(tmp_path / "prototypes.yaml", tmp_path / name, *keys, f"model.image_prior={prior}")
    arguments = ["--run", str(tmp_path / "moved"), "--output", str(tmp_path / "variants.json")]
    assert load_script("ablations/prototypes").main(arguments) == 0
    variants = json.loads((tmp_path / "variants.json").read_text())["variants"]
    for name, variant in (("plain", "tau 0.1, image prior 0"), ("moved", "tau 0.1, image prior 2")):
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        for key in ("S-mIoU", "U-mIoU", "hIoU", "PA"):
            assert variants[variant][key] == pytest.approx(metrics[key], abs=2e-3)
    assert len(variants) == 30
    assert "posteriors at test time, weight 0.25" in capsys.readouterr().out


# Models from names alone


def test_a_model_from_names_segments_saves_and_learns_names(tmp_path):
    pytest.importorskip(PACKAGES["efficientnet_lite0"][0])
    model, processor = from_names(["dog", "sofa", "train"])
    image = torch.zeros(3, 48, 64, dtype=torch.uint8)
    pixels = processor.prepare(image)[None]
    with torch.inference_mode():
        logits = model(pixels).logits
        posteriors = model.classifier.head_inputs(model.cagnet(pixels).features)
    weights = model.classifier.names(model.class_embeddings)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    lifted = torch.einsum("nk,bkhw->bnhw", weights, posteriors)
    lifted = lifted / (weights @ model.classifier.mean_posteriors)[:, None, None]
    torch.testing.assert_close(logits, lifted.log(), rtol=1e-3, atol=1e-3)
    model.save_pretrained(tmp_path)
    again = CaGNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(pixels).logits, logits, rtol=1e-4, atol=1e-4)
    again.add_classes(["sheep"], from_names(["sheep", "dog"])[0].class_embeddings[:1])
    with torch.inference_mode():
        both = again(pixels).logits
    torch.testing.assert_close(both[:, :3], logits, rtol=1e-4, atol=1e-4)
    assert both.shape[1] == 4 and list(again.config.unseen_ids) == [0, 1, 2, 3]
    again.remove_classes(["sofa"])


def test_names_that_nothing_near_is_known_of_are_refused():
    pytest.importorskip(PACKAGES["efficientnet_lite0"][0])
    with pytest.raises(ValueError, match="'clouds': ImageNet knows nothing near it"):
        from_names(["dog", "clouds"])
    with pytest.raises(ValueError, match="name at least two"):
        from_names(["dog"])


def test_the_command_writes_a_model(tmp_path, load_script, capsys):
    pytest.importorskip(PACKAGES["efficientnet_lite0"][0])
    command = load_script("from_names")
    assert command.main(["dog", "sofa", "--class", "train", "--output", str(tmp_path / "model")]) == 0
    assert (tmp_path / "model" / "README.md").is_file()
    assert command.main(["--output", str(tmp_path / "other")]) == 2
    assert "give the names of the classes, or --benchmark" in capsys.readouterr().err
