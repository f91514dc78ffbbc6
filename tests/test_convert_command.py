"""convert_checkpoint.py, and the files it reads: a model folder, or one line that says what is wrong."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from original_checkpoints import TorchvisionResNet, network, noise, pixelcnn, same, tiny, tiny_trunk
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from cagnet_hf import CaGNetImageProcessor
from cagnet_hf.conversion import convert_state_dict, read_checkpoint

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


def open_folder(folder):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True).eval()
    return model, AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)


def card_header(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_a_checkpoint_becomes_a_model_folder(convert, tmp_path):
    code, printed, errors = convert({"iteration": 1, "state_dict": tiny()})
    assert (code, errors) == (0, [])
    assert printed[0] == "Matched 155 of 155 tensors"
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
    expected = F.normalize(torch.from_numpy(table[1:]), dim=1)  # row 0 is background
    torch.testing.assert_close(model.class_embeddings, expected)


def test_a_model_folder_is_replaced_only_when_asked(convert, tmp_path):
    assert convert(tiny())[0] == 0
    assert_refused(convert(tiny("cagnetv2_voc12_ps3")), "exists; choose another or pass --overwrite")
    assert open_folder(tmp_path / "model")[0].config.patch_size == 1
    assert convert(tiny("cagnetv2_voc12_ps3"), "--overwrite")[0] == 0
    assert open_folder(tmp_path / "model")[0].config.patch_size == 3


def assert_refused(result, reason):
    code, printed, errors = result
    assert (code, printed, len(errors)) == (2, [], 1)
    assert errors[0].startswith("error: ")
    assert reason in errors[0]


@pytest.mark.parametrize(
    ("content", "arguments", "reason"),
    [
        (tiny() | {"dis.extra": torch.zeros(1)}, (), "original.pth: 1 of 156 tensors have no place"),
        (tiny() | {"Em_vis.weight": torch.ones(256, 12)}, (), "original.pth: Em_vis is not the first rows"),
        (tiny_trunk(), (), "original.pth: a DeepLabV2 file without classes: for an SPNet give --benchmark"),
        (TorchvisionResNet().state_dict(), (), "a torchvision file without classes"),
        (pixelcnn("newnew2"), (), "original.pth: a PixelCNN over patches, which segments nothing"),
        ({"weight": torch.zeros(1)}, (), "no known network: 1 tensors, the first 'weight'"),
        (tiny(), ("--benchmark", "pascal_voc"), "--benchmark and --class_embeddings go together"),
        (tiny(), ("--benchmark", "pascal_voc", "--class_embeddings", "bundled"), "not an SPNet"),
        (tiny_trunk(), ("--benchmark", "pascal", "--class_embeddings", "bundled"), "unknown benchmark 'pascal'"),
        (tiny_trunk(), ("--benchmark", "pascal_voc", "--class_embeddings", "bundled"), "do not fit a network with 12"),
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
