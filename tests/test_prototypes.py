"""Prototypes: their maths against a plain transcription in NumPy, the pass over whole images, the heads of image
classifiers, and models from names alone."""

import numpy as np
import pytest
import torch
from tiny import BACKBONE, noise_batch
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from cagnet_hf.apps.names import from_names
from cagnet_hf.data.label_space import LabelSpace
from cagnet_hf.data.rows import Rows
from cagnet_hf.evaluation.scoring import batches_of_equal_size
from cagnet_hf.methods.options import RecipeError
from cagnet_hf.methods.prototypes import Prototypes
from cagnet_hf.model.configuration_cagnet import CaGNetConfig
from cagnet_hf.model.maps_cagnet import centre_labels
from cagnet_hf.model.modeling_cagnet import CaGNetForSemanticSegmentation
from cagnet_hf.model.prototypes_cagnet import PrototypeGenerator, PrototypeMeans
from cagnet_hf.training.loop import Trainer
from cagnet_hf.training.recipe_files import load_recipe, parse_recipe
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
    labels = np.arange(600) % (SEEN + 1)  # the last of them means no label
    features = random.normal(size=(600, SIZE)) + 3 * np.eye(SIZE)[labels]
    posteriors = random.dirichlet(np.ones(KNOWN), size=600)
    generator = PrototypeGenerator(Sizes).requires_grad_(False)
    generator.start_weights()
    generator.mean.start_weights()
    generator.mean.names.vectors.copy_(torch.from_numpy(vectors))
    generator.mean.names.known.fill_(1)
    labelled = labels < SEEN
    tensors = [torch.from_numpy(array).float() for array in (features, posteriors)]
    generator.observe(tensors[0][labelled], torch.from_numpy(labels)[labelled], alone=True)
    for part in (slice(0, 200), slice(200, 600)):
        unlabelled = ~labelled[part]
        generator.mean.observe(tensors[0][part][unlabelled], tensors[1][part][unlabelled])
    return generator, embeddings, vectors, features, labels, posteriors


FIT = {"temperatures": (0.2,), "shrinkage": 0.05, "covariance_scale": 6.0}


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
    assert float(generator.mean.scale) == pytest.approx(s, rel=1e-4)
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


def test_the_temperature_is_the_one_that_makes_left_out_seen_classes_best(observed):
    generator, embeddings, *_ = observed
    table = torch.from_numpy(embeddings).float()
    generator.fit(table, **FIT | {"temperatures": (0.02, 0.1, 0.5, 2.0)})
    chosen = float(generator.mean.names.temperature)
    distances = {tau: generator.left_out_distance(table, tau) for tau in (0.02, 0.1, 0.5, 2.0)}
    assert chosen == pytest.approx(min(distances, key=distances.get))


def test_unseen_classes_take_no_part_in_choosing(observed):
    generator, embeddings, *_ = observed
    table = torch.from_numpy(embeddings).float()
    generator.fit_covariance(shrinkage=0.05, covariance_scale=6.0)
    before = generator.left_out_distance(table, 0.1)
    table[SEEN:] = torch.randn(CLASSES - SEEN, EMBEDDING)
    assert generator.left_out_distance(table, 0.1) == before


def test_processes_together_have_the_statistics_of_all_pixels(observed, monkeypatch):
    whole, _, _, features, _, posteriors = observed
    parts = []
    unlabelled = np.arange(600) % (SEEN + 1) == SEEN
    tensors = [torch.from_numpy(array[unlabelled]).float() for array in (features, posteriors)]
    for part in (slice(0, 40), slice(40, None)):
        means = PrototypeMeans(Sizes)
        means.start_weights()
        means.observe(tensors[0][part], tensors[1][part])
        parts.append((means.mass, means.means))
    monkeypatch.setattr("cagnet_hf.model.prototypes_cagnet.of_all_processes", lambda *own: parts)
    means.share()
    torch.testing.assert_close(means.means, whole.mean.means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(means.mass, whole.mean.mass)


def test_labels_are_taken_at_the_centres_of_cells():
    labels = torch.arange(6 * 8).view(6, 8)
    assert centre_labels(labels, (3, 2)).tolist() == [[10, 14], [26, 30], [42, 46]]


def test_batches_hold_images_of_one_size_and_none_is_lost():
    shapes = [(1, 2), (2, 1), (1, 2), (3, 3), (1, 2)]
    batches = list(batches_of_equal_size(((torch.zeros(shape), i) for i, shape in enumerate(shapes)), 2))
    assert sorted(i for batch in batches for _, i in batch) == [0, 1, 2, 3, 4]
    assert all(len({image.shape for image, _ in batch}) == 1 and len(batch) <= 2 for batch in batches)
