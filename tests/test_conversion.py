"""Original checkpoints and ImageNet ResNets: every tensor finds its place, and what is not known is refused."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import recipe
from golden_weights import GOLDEN, SMALL, original_shapes
from original_checkpoints import (
    VARIANTS,
    TorchvisionResNet,
    hollow,
    network,
    noise,
    pixelcnn,
    same,
    tiny,
    tiny_trunk,
    without_aspp,
)
from transformers import (
    ResNetBackbone,
    ResNetConfig,
    ResNetForImageClassification,
)

from cagnet_hf import CaGNetConfig, CaGNetForSemanticSegmentation, CaGNetModel
from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.weights.backbones import load_backbone_weights
from cagnet_hf.weights.conversion import (
    convert_backbone,
    convert_spnet,
    convert_state_dict,
    match_keys,
)

HEADS = np.load(GOLDEN / "heads.npz")
BACKBONE = np.load(GOLDEN / "backbone.npz")
SPNET = np.load(GOLDEN / "spnet.npz")


# CaGNet: names, sizes, classes


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_published_network_fits_strictly(variant):
    name, num_seen, num_classes = VARIANTS[variant]
    config, weights = convert_state_dict(hollow(variant))
    with torch.device("meta"):
        model = CaGNetForSemanticSegmentation(config)
    model.load_state_dict(weights, strict=True, assign=True)
    assert (config.depths, config.stride_in_1x1, config.output_stride) == ([3, 4, 23, 3], True, 8)
    assert config.patch_size == (3 if variant.endswith("ps3") else 1)
    assert (len(config.seen_ids), config.num_labels) == (num_seen, num_classes)
    benchmark = load_benchmark(name)
    assert [benchmark.label_names[i] for i in config.dataset_ids] == list(config.id2label.values())
    assert set(config.dataset_ids[:num_seen]) == set(benchmark.seen_ids)
    assert tuple(config.dataset_ids[num_seen:]) == benchmark.unseen_ids
    assert tuple(config.ignored_dataset_ids) == benchmark.ignored_ids


@pytest.mark.parametrize("variant", ["cagnet_voc12", "cagnet_context"])
def test_voc_and_context_keep_the_order_of_the_benchmark(variant):
    config, _ = convert_state_dict(hollow(variant, SMALL))
    assert tuple(config.dataset_ids) == load_benchmark(VARIANTS[variant][0]).class_ids


def test_seen_classes_of_coco_stuff_end_with_those_the_original_tuned_on():
    """Its training map: stored id 3 is class 155, 139 is class 166; 4 follows 2."""
    config, _ = convert_state_dict(hollow("cagnet_cocostuff", SMALL))
    assert config.dataset_ids[:4] == [0, 1, 2, 4]
    assert config.dataset_ids[153:168] == [180, 181, 3, 21, 38, 45, 51, 61, 75, 81, 93, 129, 136, 139, 20]
    assert (config.id2label[155], config.id2label[167]) == ("motorcycle", "cow")


def test_arrays_are_as_good_as_tensors():
    state = tiny()
    config, weights = convert_state_dict({name: tensor.numpy() for name, tensor in state.items()})
    expected_config, expected = convert_state_dict(state)
    assert config.to_dict() == expected_config.to_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_classes_of_no_benchmark_are_numbered():
    config, weights = convert_state_dict(tiny(num_seen=12, num_classes=16))
    assert list(config.id2label.values()) == [f"class {i}" for i in range(16)]
    assert (config.seen_ids, config.unseen_ids) == (list(range(12)), [12, 13, 14, 15])
    assert network(config, weights)(noise(1, 3, 33, 33)).logits.shape == (1, 16, 5, 5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"iteration": 1, "state_dict": state},
        lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
        lambda state: {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}, "epoch": 3},
    ],
)
def test_wrappers_change_nothing(wrap):
    config, weights = convert_state_dict(wrap(tiny()))
    plain_config, plain_weights = convert_state_dict(tiny())
    assert config.to_dict() == plain_config.to_dict()
    assert same(weights, plain_weights)


def test_files_that_count_no_batches_are_complete():
    state = {key: tensor for key, tensor in tiny().items() if not key.endswith("num_batches_tracked")}
    assert same(convert_state_dict(state)[1], convert_state_dict(tiny())[1])


def test_the_background_output_is_dropped_and_nothing_else():
    original = tiny()
    _, weights = convert_state_dict(original)
    assert len(original["dis.cls.weight"]) == 21
    assert torch.equal(weights["classifier.class_head.weight"], original["dis.cls.weight"][:20])
    assert torch.equal(weights["classifier.class_head.bias"], original["dis.cls.bias"][:20])
    assert torch.equal(weights["class_embeddings"], original["Em_all.weight"])


# CaGNet: the reference's numbers


@pytest.fixture(scope="module")
def original():
    """The golden checkpoint of the small network, as the release stores it."""
    state = recipe.fill_state_dict(original_shapes(depths=SMALL))
    return {"iteration": 1, "state_dict": {key: torch.from_numpy(array) for key, array in state.items()}}


@torch.no_grad()
def test_converted_network_gives_the_reference_numbers(original):
    model = network(*convert_state_dict(original))
    pixel_values = torch.from_numpy(recipe.image("back", 1, 56, 56))
    features = model.cagnet(pixel_values).features
    np.testing.assert_allclose(features, BACKBONE["s56/h0/full"], rtol=1e-4, atol=1e-5)
    logits = model(pixel_values).logits
    assert logits.shape == (1, 20, *features.shape[2:])
    state = {key: tensor.double() for key, tensor in original["state_dict"].items()}
    hidden = torch.from_numpy(BACKBONE["s56/h0/full"]).double()
    hidden = F.relu(F.conv2d(hidden, state["dis.fc.conv.weight"], state["dis.fc.conv.bias"]))
    expected = F.conv2d(hidden, state["dis.cls.weight"], state["dis.cls.bias"])[:, :20]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("variant", "tag"), [("cagnet_voc12", "dis"), ("cagnetv2_voc12_ps3", "dis_ps3")])
def test_converted_classifier_gives_the_reference_scores(variant, tag):
    state = hollow(variant, SMALL)
    state |= {
        key: torch.from_numpy(recipe.fill(key, shape))
        for key, shape in original_shapes(variant).items()
        if key.startswith("dis.")
    }
    config, weights = convert_state_dict(state)
    with torch.device("meta"):
        model = CaGNetForSemanticSegmentation(config)
    model.load_state_dict(weights, strict=True, assign=True)
    features = torch.from_numpy(recipe.features("heads", (2, 600, 9, 9)))
    classifier = model.classifier.eval()
    np.testing.assert_allclose(classifier(features), HEADS[f"{tag}/cls_real"][:, :20], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(classifier.criticise(features), HEADS[f"{tag}/gan_real"], rtol=1e-4, atol=1e-5)


# CaGNet: what is refused


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"dis.extra.weight": torch.zeros(1)}, "1 of 156 tensors have no place .* 'dis.extra.weight'"),
        ({"back.scale.layer2.block1.conv9.conv.weight": torch.zeros(1)}, "no place"),
        ({"scale.aspp.stages.c0.bias": torch.zeros(12)}, "the file holds two networks"),
        ({"dis.fc.conv.weight": None}, "lacks classifier.trunk.weight"),
        ({"back.scale.layer4.block1.reduce.bn.bias": None}, "lacks cagnet.backbone.stages.2.0.reduce"),
        ({"gen.mlp.3.conv.weight": torch.zeros(2, 2, 1, 1)}, "generator.layers.9.weight has the shape"),
        ({"back.scale.aspp.stages.c4.bias": torch.zeros(12)}, "no place in the network of the other tensors"),
        ({"back.scale.layer1.conv1.conv.weight": torch.tensor(1.0)}, "stem.convolution.weight has the shape"),
        ({f"gen.mlp.{i}.conv.{leaf}": None for i in range(5) for leaf in ("weight", "bias")}, "lacks generator"),
        ({"Em_all.weight": torch.ones(20)}, "are tables"),
        ({"Em_vis.weight": torch.ones(20)}, "are tables"),
        ({"Em_all.weight": None}, "no classes"),
        ({"Em_vis.weight": None}, "lacks Em_vis"),
        ({"dis.cls.bias": torch.zeros(20)}, r"20 outputs \(dis.cls.bias\) for 20 classes"),
    ],
)
def test_tensors_without_a_place_or_a_sense_are_refused(damage, reason):
    state = {key: tensor for key, tensor in (tiny() | damage).items() if tensor is not None}
    with pytest.raises(ValueError, match=reason):
        convert_state_dict(state)


@pytest.mark.parametrize(
    ("table", "place", "value", "reason"),
    [
        ("Em_vis", (3, 0), 0.5, "Em_vis is not the first rows of Em_all"),
        ("Em_vis", (200, 5), 0.5, "Em_vis is not the first rows of Em_all"),
        ("Em_vis", (3, slice(None)), 0, "Em_vis is not the first rows of Em_all"),
        ("Em_vis", slice(None), 0, "Em_vis is not the first rows of Em_all"),
        ("Em_vis", slice(None), 1, "Em_vis is not the first rows of Em_all"),
        ("Em_vis", (3, 0), float("nan"), "Em_vis is not the first rows of Em_all"),
        ("Em_all", (17, slice(None)), 0, "a class without an embedding"),
        ("Em_all", (17, 0), float("nan"), "a class without an embedding"),
    ],
)
def test_embedding_tables_that_contradict_each_other_are_refused(table, place, value, reason):
    state = tiny()
    state[f"{table}.weight"][place] = value
    with pytest.raises(ValueError, match=reason):
        convert_state_dict(state)


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"weight": torch.zeros(1)}, pixelcnn("newnew2")])
@pytest.mark.parametrize("convert", [convert_state_dict, convert_backbone])
def test_files_of_no_known_network_are_refused(content, convert):
    with pytest.raises(ValueError, match="no known network"):
        convert(content)


# SPNet


@torch.no_grad()
def test_converted_spnet_gives_the_reference_numbers_at_three_scales():
    shapes = {key.removeprefix("back."): shape for key, shape in original_shapes(depths=SMALL).items()}
    trunk = {
        key: torch.from_numpy(recipe.fill(key, shape))
        for key, shape in shapes.items()
        if key.startswith(("scale.layer", "scale.aspp"))
    }
    state = {f"module.{key}": tensor for key, tensor in trunk.items()}
    benchmark, embeddings = load_benchmark("pascal_voc"), recipe.embedding_tables(15, 20)[1]
    model = network(*convert_spnet({"state_dict": state}, benchmark, embeddings))
    assert tuple(model.config.dataset_ids) == benchmark.class_ids
    pixel_values = torch.from_numpy(recipe.image("spnet", 2, 72, 72))
    right, error = recipe.check_probe(SPNET, "aspp", model.cagnet(pixel_values).features.numpy(), 1e-4, 1e-5)
    assert right, error
    np.testing.assert_allclose(model(pixel_values).logits, SPNET["logits_msc"], rtol=1e-4, atol=1e-5)
    one_scale = model.classify(model.cagnet(pixel_values).features)
    np.testing.assert_allclose(one_scale, SPNET["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "scale.", "back.scale.", "module.scale.", "module.back.scale."])
def test_every_prefix_of_a_trunk_is_known(prefix):
    config, weights = convert_backbone(tiny_trunk(prefix))
    assert same(weights, convert_backbone(tiny_trunk())[1])
    assert config.feature_size == 12


@pytest.mark.parametrize(
    ("state", "size", "reason"),
    [
        (tiny_trunk(), 13, "class embeddings of 13 numbers do not fit a network with 12 features"),
        (without_aspp(tiny_trunk()), 12, "a network with no ASPP"),
        (tiny(), 12, "a CaGNet network, not an SPNet"),
    ],
)
def test_files_that_are_no_spnet_are_refused(state, size, reason):
    with pytest.raises(ValueError, match=reason):
        convert_spnet(state, load_benchmark("pascal_voc"), np.ones((20, size), np.float32))


# Backbones


def resnet_config():
    return ResNetConfig(embedding_size=8, hidden_sizes=[16, 32, 64, 128], depths=[1, 2, 1, 1], layer_type="bottleneck")


def with_statistics(model):
    """Weights and running statistics that differ everywhere."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if name.endswith("running_var") else tensor.normal_(std=0.5)
    return model.eval()


@pytest.mark.parametrize(
    ("build", "skipped"),
    [
        (TorchvisionResNet, {"fc.weight", "fc.bias"}),
        (lambda: ResNetForImageClassification(resnet_config()), {"classifier.1.weight", "classifier.1.bias"}),
        (lambda: ResNetBackbone(resnet_config()), set()),
    ],
    ids=["torchvision", "transformers", "transformers backbone"],
)
@torch.no_grad()
def test_imagenet_resnets_give_the_same_features(build, skipped):
    resnet = with_statistics(build())
    match = match_keys(resnet.state_dict())
    assert (set(match.skipped), match.unknown) == (skipped, ())
    config, weights = convert_backbone(resnet.state_dict())
    assert (config.depths, config.stride_in_1x1) == ([1, 2, 1, 1], False)
    config.output_stride = 32
    model = CaGNetModel(config).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert not [name for name in missing if name.startswith("backbone")]
    image = noise(1, 3, 65, 97)  # of a size where rounding the pooled size up and down agree
    expected = resnet(image) if isinstance(resnet, TorchvisionResNet) else resnet(image, output_hidden_states=True)
    expected = expected if isinstance(expected, torch.Tensor) else expected.hidden_states[-1]
    torch.testing.assert_close(model.backbone(image), expected, rtol=1e-4, atol=1e-5)


def test_resnets_of_basic_blocks_are_refused():
    config = resnet_config()
    config.layer_type = "basic"
    with pytest.raises(ValueError, match="of another architecture"):
        convert_backbone(ResNetBackbone(config).state_dict())


def test_the_trunk_of_a_cagnet_file_can_be_taken():
    assert same(convert_backbone(tiny())[1], convert_backbone(tiny_trunk())[1])


def recipe_model(**options):
    fields = {"depths": SMALL, "hidden_sizes": (16, 32, 64, 128), "stem_size": 4, "feature_size": 12}
    return CaGNetForSemanticSegmentation(CaGNetConfig(**(fields | options), embedding_size=6))


@pytest.mark.parametrize(("feature_size", "loaded"), [(12, "backbone and aspp"), (13, "backbone")])
def test_a_recipe_starts_from_a_deeplab_file(tmp_path, feature_size, loaded):
    torch.save({"state_dict": tiny_trunk()}, tmp_path / "deeplab.pth")
    model = recipe_model(feature_size=feature_size)
    with nullcontext() if "aspp" in loaded else pytest.warns(UserWarning, match="not its aspp, .*starts anew"):
        assert load_backbone_weights(model, str(tmp_path / "deeplab.pth")) == f"{loaded} weights: deeplab.pth"
    ours = model.cagnet.state_dict()
    for name, tensor in convert_backbone(tiny_trunk())[1].items():
        if name.partition(".")[0] in loaded:
            assert torch.equal(ours[name], tensor)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"stride_in_1x1": False}, "needs model.stride_in_1x1=True, not False"),
        ({"depths": (1, 1, 1, 1)}, r"needs model.depths=\[1, 1, 2, 1\], not \[1, 1, 1, 1\]"),
        ({"stem_size": 8}, "needs model.stem_size=4, not 8"),
    ],
)
def test_a_file_that_does_not_fit_the_recipe_is_refused(tmp_path, options, reason):
    torch.save(tiny_trunk(), tmp_path / "deeplab.pth")
    with pytest.raises(ValueError, match=reason):
        load_backbone_weights(recipe_model(**options), str(tmp_path / "deeplab.pth"))


def test_a_file_without_a_backbone_is_refused_by_name(tmp_path):
    torch.save(pixelcnn("newnew2"), tmp_path / "patches.pth")
    with pytest.raises(ValueError, match=r"patches\.pth: no known network"):
        load_backbone_weights(recipe_model(), str(tmp_path / "patches.pth"))
