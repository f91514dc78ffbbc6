"""Exported graphs: the numbers of the model at any size, and all that is needed to use them without this package."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from scipy.special import softmax
from test_modeling import SPNET, build, images, with_backbone

from cagnet_hf.apps.export import export_program
from cagnet_hf.model.image_processing_cagnet import CaGNetImageProcessor

OLD = torch.__version__ < torch.torch_version.TorchVersion("2.13")
PROCESSOR = CaGNetImageProcessor(size={"height": 65, "width": 97})
SIZES = [(1, 33, 49), (3, 64, 64), (2, 16, 130)]
# Every kind of backbone, ASPP, classifier and generator; several scales, patches, a calibration.
KINDS = {
    "patches": {"patch_size": 3, "calibration": 0.5},
    "projection at two scales": SPNET | {"test_scales": (1.0, 0.75)} | with_backbone("convnext"),
    "linear on EfficientNet": {
        "backbone": "efficientnet_lite0",
        "aspp": "depthwise",
        "classifier": "linear",
        "contextual": False,
        "generator": "moment_matching",
    },
    "linear with a Gaussian generator": {"contextual": False, "classifier": "linear", "generator": "gaussian"},
}


def run_onnx(path, pixel_values):
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    return session.run(None, {"pixel_values": pixel_values.numpy()})[0]


@pytest.fixture(scope="module", params=KINDS)
def exported(request, load_script, tmp_path_factory):
    """(model, the ONNX file that the command wrote)"""
    pytest.importorskip("onnxscript", reason="needs the extra `onnx`")
    model, folder = build(**KINDS[request.param]), tmp_path_factory.mktemp("onnx")
    model.save_pretrained(folder / "model")
    PROCESSOR.save_pretrained(folder / "model")
    path = folder / "new" / "model.onnx"
    assert load_script("export_onnx").main(["--model", str(folder / "model"), "--output", str(path)]) == 0
    return model, path


@torch.no_grad()
def test_onnx_gives_the_logits_of_the_model_at_any_size(exported):
    model, path = exported
    for size in SIZES:
        pixel_values = images(*size)
        np.testing.assert_allclose(run_onnx(path, pixel_values), model(pixel_values).logits, rtol=1e-3, atol=1e-4)


def test_onnx_holds_only_what_segments(exported):
    model, path = exported
    onnx = pytest.importorskip("onnx")
    stored = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    assert not [name for name in stored if "generator" in name or "critic" in name or "log_variance" in name]
    wanted = {name: value for name, value in model.named_parameters() if "cagnet." in name or "class" in name}
    assert sum(np.prod(tensor.dims) for tensor in stored.values()) <= sum(value.numel() for value in wanted.values())
    assert [path.name for path in path.parent.iterdir()] == ["model.onnx"]


def test_the_sides_of_an_onnx_graph_have_names(exported):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(exported[1], load_external_data=False).graph
    sides = [side.dim_param or side.dim_value for side in graph.input[0].type.tensor_type.shape.dim]
    assert [graph.input[0].name, graph.output[0].name, *sides] == [
        *("pixel_values", "logits"),
        *("batch", 3, "height", "width"),
    ]


@torch.no_grad()
def test_the_file_alone_segments_an_image(exported):
    """What a program in any language does with the file, here in numpy and Pillow."""
    model, path = exported
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert facts["class_names"] == list(model.config.id2label.values())
    assert (facts["seen_ids"], facts["unseen_ids"]) == ([0, 1, 2], [3, 4])
    assert facts["dataset_ids"] == [0, 1, 2, 3, 4]

    height, width = facts["size"]["height"], facts["size"]["width"]
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)  # nothing to resize
    order = slice(None, None, -1 if facts["channel_order"] == "BGR" else 1)
    inputs = pixels[..., order].astype(np.float32) * facts["scale"]
    inputs = (inputs - np.float32(facts["mean"])) / np.float32(facts["std"])
    (logits,) = session.run(["logits"], {"pixel_values": inputs.transpose(2, 0, 1)[None]})
    resized = [np.asarray(Image.fromarray(m).resize((width, height), Image.Resampling.BILINEAR)) for m in logits[0]]
    probabilities = softmax(np.stack(resized), axis=0)
    probabilities[facts["seen_ids"]] -= facts["calibration"]
    label_map = probabilities.argmax(axis=0)

    outputs = model(**PROCESSOR(pixels, return_tensors="pt"))
    (expected,) = PROCESSOR.post_process_semantic_segmentation(outputs, [(height, width)])
    assert (label_map == expected.numpy()).mean() > 0.999


@torch.no_grad()
@pytest.mark.skipif(OLD, reason="needs PyTorch 2.13, which exports the pooling of a ResNet at any size")
def test_torch_export_gives_the_logits_of_the_model_at_any_size(tmp_path):
    model = build(**KINDS["patches"])
    trained = [parameter.requires_grad for parameter in model.parameters()]
    torch.export.save(export_program(model), tmp_path / "model.pt2")
    assert model.generator is not None
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    program = torch.export.load(tmp_path / "model.pt2")
    assert not [name for name in program.state_dict if "generator" in name or "critic" in name]
    for size in SIZES:
        pixel_values = images(*size)
        torch.testing.assert_close(program.module()(pixel_values), model(pixel_values).logits)


def test_a_folder_as_output_is_refused(load_script, tmp_path, capsys):
    arguments = ["--model", "absent/model", "--output", str(tmp_path)]
    assert load_script("export_onnx").main(arguments) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} is a folder: name the file to write\n"


def test_the_section_of_the_readme(load_script, tmp_path, monkeypatch, capsys):
    """Its export command and its Python blocks, one after the other."""
    pytest.importorskip("onnxscript", reason="needs the extra `onnx`")
    text = (REPOSITORY / "scripts" / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Smaller, faster, elsewhere\n(.*?)^## ", text, re.M | re.S)[1]
    monkeypatch.chdir(tmp_path)
    build(contextual=False, classifier="linear", generator=None).save_pretrained("outputs/scenes/model")
    PROCESSOR.save_pretrained("outputs/scenes/model")
    names = {}
    for language, block in re.findall(r"```(bash|python)\n(.*?)```", section, re.S):
        if language == "python":
            exec(block, names)
        else:
            arguments = re.search(r"^python scripts/export_onnx.py (.*)$", block, re.M)[1].split()
            assert load_script("export_onnx").main(arguments) == 0
    assert names["facts"]["class_names"] == ["cat", "dog", "train", "sofa", "tv"]
    assert (tmp_path / "model.pt2").is_file()
    assert "['batch', 3, 'height', 'width'] logits" in capsys.readouterr().out
