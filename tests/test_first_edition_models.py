"""Models that the first edition saved open, and give its numbers: CaGNet(pa), SPNet-c, a Gaussian generator."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation

from cagnet_hf import CaGNetForSemanticSegmentation, CaGNetImageProcessor, CaGNetModel
from cagnet_hf.weights.folders import load_model

MODELS = Path(__file__).parent / "first_edition" / "models"
EXPECTED = load_file(MODELS / "expected.safetensors")  # of the first edition's own code
PIXELS = torch.randn(1, 3, 33, 49, generator=torch.Generator().manual_seed(7))
every_model = pytest.mark.parametrize("name", sorted(path.name for path in MODELS.iterdir() if path.is_dir()))
every_way = pytest.mark.parametrize(
    "open_model",
    [
        CaGNetForSemanticSegmentation.from_pretrained,
        lambda folder: AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True),
        lambda folder: load_model(str(folder))[0],
    ],
    ids=["our class", "auto class", "load_model"],
)


@every_model
@every_way
@torch.no_grad()
def test_scores_are_those_of_the_first_edition(name, open_model):
    model = open_model(MODELS / name).eval()
    torch.testing.assert_close(model(PIXELS).logits, EXPECTED[f"{name}.logits"])
    assert model.config.dataset_ids == [1, 2, 3, 4, 5]
    assert (model(PIXELS).calibration is not None) == (name == "spnet_c")


@pytest.mark.parametrize("name", ["cagnet_pa", "gaussian"])
@torch.no_grad()
def test_made_features_are_those_of_the_first_edition(name):
    model = CaGNetForSemanticSegmentation.from_pretrained(MODELS / name)
    made = model.synthesize_features(torch.zeros(1, 3, 3, dtype=torch.long), torch.Generator().manual_seed(0))
    torch.testing.assert_close(made, EXPECTED[f"{name}.synthetic"])


@every_model
def test_every_tensor_has_its_place_and_its_name(name, tmp_path):
    model, report = CaGNetForSemanticSegmentation.from_pretrained(MODELS / name, output_loading_info=True)
    assert not any(report.values())
    model.save_pretrained(tmp_path)
    again, before = (load_file(folder / "model.safetensors") for folder in (tmp_path, MODELS / name))
    assert again.keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in again.items())


@every_model
def test_the_features_alone_and_the_processor_open_too(name):
    model, report = AutoModel.from_pretrained(MODELS / name, trust_remote_code=True, output_loading_info=True)
    assert type(model) is CaGNetModel
    assert not report["missing_keys"]
    processor = AutoImageProcessor.from_pretrained(MODELS / name, trust_remote_code=True)
    assert type(processor) is CaGNetImageProcessor
    assert processor.size == {"height": 33, "width": 49}
