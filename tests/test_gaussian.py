"""The Gaussian generator: its statistics, its regression, its Bayes rule, and the steps that fit it."""

import pytest
import torch
import torch.nn.functional as F
from tiny import NUM_CLASSES, iterate, method_for, noise_batch, tiny_recipe

from cagnet_hf.model.backbones_cagnet import freeze_batch_norm
from cagnet_hf.model.gaussian_cagnet import GaussianGenerator
from cagnet_hf.model.maps_cagnet import resize_labels
from cagnet_hf.training.setup import benchmark_of, build_model, build_stage_models

CLASSES, SEEN, SIZE, EMBEDDING = 6, 4, 5, 8


class Sizes:
    num_labels, feature_size, embedding_size = CLASSES, SIZE, EMBEDDING


@pytest.fixture
def gaussian():
    """(generator with nothing observed, embeddings, features `(P, D)` whose means are linear in them, labels)."""
    random = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(CLASSES, EMBEDDING, generator=random), dim=1)
    means = 4 * embeddings @ torch.randn(EMBEDDING, SIZE, generator=random)
    labels = torch.arange(SEEN).repeat_interleave(2000)
    mixing = torch.randn(SIZE, SIZE, generator=random)
    noise = torch.randn(len(labels), SIZE, generator=random) @ mixing
    generator = GaussianGenerator(Sizes).requires_grad_(False)
    return generator, embeddings, means[labels] + noise, labels, means, mixing.t() @ mixing


FIT = {"ridge": 1e-4, "shrinkage": 0.0, "covariance_scale": 1.0}


def test_statistics_are_those_of_all_pixels_however_they_arrive(gaussian):
    generator, embeddings, features, labels, *_ = gaussian
    features = features + 1000  # far from 0: sums of squares would cancel
    parts = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1)).split(700)
    for part in parts:
        generator.observe(features[part], labels[part])
    generator.fit(embeddings, **FIT)
    means = torch.stack([features[labels == c].mean(0) for c in range(SEEN)])
    covariances = []
    for part in parts:
        for c in range(SEEN):
            residuals = (features[part] - means[c])[labels[part] == c].double()
            covariances.append(residuals.t() @ residuals / len(residuals))
    factor = generator.deviation.weight[:, :, 0, 0].double()
    assert generator.class_counts.tolist() == [2000] * SEEN + [0] * (CLASSES - SEEN)
    assert torch.allclose(generator.class_means[:SEEN], means, atol=1e-3)
    assert torch.allclose(factor @ factor.t(), torch.stack(covariances).mean(0), rtol=1e-2, atol=1e-2)


def test_a_large_class_does_not_decide_the_covariance():
    generator, random = GaussianGenerator(Sizes).requires_grad_(False), torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 9000 + [1] * 1000)
    features = torch.randn(10_000, SIZE, generator=random) * torch.where(labels == 0, 1.0, 3.0)[:, None]
    generator.observe(features, labels)
    generator.fit(torch.randn(CLASSES, EMBEDDING, generator=random), **FIT)
    factor = generator.deviation.weight[:, :, 0, 0]
    assert torch.allclose(factor @ factor.t(), 5 * torch.eye(SIZE), atol=0.5)  # (1 + 9) / 2


def test_observing_no_pixel_changes_nothing(gaussian):
    generator, embeddings, features, labels, *_ = gaussian
    generator.observe(features[:0], labels[:0])
    generator.fit(embeddings, **FIT)
    assert not generator.class_counts.any()
    assert all(tensor.isfinite().all() for tensor in generator.state_dict().values())


def test_made_features_have_the_mean_and_the_covariance_of_real_ones(gaussian):
    generator, embeddings, features, labels, means, covariance = gaussian
    generator.observe(features, labels)
    generator.fit(embeddings, **FIT)
    random = torch.Generator().manual_seed(2)
    latent = generator.draw_latent((1, SIZE, 1, 50_000), generator=random)
    made = generator(embeddings[2][None, :, None, None].expand(-1, -1, 1, 50_000), latent)[0, :, 0].t()
    assert torch.allclose(made.mean(0), means[2], atol=0.15)
    assert torch.allclose(made.T.cov(), covariance, atol=0.1 * covariance.diagonal().max())


def test_classes_without_a_pixel_take_no_part_in_the_regression(gaussian):
    generator, embeddings, features, labels, *_ = gaussian
    generator.observe(features, labels)
    generator.fit(embeddings, **FIT | {"ridge": 0.1})
    keys, targets = embeddings[:SEEN].double(), generator.class_means[:SEEN].double()
    centre = targets.mean(0)
    weights = torch.linalg.solve(keys @ keys.t() + 0.1 * torch.eye(SEEN), targets - centre)
    expected = centre + embeddings.double() @ keys.t() @ weights
    made = generator.mean(embeddings[:, :, None, None])[:, :, 0, 0]
    assert torch.allclose(made, expected.float(), atol=1e-4)


def test_the_rule_is_the_posterior_of_the_gaussians(gaussian):
    generator, embeddings, features, labels, *_ = gaussian
    generator.observe(features, labels)
    generator.fit(embeddings, **FIT | {"shrinkage": 0.1, "covariance_scale": 3.0})
    log_priors = torch.tensor([1.0, 1, 1, 1, 5, 5]).log()
    weights, biases = generator.bayes_rule(embeddings, log_priors)
    scores = features[:50].double() @ weights.t() + biases
    means = torch.cat(
        [generator.class_means[:SEEN], generator.mean(embeddings[SEEN:, :, None, None])[:, :, 0, 0]]
    ).double()
    factor = generator.deviation.weight[:, :, 0, 0].double()
    densities = [torch.distributions.MultivariateNormal(m, scale_tril=factor) for m in means]
    joint = torch.stack([d.log_prob(features[:50].double()) for d in densities], 1) + log_priors
    assert torch.allclose(scores.softmax(1), joint.softmax(1), atol=1e-6)


def test_channels_that_never_vary_do_not_break_the_fit(gaussian):
    generator, embeddings, features, labels, *_ = gaussian
    features[:, 0] = 0.5
    generator.observe(features, labels)
    generator.fit(embeddings, **FIT)
    weights, biases = generator.bayes_rule(embeddings, torch.zeros(CLASSES))
    assert weights.isfinite().all() and biases.isfinite().all()


def gaussian_model(*overrides):
    recipe = tiny_recipe("gaussian", *overrides)
    torch.manual_seed(0)
    return recipe, build_model(recipe, benchmark_of(recipe)).requires_grad_(False).train()


def fitted(model, recipe, *batches) -> None:
    """Observe the batches, one an iteration, and fit the generator and the classifier at the end."""
    method = method_for(model, recipe, recipe.stages["fit"])
    for batch in batches:
        assert iterate(model, batch, recipe, recipe.stages["fit"], method)[1].learners == []
    method.finish()


def test_the_covariance_is_factored_once_not_every_iteration(monkeypatch):
    recipe, model = gaussian_model()
    factored = []
    fit = GaussianGenerator.fit
    monkeypatch.setattr(GaussianGenerator, "fit", lambda self, *a, **k: factored.append(1) or fit(self, *a, **k))
    fitted(model, recipe, *[noise_batch()] * 3)
    assert len(factored) == 1


def test_a_stage_observes_labelled_pixels_and_sets_the_classifier():
    recipe, model = gaussian_model("stages.fit.unseen_rate=0")
    freeze_batch_norm(model.cagnet)  # as the loop does where the network rests
    batch, network = noise_batch(), {k: v.clone() for k, v in model.cagnet.state_dict().items()}
    fitted(model, recipe, batch, batch)
    assert all(torch.equal(tensor, network[name]) for name, tensor in model.cagnet.state_dict().items())
    features = model.cagnet(batch["pixel_values"]).features
    labels = resize_labels(batch["labels"], features.shape[-2:])
    assert model.generator.class_counts.tolist() == [2 * (labels == c).sum() for c in range(NUM_CLASSES)]
    weights, biases = model.generator.bayes_rule(model.class_embeddings, torch.zeros(NUM_CLASSES))
    assert torch.allclose(model.classifier.weight[:, :, 0, 0], weights.float())
    assert torch.allclose(model.classifier.bias, biases.float())


def test_mixed_precision_rounds_features_and_no_statistics():
    recipe, model = gaussian_model("stages.fit.unseen_rate=0")
    freeze_batch_norm(model.cagnet)
    batch, expected = noise_batch(), GaussianGenerator(model.config).requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        fitted(model, recipe, batch)
        with torch.no_grad():  # as the stage does: a resting normalisation is folded
            features = model.cagnet(batch["pixel_values"]).features
    labels = resize_labels(batch["labels"], features.shape[-2:])
    expected.observe(features.permute(0, 2, 3, 1)[labels != 255], labels[labels != 255])
    expected.fit(model.class_embeddings, **recipe.stages["fit"].gaussian.model_dump())
    for name, values in expected.state_dict().items():
        torch.testing.assert_close(model.generator.state_dict()[name], values, msg=name)
    weights, _ = expected.bayes_rule(model.class_embeddings, torch.zeros(NUM_CLASSES))
    torch.testing.assert_close(model.classifier.weight[:, :, 0, 0], weights.float())


def test_a_crop_without_a_label_leaves_a_usable_classifier():
    recipe, model = gaussian_model()
    batch = noise_batch()
    batch["labels"].fill_(255)
    before = model.classifier.weight.clone()
    fitted(model, recipe, batch)
    assert torch.equal(model.classifier.weight, before)  # nothing was observed, so nothing is fitted
    fitted(model, recipe, batch, noise_batch())
    assert model.classifier.weight.isfinite().all()
    assert not torch.equal(model.classifier.weight, before)


def test_the_prior_favours_unseen_classes():
    biases = []
    for rate in (0, 9):
        recipe, model = gaussian_model(f"stages.fit.unseen_rate={rate}")
        fitted(model, recipe, noise_batch())
        biases.append(model.classifier.bias)
    gain = biases[1] - biases[0]
    unseen = list(model.config.unseen_ids)
    assert torch.allclose(gain[unseen], torch.tensor(10.0).log().expand(len(unseen)), atol=1e-4)
    assert torch.allclose(gain[: unseen[0]], torch.zeros(unseen[0]), atol=1e-4)


@pytest.mark.parametrize(
    ("method", "override", "message"),
    [
        ("gaussian", "stages.fit.generator={optimizer: adam, lr: 0.1}", "is fitted, not trained: use .gaussian"),
        ("gaussian", "stages.pretrain.gaussian={}", "stages.pretrain.gaussian needs model.generator=gaussian"),
        ("gaussian", "model.classifier=convolutional", 'has a linear Bayes rule: set classifier="linear"'),
    ],
)
def test_stages_that_cannot_fit_it_are_refused(method, override, message):
    with pytest.raises(ValueError, match=message):
        recipe = tiny_recipe(method, override)
        build_stage_models(recipe, benchmark_of(recipe))
