"""Reading Pascal-Context as it is distributed: its 33 classes as they are, or reduced from 459 by name."""

import numpy as np
import pytest
from miniature_archives import write_devkit, write_png, write_tar
from PIL import Image
from scipy.io import savemat

from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data.builders.pascal_context import pascal_context_examples
from cagnet_hf.data.samples import read_image
from cagnet_hf.data.sources import open_prepared

CONTEXT = load_benchmark("pascal_context")
# In the order of the 459: alphabetical, with the spelling of the official file.
OFFICIAL_NAMES = sorted(
    {name.replace("_", "") for name in CONTEXT.class_names} - {"diningtable", "tv"}
    | {"table", "tvmonitor", "accordion", "air conditioner", "zebra"}
)


@pytest.fixture
def voc(tmp_path):
    write_devkit(tmp_path / "voc", "VOC2010", sets="Main", train=["2008_1", "2008_2"], val=["2008_3"])
    return tmp_path / "voc"


@pytest.fixture
def labels33(tmp_path):
    """The 33 classes as PNGs; each image holds unlabelled pixels and two classes."""
    folder = tmp_path / "png" / "33_context_labels"
    for number in (1, 2, 3):
        write_png(folder / f"2008_{number}.png", np.array([[0, number, 33, 33, 33]] * 4, np.uint8))
    return folder


@pytest.fixture
def labels459(tmp_path):
    """All official names in each image, one pixel of each, as .mat files with labels.txt beside them."""
    folder = tmp_path / "mat"
    (folder / "trainval").mkdir(parents=True)
    lines = [f"{number}: {name}\n" for number, name in enumerate(OFFICIAL_NAMES, start=1)]
    (folder / "labels.txt").write_text("".join(lines))
    for number in (1, 2, 3):
        write_mat(folder / "trainval" / f"2008_{number}.mat", np.arange(len(OFFICIAL_NAMES) + 1))
    return folder


def write_mat(path, numbers) -> None:
    savemat(path, {"LabelMap": np.asarray(numbers, np.uint16)[None]}, do_compression=True)


def first_rows(examples) -> dict[str, list]:
    every = [example for some in examples.values() for example in some]
    return {example.image_id: np.asarray(read_image(example.mask))[0].tolist() for example in every}


def test_the_33_classes_are_taken_as_they_are(voc, labels33):
    examples = pascal_context_examples(voc, labels33)
    assert {split: [e.image_id for e in some] for split, some in examples.items()} == {
        "train": ["2008_1", "2008_2"],
        "test": ["2008_3"],
    }
    assert first_rows(examples) == {f"2008_{n}": [0, n, 33, 33, 33] for n in (1, 2, 3)}


def test_numbers_become_the_33_classes_by_name(voc, labels459):
    by_name = dict(zip(["unlabelled", *OFFICIAL_NAMES], first_rows(read459(voc, labels459))["2008_3"], strict=True))
    assert (by_name["table"], by_name["tvmonitor"], by_name["pottedplant"]) == (11, 20, 16)
    assert (by_name["sky"], by_name["ceiling"], by_name["aeroplane"]) == (21, 33, 1)
    assert by_name["unlabelled"] == by_name["accordion"] == by_name["air conditioner"] == by_name["zebra"] == 0
    assert set(by_name.values()) == set(range(34))


def read459(voc, folder):
    return pascal_context_examples(voc, folder)


def test_archives_are_read_where_they_lie(voc, labels33, labels459, tmp_path):
    devkit = write_tar(voc, tmp_path / "VOCtrainval_03-May-2010.tar")
    png = write_tar(labels33.parent, tmp_path / "33_context_labels.tar.gz", "w:gz")
    assert first_rows(pascal_context_examples(devkit, png))["2008_2"] == [0, 2, 33, 33, 33]
    mat = write_tar(labels459, tmp_path / "trainval.tar.gz", "w:gz")
    assert first_rows(read459(devkit, mat)) == first_rows(read459(voc, labels459))


def test_the_names_may_lie_beside_an_archive_without_them(voc, labels459, tmp_path):
    expected = first_rows(read459(voc, labels459))
    (labels459 / "labels.txt").rename(tmp_path / "labels.txt")
    assert first_rows(read459(voc, write_tar(labels459, tmp_path / "trainval.tgz", "w:gz"))) == expected


def test_mat_files_without_names_are_refused(voc, labels459):
    (labels459 / "labels.txt").unlink()
    with pytest.raises(FileNotFoundError) as refused:
        read459(voc, labels459)
    assert str(refused.value) == (
        f"{labels459}/trainval: .mat files need labels.txt beside them (lines such as `2: aeroplane`)"
    )


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (": keyboard", ": piano", "none of its 36 labels is 'keyboard'; get the official file"),
        ("1: accordion", "accordion", "'accordion' is no line such as `2: aeroplane`"),
    ],
)
def test_wrong_names_are_refused(voc, labels459, old, new, reason):
    path = labels459 / "labels.txt"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError) as refused:
        read459(voc, labels459)
    assert str(refused.value) == f"{path}: {reason}"


def test_a_number_without_a_name_is_refused(voc, labels459):
    write_mat(labels459 / "trainval" / "2008_2.mat", [1, 460])
    with pytest.raises(ValueError) as refused:
        first_rows(read459(voc, labels459))
    assert str(refused.value) == f"{labels459}/trainval/2008_2.mat: label 460 is not in {labels459}/labels.txt"


def test_a_folder_without_labels_is_refused(voc):
    with pytest.raises(FileNotFoundError) as refused:
        pascal_context_examples(voc, voc)
    assert str(refused.value) == (f"{voc}: no label files in it; give 33_context_labels (*.png) or trainval (*.mat)")


def test_a_devkit_of_another_year_is_refused(voc, labels33):
    (voc / "VOCdevkit/VOC2010").rename(voc / "VOCdevkit/VOC2012")
    with pytest.raises(FileNotFoundError) as refused:
        pascal_context_examples(voc, labels33)
    assert str(refused.value) == (
        f"{voc}: no VOCdevkit/VOC2010/JPEGImages in it; give the folder that holds VOCdevkit, or its archive"
    )


def test_lists_that_share_images_are_refused(voc, labels33):
    (voc / "VOCdevkit/VOC2010/ImageSets/Main/val.txt").write_text("2008_3\n2008_2\n")
    with pytest.raises(ValueError, match=r"1 images are in both train\.txt and val\.txt \(first: 2008_2\); remove"):
        pascal_context_examples(voc, labels33)


def test_the_command_prepares_the_33_classes(voc, labels33, tmp_path, load_script, capsys, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    command = ["pascal_context", "--source", str(voc), "--labels", str(labels33), "--output", str(tmp_path / "out")]
    assert load_script("prepare_data").main(command) == 0
    assert "| 33 | ceiling | seen | 2 | 24 | 1 | 12 |" in capsys.readouterr().out
    mask = open_prepared(tmp_path / "out", split="test")[0]["mask"]
    assert mask.mode == "L" and np.asarray(mask)[0].tolist() == [0, 3, 33, 33, 33]
    assert isinstance(mask, Image.Image)
