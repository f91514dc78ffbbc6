"""One command from a folder of photographs to a model."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from miniature_archives import write_png
from PIL import Image

import cagnet_hf
from cagnet_hf.apps.fitting import report
from cagnet_hf.data.builders.own_folder import folder_examples
from cagnet_hf.data.names import markdown
from cagnet_hf.weights.backbones import PACKAGES
from cagnet_hf.weights.folders import load_model

NAMES = "names: {0: void, 1: dog, 2: sofa, 3: train, 4: cow}\n"


def test_the_report_shows_names_as_names(tmp_path):
    """A class may be called what Markdown or HTML would read."""
    name = "a | b <script>"
    entry = {"iou": 0.2, "recall": 0.5, "seen": True, "pixels": 3, "given_to": {name: 0.5}}
    metrics = {"per_class": {name: entry}, "num_images": 1, "PA": 0.5, "S-mIoU": 0.2, "U-mIoU": None, "hIoU": 0.0}
    config = SimpleNamespace(seen_ids=[0], unseen_ids=[])
    run = SimpleNamespace(metrics=metrics, model=SimpleNamespace(config=config))
    text = report(run, SimpleNamespace(name=name), tmp_path)
    assert "<script>" not in text and "a | b" not in text
    assert markdown(name) in text


@pytest.fixture
def photographs(tmp_path):
    """A folder of ten small photographs whose table has names alone."""
    folder = tmp_path / "farm"
    random = np.random.default_rng(0)
    for number in range(10):
        ids = np.zeros((48, 64), np.uint8)
        for label in range(1, 5):
            ids[:, 16 * (label - 1) : 16 * label - 4] = label
        pixels = (random.integers(0, 30, (48, 64, 3)) + 50 * ids[..., None]).astype(np.uint8)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.jpg")
        write_png(folder / "masks" / f"{number}.png", ids)
    (folder / "classes.yaml").write_text(NAMES)
    return folder


def test_the_roles_of_classes_can_be_said_beside_a_table_of_names(photographs):
    roles = {"unseen": ["cow"], "ignored": ["void"]}
    _, benchmark = folder_examples(photographs, roles=roles)
    assert benchmark.class_names == ("dog", "sofa", "train", "cow")
    assert (benchmark.seen_ids, benchmark.unseen_ids, benchmark.ignored_ids) == ((1, 2, 3), (4,), (0,))
    (photographs / "classes.yaml").write_text(
        "classes: [{id: 0, name: void}, {id: 1, name: dog}, {id: 2, name: cow}]\nseen: [dog]\nunseen: [cow]\n"
        "ignored: [void]\ntuning: [dog]\n"
    )
    _, benchmark = folder_examples(photographs, roles={"unseen": ["dog"], "ignored": ["void"]})
    assert (benchmark.seen_ids, benchmark.unseen_ids) == ((2,), (1,))
    with pytest.raises(ValueError, match="'cwo'"):
        folder_examples(photographs, roles={"unseen": ["cwo"], "ignored": []})


def test_a_folder_becomes_a_model_that_learns_names(photographs, tmp_path, load_script, capsys):
    pytest.importorskip(PACKAGES["efficientnet_lite0"][0])
    output = tmp_path / "outputs"
    command = [str(photographs), "--unseen", "cow", "--ignored", "void", "--output", str(output)]
    assert load_script("fit").main(command) == 0
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["num_images"] == 2
    model, _ = load_model(output / "model")
    assert list(model.config.id2label.values()) == ["dog", "sofa", "train", "cow"]
    model.add_classes(["sheep"], cagnet_hf.from_names(["sheep", "dog"])[0].class_embeddings[:1])
    text = (output / "report.md").read_text()
    told = capsys.readouterr().out
    assert text in told and told.count("8 images to learn from, 2 to test on: about") == 2
    assert "knows 3 classes from labels and 1 from their names alone" in text
    for name, entry in metrics["per_class"].items():
        known = "labels" if entry["seen"] else "its name"
        assert f"| {name} | {known} | {entry['iou']:.2f} | {100 * entry['recall']:.0f} % |" in text
    assert load_script("fit").main(command) == 2  # nothing is replaced
    assert "exists: choose another output" in capsys.readouterr().err
    # As if it had been killed after the preparation.
    for path in {*output.iterdir()} - {output / "fit.json", output / "data"}:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    prepared = (output / "data" / "README.md").stat().st_mtime_ns
    assert load_script("fit").main([*command[:2], "dog", *command[3:]]) == 2
    assert f"{output} holds a fit of other photographs, unseen: choose another output" in capsys.readouterr().err
    assert load_script("fit").main(command) == 0
    assert (output / "data" / "README.md").stat().st_mtime_ns == prepared
    assert json.loads((output / "metrics.json").read_text())["per_class"] == metrics["per_class"]
    (output / "report.md").unlink()
    (photographs / "images" / "0.jpg").touch()
    assert load_script("fit").main(command) == 2
    assert f"{output} holds a fit of other photographs: choose" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--unseen", "cwo", "--ignored", "void"], "'cwo'"),
        (["--unseen", "cow", "--ignored", "void", "--test_share", "2"], "choose a share between 0 and 1"),
        (["--ignored", "void"], "say which classes are unseen, too"),
        (["--unseen", "cow", "--method", "cagnet"], "no recipe 'pascal_voc_edge/cagnet'"),
        ([], "no seen; a class table has classes, seen and unseen"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_the_work(
    photographs, tmp_path, load_script, capsys, options, message
):
    output = tmp_path / "outputs"
    assert load_script("fit").main([str(photographs), "--output", str(output), *options]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_folder_of_splits_is_read_and_the_second_one_to_score_on_is_named(photographs, tmp_path):
    for split in ("train", "val"):
        for part in ("images", "masks"):
            shutil.copytree(photographs / part, photographs / split / part)
    roles = {"unseen": ["cow"], "ignored": ["void"]}
    examples, _ = folder_examples(photographs, roles=roles)
    assert [{path.image.parts[-3] for path in examples[split]} for split in ("train", "test")] == [{"train"}, {"val"}]
    (photographs / "val").rename(photographs / "test")
    shutil.copytree(photographs / "test", photographs / "val")
    examples, _ = folder_examples(photographs, roles=roles)
    assert {path.image.parts[-3] for path in examples["test"]} == {"test"}


def test_keys_that_a_table_does_not_know_are_refused_beside_roles_too(photographs):
    roles = {"unseen": ["cow"], "ignored": ["void"]}
    (photographs / "classes.yaml").write_text(NAMES + "unsen: [cow]\n")
    with pytest.raises(ValueError, match="unknown key 'unsen'; did you mean 'unseen'"):
        folder_examples(photographs, roles=roles)
    (photographs / "classes.yaml").write_text(NAMES + "ignored_ids: [0]\nignore_index: 255\n")
    assert folder_examples(photographs, roles=roles)[1].ignored_ids == (0,)
