"""A saved model opens where this package is not installed, from nothing but its folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from test_architecture import TRAVELLING
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, pipeline

from cagnet_hf import CaGNetConfig, CaGNetForSemanticSegmentation, CaGNetImageProcessor, CaGNetModel

pytestmark = pytest.mark.usefixtures("one_thread")  # as in the other process: sums in one order

NAMES = ["cat", "dog", "train", "sofa", "tv"]

# Runs in a process of its own: `python -c ELSEWHERE model_folder output_folder`.
ELSEWHERE = """
import json, sys
from pathlib import Path

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "cagnet_hf":
            raise ImportError("cagnet_hf is not installed here")

sys.meta_path.insert(0, Refuse())

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, pipeline

folder, output = sys.argv[1], Path(sys.argv[2])
remote = {"trust_remote_code": True}
image = Image.open(output / "image.png")
facts = {"config": AutoConfig.from_pretrained(folder, **remote).to_dict()}
inputs = AutoImageProcessor.from_pretrained(folder, **remote)(image, return_tensors="pt")
with torch.no_grad():
    features, report = AutoModel.from_pretrained(folder, output_loading_info=True, **remote)
    segmenter = AutoModelForSemanticSegmentation.from_pretrained(folder, **remote)
    values = {
        "pixel_values": inputs["pixel_values"],
        "features": features(**inputs).features,
        "logits": segmenter(**inputs).logits,
        "class_embeddings": segmenter.class_embeddings,
        "synthetic": segmenter.synthesize_features(torch.zeros(1, 2, 2).long(), torch.Generator().manual_seed(0)),
    }
    segmenter.save_pretrained(output / "again")
    segmenter.add_classes(["zebra"], torch.ones(1, 6))
    values["logits_of_six"] = segmenter(**inputs).logits
    segmenter.save_pretrained(output / "six")
    six = AutoModelForSemanticSegmentation.from_pretrained(output / "six", **remote)
    values["logits_of_six_again"] = six(**inputs).logits
    AutoImageProcessor.from_pretrained(folder, **remote).save_pretrained(output / "again")
    again = AutoModelForSemanticSegmentation.from_pretrained(output / "again", **remote)
    values["logits_again"] = again(**inputs).logits
segments = pipeline("image-segmentation", model=folder, **remote)(image)
facts["missing_keys"] = sorted(report["missing_keys"])
facts["segments"] = {segment["label"]: list(segment["mask"].size) for segment in segments}
facts["pixels"] = sum(segment["mask"].histogram()[255] for segment in segments)
save_file({name: value.contiguous() for name, value in values.items()}, output / "values.safetensors")
(output / "facts.json").write_text(json.dumps(facts))
"""


def tiny_config(**options) -> CaGNetConfig:
    sizes = {
        "depths": (1, 1, 1, 1),
        "hidden_sizes": (8, 8, 16, 16),
        "stem_size": 8,
        "feature_size": 12,
        "context_hidden_size": 8,
        "classifier_hidden_size": 16,
        "generator_hidden_sizes": (16,),
        "generator_dropout": (0.1,),
        "embedding_size": 6,
        "id2label": dict(enumerate(NAMES)),
        "unseen_ids": (3, 4),
    }
    return CaGNetConfig(**(sizes | options))


def new_model(**options) -> CaGNetForSemanticSegmentation:
    torch.manual_seed(0)
    model = CaGNetForSemanticSegmentation(tiny_config(**options)).eval()
    model.class_embeddings.normal_()
    return model


@pytest.fixture(scope="module")
def model():
    return new_model()


@pytest.fixture(scope="module")
def processor():
    return CaGNetImageProcessor(size={"height": 33, "width": 49})


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def elsewhere(folder, image, tmp_path_factory) -> Path:
    """What a process without this package made of the folder."""
    output = tmp_path_factory.mktemp("elsewhere")
    image.save(output / "image.png")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(output / "hf"), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", ELSEWHERE, str(folder), str(output)]
    run = subprocess.run(command, cwd=output, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return output


@pytest.fixture(scope="module")
def facts(elsewhere):
    return json.loads((elsewhere / "facts.json").read_text())


@pytest.fixture(scope="module")
def values(elsewhere):
    return load_file(elsewhere / "values.safetensors")


# In the folder


def test_the_folder_holds_safetensors_config_processor_and_code(folder):
    code = {f"{name}.py" for name in TRAVELLING}
    assert {path.name for path in folder.iterdir()} == code | {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }


def test_config_names_the_class_for_every_auto_class(folder):
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoModelForSemanticSegmentation"}


def test_class_embeddings_are_stored_with_the_weights(folder, model):
    with safe_open(folder / "model.safetensors", "pt") as stored:
        assert torch.equal(stored.get_tensor("class_embeddings"), model.class_embeddings)


# Without the package


def test_config_elsewhere(facts, model):
    assert facts["config"]["id2label"] == {str(index): name for index, name in enumerate(NAMES)}
    assert facts["config"]["unseen_ids"] == [3, 4]
    assert facts["config"]["model_type"] == "cagnet"


def test_pixel_values_elsewhere(values, processor, image):
    assert torch.equal(values["pixel_values"], processor(image, return_tensors="pt")["pixel_values"])


@torch.no_grad()
def test_features_elsewhere(values, model):
    assert torch.equal(values["features"], model.cagnet(values["pixel_values"]).features)


def test_the_base_model_misses_no_tensor(facts):
    assert facts["missing_keys"] == []


@torch.no_grad()
def test_logits_elsewhere(values, model):
    assert torch.equal(values["logits"], model(values["pixel_values"]).logits)


def test_class_embeddings_elsewhere(values, model):
    assert torch.equal(values["class_embeddings"], model.class_embeddings)


@torch.no_grad()
def test_synthetic_features_elsewhere(values, model):
    class_ids = torch.zeros(1, 2, 2, dtype=torch.long)
    expected = model.synthesize_features(class_ids, torch.Generator().manual_seed(0))
    assert torch.equal(values["synthetic"], expected)


def test_pipeline_elsewhere_covers_the_image_with_named_segments(facts):
    assert set(facts["segments"]) <= set(NAMES)
    assert all(size == [60, 40] for size in facts["segments"].values())
    assert facts["pixels"] == 40 * 60


def test_a_model_saved_elsewhere_carries_its_code(elsewhere, folder):
    assert {path.name for path in (elsewhere / "again").iterdir()} == {path.name for path in folder.iterdir()}
    for path in folder.glob("*.py"):
        assert (elsewhere / "again" / path.name).read_text() == path.read_text()


def test_a_model_saved_elsewhere_opens_elsewhere(values):
    assert torch.equal(values["logits_again"], values["logits"])


def test_a_class_is_added_elsewhere(values, model, elsewhere):
    six = CaGNetForSemanticSegmentation.from_pretrained(elsewhere / "six")
    assert list(six.config.id2label.values()) == [*NAMES, "zebra"]
    assert torch.equal(values["logits_of_six"], values["logits_of_six_again"])
    torch.testing.assert_close(values["logits_of_six"][:, :5], values["logits"])


# With the package


def test_auto_classes_give_the_package_s_own_without_trust(folder):
    assert type(AutoConfig.from_pretrained(folder)) is CaGNetConfig
    assert type(AutoModel.from_pretrained(folder)) is CaGNetModel
    assert type(AutoModelForSemanticSegmentation.from_pretrained(folder)) is CaGNetForSemanticSegmentation
    assert type(AutoImageProcessor.from_pretrained(folder)) is CaGNetImageProcessor


@torch.no_grad()
def test_reloading_changes_no_number(folder, model):
    pixel_values = torch.randn(2, 3, 33, 49, generator=torch.Generator().manual_seed(0))
    reloaded = CaGNetForSemanticSegmentation.from_pretrained(folder)
    assert torch.equal(reloaded(pixel_values).logits, model(pixel_values).logits)
    assert torch.equal(reloaded.class_embeddings, model.class_embeddings)


def test_saving_leaves_only_safetensors_and_one_config(model, tmp_path):
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".py", ".safetensors"}


def test_the_base_model_alone_opens_too(folder, tmp_path, model):
    model.cagnet.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path)
    weights = reloaded.state_dict()
    assert all(torch.equal(values, weights[name]) for name, values in model.cagnet.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2])
def test_pipeline_of_a_calibrated_model(processor, image, batch_size):
    model = new_model(calibration=0.6)
    segment = pipeline("image-segmentation", model=model, image_processor=processor, batch_size=batch_size)
    images = [image, image.rotate(180)]
    for picture, segments in zip(images, segment(images), strict=True):
        output = model(processor(picture, return_tensors="pt")["pixel_values"])
        label_map = processor.post_process_semantic_segmentation(output, target_sizes=[(40, 60)])[0]
        expected = {NAMES[index]: (label_map == index).sum().item() for index in label_map.unique()}
        assert {s["label"]: s["mask"].histogram()[255] for s in segments} == expected
