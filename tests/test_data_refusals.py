"""Bad data, as the commands refuse them: exit code 2 and one line that names the file, the value and the way out."""

import json
from pathlib import Path

import numpy as np
import pytest
from miniature_archives import write_jpeg, write_png
from miniature_voc import MiniatureVoc
from trained import arguments

from cagnet_hf.data.sources import open_prepared

CLASSES = "classes: [{id: 1, name: sheep}, {id: 4, name: cow}]\nseen: [sheep]\nunseen: [cow]\n"


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def refused(load_script, capsys):
    """`refused(script, argv)`: the one line that a command ends with."""

    def run(script: str, argv: list[str]) -> str:
        assert load_script(script).main(argv) == 2
        lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "error: " in line]
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.fixture
def voc(tmp_path) -> MiniatureVoc:
    return MiniatureVoc(tmp_path / "source")


def prepare(voc: MiniatureVoc, *options: str) -> list[str]:
    return ["pascal_voc", "--source", str(voc.folder), "--output", str(voc.folder.parent / "out"), *options]


# Files


def test_a_mask_of_another_size(voc, refused):
    voc.write_mask("b", np.ones((10, 19), np.uint8))
    assert refused("prepare_data", prepare(voc)) == (
        f"error: 1 bad pairs of image and mask, repair them: {voc.mask('b')} (image {voc.image('b')}): "
        "the mask's size 19x10 differs from the 20x10 of its image"
    )


def test_a_label_outside_the_label_set(voc, refused):
    voc.write_mask("b", np.full((10, 20), 42, np.uint8))
    assert refused("prepare_data", prepare(voc)) == (
        f"error: 1 bad pairs of image and mask, repair them: {voc.mask('b')}: "
        "label 42 is not in the label set (unknown ids: [42]); "
        "add it under classes and `ignored` in a class table (benchmark=FILE.yaml)"
    )


def test_an_empty_split(voc, refused):
    voc.write_list("val.txt", [])
    path = voc.root / "ImageSets" / "Segmentation" / "val.txt"
    assert refused("prepare_data", prepare(voc)) == f"error: {path} lists no images"


def test_a_truncated_image(voc, refused):
    voc.truncate("b")
    line = refused("prepare_data", prepare(voc))
    start = f"error: 1 bad pairs of image and mask, repair them or pass skip_broken: {voc.image('b')}: "
    assert line.startswith(f"{start}truncated or damaged (") and line.endswith(")")  # between them: Pillow's words


def test_a_file_that_is_no_image(voc, refused):
    voc.image("b").write_text("not an image")
    assert refused("prepare_data", prepare(voc)) == (
        f"error: 1 bad pairs of image and mask, repair them or pass skip_broken: {voc.image('b')}: not an image"
    )


# One file of a hundred


@pytest.fixture
def one_of_a_hundred(tmp_path) -> tuple[MiniatureVoc, list[str]]:
    """Six hundred images; six of them end early."""
    names = [f"image{number:03d}" for number in range(600)]
    voc = MiniatureVoc(tmp_path / "source", train=names[:1])
    data = [voc.image(names[0]).read_bytes(), voc.mask(names[0]).read_bytes()]
    for name in names[1:]:
        voc.image(name).write_bytes(data[0])
        voc.mask(name).write_bytes(data[1])
    voc.write_list("train_aug.txt", names)
    for name in names[50::100]:
        voc.truncate(name)
    return voc, names[50::100]


def test_all_broken_files_are_listed(one_of_a_hundred, load_script, capsys):
    voc, broken = one_of_a_hundred
    assert load_script("prepare_data").main(prepare(voc)) == 2
    printed = capsys.readouterr()
    listed = [line for line in printed.out.splitlines() if "truncated or damaged" in line]
    assert [line.partition(": ")[0] for line in listed] == [str(voc.image(name)) for name in broken]
    last = printed.err.splitlines()[-1]
    assert last.startswith("error: 6 bad pairs of image and mask, repair them or pass skip_broken: ")
    assert f"6 files (first: {voc.image(broken[0])}): truncated or damaged" in last
    assert not (voc.folder.parent / "out").exists()


def test_the_others_are_prepared_when_asked_to(one_of_a_hundred, load_script, capsys):
    voc, broken = one_of_a_hundred
    assert load_script("prepare_data").main(prepare(voc, "--skip_broken")) == 0
    rows = open_prepared(voc.folder.parent / "out", split="train")
    assert len(rows) == 594 and not set(broken) & set(rows["image_id"][:])
    printed = capsys.readouterr().out
    assert "Skipped in train: 6\n" in printed
    assert all(f"- {voc.image(name)}: truncated or damaged" in printed for name in broken)


# Classes and their vectors


@pytest.fixture
def farm(tmp_path) -> Path:
    """Own photographs of two classes."""
    for stem in "abcde":
        write_jpeg(tmp_path / "farm" / "images" / f"{stem}.jpg")
        write_png(tmp_path / "farm" / "masks" / f"{stem}.png", np.array([[1, 1, 1, 4, 255]] * 4, np.uint8))
    (tmp_path / "farm" / "classes.yaml").write_text(CLASSES)
    return tmp_path / "farm"


def own(farm: Path) -> list[str]:
    return ["folder", "--source", str(farm), "--output", str(farm.parent / "out")]


def test_a_class_that_is_both_seen_and_unseen(farm, refused):
    (farm / "classes.yaml").write_text(CLASSES.replace("unseen: [cow]", "unseen: [cow, sheep]"))
    assert refused("prepare_data", own(farm)) == (
        f"error: {farm / 'classes.yaml'}: class 'sheep' is in several of seen, unseen, ignored"
    )


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (
            {"sheep": [1.0, 0.0]},
            "no embedding of class 'cow' among its 1 names; `cagnet-hf prepare_embeddings` makes a table of any names",
        ),
        (
            {"sheep": [1.0, 0.0], "cow": [1.0, 0.0, 2.0]},
            "the embedding of 'cow' has size (3,), that of 'sheep' (2,)",
        ),
        ({"sheep": [1.0, 0.0], "cow": [0.0, 0.0]}, "the embedding of class 'cow' is zero"),
        (
            {"sheep": [1.0, float("nan")], "cow": [0.0, 1.0]},
            "the embedding of class 'sheep' has values that are not finite",
        ),
    ],
)
def test_vectors_that_do_not_serve(farm, load_script, refused, vectors, message):
    assert load_script("prepare_data").main(own(farm)) == 0
    table = farm.parent / "vectors.json"
    table.write_text(json.dumps(vectors))
    keys = [f"benchmark={farm.parent / 'out'}", f"class_embeddings={table}", "model.feature_size=2"]
    argv = arguments(farm.parent / "out", farm.parent / "run", *keys, recipe="scenes/spnet")
    assert refused("train", argv) == f"error: {table}: {message}"


# Columns


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("image_column=picture", "no column 'picture'; it has image, mask, image_id"),
        ("mask_column=image_id", "column 'image_id' holds Value('string'), not images"),
        ("test_split=val", "no split 'val'; it has train, test"),
    ],
)
@pytest.mark.parametrize("streaming", ["false", "true"])
def test_what_a_dataset_lacks(tiny_dataset, tmp_path, refused, key, message, streaming):
    argv = arguments(tiny_dataset, tmp_path / "run", key, f"streaming={streaming}")
    assert refused("train", argv) == f"error: {tiny_dataset}: {message}"
