"""The notebook `scripts/quickstart.ipynb`: the cells run one after another, and no output of them is committed."""

import json

import pytest
from conftest import REPOSITORY

from cagnet_hf.weights.backbones import PACKAGES
from cagnet_hf.weights.folders import load_model

CELLS = json.loads((REPOSITORY / "scripts" / "quickstart.ipynb").read_text("utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip(PACKAGES["efficientnet_lite0"][0])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("cagnet_hf.apps.fitting.BATCH", 1)  # what the cost is estimated from: seconds less
    names: dict = {"__name__": "__main__"}
    for cell in CODE[:-1]:
        exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec"), names)
    told = capsys.readouterr().out
    assert "knows 3 classes from labels and 1 from their names alone" in told
    assert names["run"].metrics["num_images"] == 2
    assert {found.name for found in names["prediction"].classes} >= {"zebra", "stop sign"}

    export = compile("".join(CODE[-1]["source"]), "quickstart.ipynb", "exec")
    with monkeypatch.context() as patch:
        patch.setattr("cagnet_hf.apps.export.find_spec", lambda package: None)
        exec(export, names)
    assert "pip install 'cagnet-hf[onnx]'" in capsys.readouterr().out
    assert load_model(names["work"] / "model")[0].config.id2label[4] == "stop sign"
    monkeypatch.setattr("cagnet_hf.apps.export.export_onnx", write_instead)  # test_export exports, for many seconds
    exec(export, names)
    assert "model.onnx has 2.0 MB; its logits differ from PyTorch's by 1e-06" in capsys.readouterr().out


def write_instead(model, processor, path) -> float:
    path.write_bytes(bytes(2_000_000))
    return 1e-6


def test_the_notebook_is_committed_without_outputs():
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CODE)
    assert all("".join(cell["source"]).strip() for cell in CELLS)
