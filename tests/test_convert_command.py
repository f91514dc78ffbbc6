"""convert_checkpoint.py, and the files it reads: a model folder, or one line that says what is wrong."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from original_checkpoints import (
    TorchvisionResNet,
    network,
    noise,
    pixelcnn,
    same,
    tiny,
    tiny_trunk,
    without_aspp,
)
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    ResNetConfig,
    ResNetForImageClassification,
)

from cagnet_hf import CaGNetConfig, CaGNetImageProcessor, CaGNetModel
from cagnet_hf.weights.backbones import load_backbone_weights
from cagnet_hf.weights.conversion import convert_backbone, convert_state_dict, read_checkpoint

# Files


class Hostile:
    """Makes a file when it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def hostile_file(request, tmp_path):
    path = tmp_path / "hostile.pth"
    content = {"state_dict": tiny_trunk() | {"scale.extra": Hostile(tmp_path / "it_ran")}}
    torch.save(content, path, _use_new_zipfile_serialization=request.param)
    torch.load(path, weights_only=False)  # it does run where it is let
    (tmp_path / "it_ran").rmdir()
    return path


def assert_refused_unread(path, reason):
    with pytest.raises(ValueError, match=reason) as refusal:
        read_checkpoint(path)
    assert str(refusal.value).startswith(str(path))
    assert "weights_only" not in str(refusal.value)  # PyTorch's advice to load it all the same
    assert "\n" not in str(refusal.value)


def test_a_hostile_pickle_is_refused_and_never_run(hostile_file):
    assert_refused_unread(hostile_file, "objects or code, which are never loaded")
    assert not (hostile_file.parent / "it_ran").exists()


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("kept", [0, 0.1, 0.9])
def test_a_cut_file_is_refused(tmp_path, legacy, kept):
    path = tmp_path / "cut.pth"
    torch.save(tiny_trunk(), path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert_refused_unread(path, "not a checkpoint of plain tensors")


@pytest.mark.parametrize(
    ("content", "reason"),
    [([torch.zeros(1)], "a list, not named tensors"), ({"a": 1}, "entry 'a' is no tensor but a int")],
)
def test_files_of_other_things_are_refused(tmp_path, content, reason):
    torch.save(content, tmp_path / "other.pth")
    assert_refused_unread(tmp_path / "other.pth", reason)


def test_safetensors_files_are_read(tmp_path):
    save_file(tiny(), tmp_path / "converted.safetensors")
    assert same(read_checkpoint(tmp_path / "converted.safetensors"), tiny())
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "converted.safetensors").read_bytes()[:5000])
    assert_refused_unread(tmp_path / "cut.safetensors", "not a whole safetensors file")


# The command


@pytest.fixture
def convert(load_script, tmp_path, capsys):
    """`convert(content, *arguments)`: (exit code, output lines, error lines) of the command on a saved checkpoint."""

    def run(content, *arguments):
        torch.save(content, tmp_path / "original.pth")
        arguments = [tmp_path / "original.pth", "--output", tmp_path / "model", *arguments]
        code = load_script("convert_checkpoint").main(list(map(str, arguments)))
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), [line for line in printed.err.splitlines() if "error" in line.lower()]

    return run


def open_folder(folder, kind=AutoModelForSemanticSegmentation):
    model = kind.from_pretrained(folder, trust_remote_code=True).eval()
    return model, AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)


def card_header(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_a_checkpoint_becomes_a_model_folder(convert, tmp_path):
    code, printed, errors = convert({"iteration": 1, "state_dict": tiny()})
    assert (code, errors) == (0, [])
    assert printed[0] == "155 tensors: 155 matched, 0 skipped, 0 unknown"
    assert printed[1].startswith("15 seen and 5 unseen classes: aeroplane, bicycle, ")
    folder = tmp_path / "model"
    assert {path.name for path in tmp_path.iterdir()} == {"original.pth", "model"}
    assert {"model.safetensors", "modeling_cagnet.py", "image_processing_cagnet.py", "README.md"} <= {
        path.name for path in folder.iterdir()
    }
    model, processor = open_folder(folder)
    expected = network(*convert_state_dict(tiny()))
    assert torch.equal(model(noise(1, 3, 33, 33)).logits, expected(noise(1, 3, 33, 33)).logits)
    defaults = CaGNetImageProcessor().to_dict()  # checked on the reference's numbers in test_transforms.py
    assert {key: value for key, value in processor.to_dict().items() if key != "auto_map"} == defaults
    assert (processor.do_flip_channel_order, processor.size) == (True, {"height": 513, "width": 513})


def test_the_card_names_source_and_licence_and_claims_no_score(convert, tmp_path):
    assert convert(tiny(), "--source", "https://example.org/voc12.pth")[0] == 0
    assert card_header(tmp_path / "model")["license"] == "other"
    assert "model-index" not in card_header(tmp_path / "model")
    text = (tmp_path / "model" / "README.md").read_text()
    assert "https://example.org/voc12.pth" in text
    assert str(tmp_path) not in text


def test_an_spnet_becomes_a_model_folder(convert, tmp_path):
    table = np.random.default_rng(0).normal(size=(21, 12)).astype(np.float32)
    np.save(tmp_path / "table.npy", table)
    code, _, errors = convert(tiny_trunk(), "--benchmark", "pascal_voc", "--class_embeddings", tmp_path / "table.npy")
    assert (code, errors) == (0, [])
    model, _ = open_folder(tmp_path / "model")
    assert (model.config.classifier, model.config.id2label[15]) == ("projection", "potted_plant")
    assert list(model.config.test_scales) == [1.0, 0.75, 0.5]
    expected = F.normalize(torch.from_numpy(table[1:]), dim=1)  # row 0 is background
    torch.testing.assert_close(model.class_embeddings, expected)


def test_a_model_folder_is_replaced_only_when_asked(convert, tmp_path):
    assert convert(tiny())[0] == 0
    assert_refused(convert(tiny("cagnetv2_voc12_ps3")), "exists; choose another or pass --overwrite")
    assert open_folder(tmp_path / "model")[0].config.patch_size == 1
    assert convert(tiny("cagnetv2_voc12_ps3"), "--overwrite")[0] == 0
    assert open_folder(tmp_path / "model")[0].config.patch_size == 3


# Backbones


def transformers_resnet():
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32, 64, 128], depths=[1, 2, 1, 1], layer_type="bottleneck"
    )
    return ResNetForImageClassification(config).state_dict()


BACKBONES = {  # what the file holds, and what the command counts
    "DeepLabV2": (tiny_trunk, "128 tensors: 128 matched, 0 skipped, 0 unknown"),
    "DeepLabV2 without ASPP": (
        lambda: without_aspp(tiny_trunk("module.")),
        "120 tensors: 120 matched, 0 skipped, 0 unknown",
    ),
    "torchvision": (
        lambda: TorchvisionResNet().state_dict(),
        "122 tensors: 120 matched, 2 skipped (fc.weight, fc.bias), 0 unknown",
    ),
    "transformers": (
        transformers_resnet,
        "122 tensors: 120 matched, 2 skipped (classifier.1.weight, classifier.1.bias), 0 unknown",
    ),
}


@pytest.fixture(params=BACKBONES)
def converted_backbone(request, convert, tmp_path):
    """(kind, tensors of the file, lines of the command, folder)."""
    tensors = BACKBONES[request.param][0]()
    code, printed, errors = convert(tensors, "--source", "https://example.org/backbone")
    assert (code, errors) == (0, [])
    return request.param, tensors, printed, tmp_path / "model"


@torch.no_grad()
def test_a_backbone_becomes_a_model_folder(converted_backbone):
    kind, tensors, printed, folder = converted_backbone
    assert printed[0] == BACKBONES[kind][1]
    model, _ = open_folder(folder, AutoModel)
    assert type(model).__name__ == "CaGNetModel"
    assert (model.config.contextual, model.config.generator) == (False, None)
    assert model.config.stride_in_1x1 is kind.startswith("DeepLabV2")
    ours = model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in convert_backbone(tensors)[1].items())
    features = model(noise(1, 3, 33, 33)).features
    assert features.shape == (1, 12 if kind == "DeepLabV2" else 600, 5, 5)
    assert features.std() > 0


def test_report_and_card_of_a_backbone_say_where_its_features_come_from(converted_backbone):
    kind, _, printed, folder = converted_backbone
    text = (folder / "README.md").read_text()
    for said in (printed[1], text):
        assert ("features of an untrained ASPP" in said) is (kind != "DeepLabV2")
    assert card_header(folder)["license"] == "other"
    assert "https://example.org/backbone" in text


def test_a_backbone_s_processor_prepares_the_input_it_was_trained_on(converted_backbone):
    kind, _, _, folder = converted_backbone
    image = np.random.default_rng(0).integers(0, 256, (513, 513, 3), dtype=np.uint8)
    if kind.startswith("DeepLabV2"):
        expected = image[..., ::-1] - np.array([104.008, 116.669, 122.675])
    else:
        expected = (image / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    inputs = open_folder(folder, AutoModel)[1](image, return_tensors="pt")
    np.testing.assert_allclose(inputs["pixel_values"][0], expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-4)


def test_a_recipe_starts_from_a_converted_backbone(converted_backbone):
    _, tensors, _, folder = converted_backbone
    model = CaGNetModel(CaGNetConfig.from_pretrained(folder))
    assert load_backbone_weights(model, str(folder)) == "backbone and aspp weights: model"
    ours = model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in convert_backbone(tensors)[1].items())


def test_an_untrained_pyramid_is_the_same_in_every_conversion(convert, tmp_path):
    pyramids = []
    for _ in range(2):
        assert convert(without_aspp(tiny_trunk()), "--overwrite")[0] == 0
        pyramids.append(open_folder(tmp_path / "model", AutoModel)[0].aspp.state_dict())
    assert same(*pyramids)
    assert pyramids[0]["branches.0.weight"].std().item() == pytest.approx(0.01, rel=0.01)


# Refusals


def without(*names):
    return {key: tensor for key, tensor in tiny().items() if key not in names}


def assert_refused(result, reason):
    code, printed, errors = result
    assert (code, printed, len(errors)) == (2, [], 1)
    assert errors[0].startswith("error: ")
    assert reason in errors[0]


BUNDLED = ("--benchmark", "pascal_voc", "--class_embeddings", "bundled")


@pytest.mark.parametrize(
    ("content", "arguments", "reason"),
    [
        (tiny() | {"dis.extra": torch.zeros(1)}, (), "original.pth: 1 of 156 tensors have no place"),
        (tiny() | {"Em_vis.weight": torch.ones(256, 12)}, (), "original.pth: Em_vis is not the first rows"),
        (without("Em_all.weight"), (), "original.pth: the file holds a backbone but no classes (no Em_all)"),
        (tiny_trunk() | {"scale.fc.bias": torch.zeros(1)}, (), "tensors have no place in the DeepLabV2 layout"),
        (pixelcnn("newnew2"), (), "original.pth: no known network"),
        (TorchvisionResNet().state_dict(), BUNDLED, "a torchvision file, where one of DeepLabV2 is wanted"),
        ({"weight": torch.zeros(1)}, (), "no known network: 1 tensors, the first 'weight'"),
        (tiny(), ("--benchmark", "pascal_voc"), "--benchmark and --class_embeddings go together"),
        (tiny(), BUNDLED, "not an SPNet"),
        (tiny_trunk(), ("--benchmark", "pascal", "--class_embeddings", "bundled"), "unknown benchmark 'pascal'"),
        (tiny_trunk(), BUNDLED, "do not fit a network with 12"),
    ],
)
def test_the_command_refuses_in_one_line_and_writes_nothing(convert, tmp_path, content, arguments, reason):
    assert_refused(convert(content, *arguments), reason)
    assert {path.name for path in tmp_path.iterdir()} == {"original.pth"}


def test_the_command_refuses_a_hostile_pickle(convert, tmp_path):
    assert_refused(convert({"state_dict": {"a": Hostile(tmp_path / "it_ran")}}), "objects or code")
    assert {path.name for path in tmp_path.iterdir()} == {"original.pth"}


def test_the_command_refuses_a_missing_file(load_script, tmp_path, capsys):
    arguments = [str(tmp_path / "absent.pth"), "--output", str(tmp_path / "model")]
    assert load_script("convert_checkpoint").main(arguments) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'absent.pth'}: no such checkpoint file\n"
