"""A benchmark from outside the package: one class table, and one builder of what its owner distributes."""

import json
from pathlib import Path

import numpy as np
import pytest
from miniature_archives import pascal_palette, write_jpeg
from PIL import Image
from trained import arguments

from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data.examples import Example
from cagnet_hf.data.prepared import write_prepared
from cagnet_hf.data.sources import open_dataset
from cagnet_hf.weights.folders import load_model

CLASSES = """\
name: shore
classes:
- {id: 3, name: sand, color: [250, 240, 10]}
- {id: 5, name: sea, color: [10, 20, 250]}
- {id: 9, name: gull, color: [250, 250, 250]}
- {id: 0, name: anything else, color: [0, 0, 0]}
seen: [sand, sea]
unseen: [gull]
ignored: [anything else]
origin: {description: Photographs of a shore., source: https://example.org/shore, license: cc-by-4.0, terms: CC BY 4.0}
"""
IDS = np.array([[3, 3, 5, 5, 9, 0]] * 4, np.uint8)


def shore_examples(source: Path) -> dict[str, list[Example]]:
    """The builder: photographs lie beside their masks, and names tell the split."""
    examples = {"train": [], "test": []}
    for image in sorted(source.glob("*_photo.jpg")):
        name = image.name.removesuffix("_photo.jpg")
        examples["test" if name.startswith("t") else "train"].append(Example(name, image, source / f"{name}_ids.png"))
    return examples


@pytest.fixture
def shore(tmp_path, monkeypatch) -> Path:
    """What the owner distributes, the class table beside it; masks show colours."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    colors = pascal_palette()
    for stored_id, color in {3: (250, 240, 10), 5: (10, 20, 250), 9: (250, 250, 250), 0: (0, 0, 0)}.items():
        colors[stored_id] = color
    for name in ("a", "b", "c", "t1", "t2"):
        write_jpeg(tmp_path / "shore" / f"{name}_photo.jpg", size=IDS.shape[::-1])
        Image.fromarray(colors[IDS]).save(tmp_path / "shore" / f"{name}_ids.png")
    (tmp_path / "shore.yaml").write_text(CLASSES)
    return tmp_path


def test_a_benchmark_from_outside_is_prepared_and_trained_on(shore, load_script, one_thread):
    benchmark = load_benchmark(shore / "shore.yaml")
    reports = write_prepared(shore_examples(shore / "shore"), shore / "prepared", benchmark)
    assert {split: report.num_images for split, report in reports.items()} == {"train": 3, "test": 2}
    assert "Photographs of a shore." in (shore / "prepared" / "README.md").read_text()
    sample = open_dataset(str(shore / "prepared"), "test")[0]
    assert (sample.id, sample.image.shape, sample.labels.tolist()) == ("t1", (3, 4, 6), IDS.tolist())

    vectors = {"sand": [1.0, 0.2], "sea": [0.1, 1.0], "gull": [0.9, 0.5]}
    (shore / "vectors.json").write_text(json.dumps(vectors))
    keys = [
        f"benchmark={shore / 'prepared'}",
        f"class_embeddings={shore / 'vectors.json'}",
        "model.feature_size=2",
        "stages.pretrain.iterations=2",
    ]
    argv = arguments(shore / "prepared", shore / "run", *keys, recipe="scenes/spnet")
    assert load_script("train").main(argv) == 0
    model, _ = load_model(shore / "run" / "model")
    assert list(model.config.id2label.values()) == ["sand", "sea", "gull"]
    assert (model.config.dataset_ids, model.config.ignored_dataset_ids) == ([3, 5, 9], [0])
    metrics = json.loads((shore / "run" / "metrics.json").read_text())
    assert metrics["num_images"] == 2 and metrics["per_class"]["gull"] == metrics["per_class"]["gull"] | {
        "seen": False,
        "pixels": 2 * 4,
    }
