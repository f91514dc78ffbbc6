"""A recipe starts from the backbone of another model folder: what is loaded, and what is refused."""

import json
import pickle
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_recipe
from transformers import AutoBackbone

from cagnet_hf import CaGNetModel
from cagnet_hf.hub.models import published_recipe
from cagnet_hf.training.setup import benchmark_of, build_model
from cagnet_hf.weights.backbones import load_backbone_weights

KINDS = {
    "resnet": (),
    "efficientnet_lite0": ("model.backbone=efficientnet_lite0",),
    "convnext": (
        "model.backbone=auto",
        "model.backbone_config={model_type: convnext, hidden_sizes: [8, 16], depths: [1, 1], num_stages: 2}",
    ),
    "swin": (
        "model.backbone=auto",
        "model.backbone_config={model_type: swin, embed_dim: 8, depths: [1, 1], num_heads: [2, 2], window_size: 4}",
    ),
}
ALIKE = "model.feature_size=24"  # as wide as the features of an SPNet: the class embeddings


def new_model(method, *overrides):
    """A model of a recipe, every number in it different from those of the last."""
    recipe = tiny_recipe(method, *overrides)
    model = build_model(recipe, benchmark_of(recipe))
    if recipe.backbone_weights is None:
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.uniform_(0.5, 1.5)
    return model


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def spnet(tmp_path):
    """`spnet(*overrides)`: (an SPNet on a tiny backbone, its folder)."""

    def save(*overrides):
        model = new_model("spnet", *overrides)
        model.save_pretrained(tmp_path / "spnet")
        return model, tmp_path / "spnet"

    return save


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def loaded_parts(model, source) -> list[str]:
    """The parts of the network that hold the weights of the same part of `source`."""
    theirs = getattr(source, source.base_model_prefix, source).state_dict()
    ours = model.cagnet.state_dict()
    return [
        part
        for part in ("backbone", "aspp", "context")
        if all(
            name in theirs and torch.equal(tensor, theirs[name])
            for name, tensor in ours.items()
            if name.startswith(f"{part}.")
        )
    ]


def test_a_cagnet_starts_from_an_spnet(spnet, kind, no_network):
    source, folder = spnet(*kind)
    model = new_model("cagnet_pi", *kind, ALIKE, f"backbone_weights={folder}")
    assert loaded_parts(model, source) == ["backbone", "aspp"]
    assert not torch.equal(model.class_embeddings, source.class_embeddings)


@pytest.mark.parametrize("override", ["model.feature_size=16", "model.aspp=full", "model.aspp_dilations=[1, 2, 3, 4]"])
def test_a_pyramid_of_another_kind_starts_anew(spnet, override):
    source, folder = spnet()
    with pytest.warns(UserWarning, match="not its aspp, .*starts anew"):
        model = new_model("cagnet_pi", ALIKE, override, f"backbone_weights={folder}")
    assert loaded_parts(model, source) == ["backbone"]


@pytest.mark.parametrize(
    ("overrides", "parts", "missing"),
    [
        ([], ["backbone", "aspp", "context"], None),
        (
            ["model.context_hidden_size=12"],
            ["backbone", "aspp"],
            "its context, which needs model.context_hidden_size=",
        ),
        (["model.context_dilations=[1, 1, 1]"], ["backbone", "aspp"], "its context, which needs"),
        (["model.aspp=full"], ["backbone"], "its aspp, which needs model.aspp=depthwise, not full"),
    ],
)
def test_a_cagnet_starts_from_all_of_another_that_fits(tmp_path, recwarn, overrides, parts, missing):
    source = new_model("cagnet_pi")
    source.save_pretrained(tmp_path / "cagnet")
    model = new_model("cagnet_pa", *overrides, f"backbone_weights={tmp_path / 'cagnet'}")
    assert loaded_parts(model, source) == parts
    messages = [str(warning.message) for warning in recwarn if "anew" in str(warning.message)]
    assert len(messages) == (missing is not None)
    assert all(missing in message for message in messages)


def test_the_line_says_what_was_loaded(spnet, tmp_path):
    source = new_model("cagnet_pi")
    source.save_pretrained(tmp_path / "cagnet")
    assert load_backbone_weights(source, str(tmp_path / "cagnet")) == "backbone, aspp and context weights: cagnet"
    _, folder = spnet()
    assert load_backbone_weights(new_model("cagnet_pi", ALIKE), str(folder)) == "backbone and aspp weights: spnet"
    with pytest.warns(UserWarning, match="not its aspp, which needs model.feature_size=24, not "):
        assert load_backbone_weights(new_model("cagnet_pi"), str(folder)) == "backbone weights: spnet"


def test_a_folder_of_features_alone_will_do(tmp_path):
    source = new_model("cagnet_pi")
    source.cagnet.save_pretrained(tmp_path / "features")
    assert type(CaGNetModel.from_pretrained(tmp_path / "features")) is CaGNetModel
    model = new_model("cagnet_pi", f"backbone_weights={tmp_path / 'features'}")
    assert loaded_parts(model, source) == ["backbone", "aspp", "context"]


def test_weights_take_the_precision_of_the_model(spnet):
    source, folder = spnet()
    source.half().save_pretrained(folder)
    model = new_model("cagnet_pi", ALIKE, f"backbone_weights={folder}")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert loaded_parts(model, source.float()) == ["backbone", "aspp"]


def test_another_output_stride_needs_no_other_weights(spnet):
    source, folder = spnet("model.output_stride=8")
    model = new_model("cagnet_pi", ALIKE, "model.output_stride=16", f"backbone_weights={folder}")
    assert loaded_parts(model, source) == ["backbone", "aspp"]


# Refusals


@pytest.mark.parametrize(
    ("theirs", "ours", "reason"),
    [
        ("resnet", ("model.depths=[1, 1, 1, 2]",), "needs model.depths=[1, 1, 1, 1], not [1, 1, 1, 2]"),
        ("resnet", ("model.stem_size=4",), "needs model.stem_size=8, not 4"),
        ("resnet", ("model.stride_in_1x1=true",), "needs model.stride_in_1x1=False, not True"),
        ("resnet", KINDS["efficientnet_lite0"], "needs model.backbone=resnet, not efficientnet_lite0"),
        ("efficientnet_lite0", KINDS["convnext"], "needs model.backbone=efficientnet_lite0, not auto"),
        ("convnext", KINDS["swin"], "needs model.backbone_config.model_type=convnext, not swin"),
        (
            "swin",  # no tensor shows the number of heads
            (*KINDS["swin"], "model.backbone_config.num_heads=[2, 4]"),
            "needs model.backbone_config.num_heads=[2, 2], not [2, 4]",
        ),
    ],
)
def test_another_backbone_is_refused_by_what_differs(spnet, theirs, ours, reason):
    _, folder = spnet(*KINDS[theirs])
    with pytest.raises(ValueError) as refusal:
        new_model("cagnet_pi", *ours, f"backbone_weights={folder}")
    assert str(refusal.value) == f"{folder} {reason}"


def without_weights(folder):
    """A folder whose only weights are a pickle that makes a folder when it is let."""
    (folder / "model.safetensors").unlink()

    class Hostile:
        def __reduce__(self):
            return (folder / "it_ran").mkdir, ()

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile()))


def with_cut_weights(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])


def with_tensors(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def with_fields(**fields):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return damage


STEM = "cagnet.backbone.stem.convolution.weight"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without_weights, "no file named model.safetensors"),
        (with_cut_weights, "spnet: Error while deserializing header"),
        (
            with_tensors(lambda tensors: tensors.pop(STEM)),
            f"spnet: 1 tensors do not fit its config.json, for instance {STEM}",
        ),
        (with_tensors(lambda tensors: tensors.update({STEM: torch.ones(3)})), f"for instance {STEM}"),
        (with_tensors(lambda tensors: tensors.update({"cagnet.aspp.x": torch.ones(3)})), "for instance cagnet.aspp.x"),
        (with_fields(output_stride=5), "spnet: output_stride=5: choose one of"),
        (with_fields(depths="many"), "spnet: Validation error for field 'depths'"),
        (with_fields(model_type="resnet"), "spnet is no model folder of cagnet_hf"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not a valid JSON file"),
        (lambda folder: (folder / "config.json").unlink(), "spnet is no model folder of cagnet_hf"),
    ],
)
def test_a_damaged_folder_is_refused(spnet, no_network, damage, reason):
    _, folder = spnet()
    damage(folder)
    model = new_model("cagnet_pi", ALIKE)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises((ValueError, OSError)) as refusal:
        load_backbone_weights(model, str(folder))
    assert reason in str(refusal.value)
    assert str(folder) in str(refusal.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not (folder / "it_ran").exists()


def test_a_folder_of_a_transformers_backbone_is_read_as_before(tmp_path):
    model = new_model("cagnet_pi", *KINDS["convnext"])
    backbone = AutoBackbone.from_config(model.config.backbone_config)
    backbone.save_pretrained(tmp_path)
    assert load_backbone_weights(model, str(tmp_path)) == f"backbone weights: {tmp_path}"
    loaded = model.cagnet.backbone.backbone.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in backbone.state_dict().items())


# The card


def test_what_is_published_does_not_tell_where_the_folder_lay(spnet):
    _, folder = spnet()
    recipe = published_recipe(tiny_recipe("cagnet_pi", f"backbone_weights={folder}"))
    assert recipe["backbone_weights"] == "spnet"
    assert str(folder.parent) not in str(recipe)
