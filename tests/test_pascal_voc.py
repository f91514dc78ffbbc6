"""Reading Pascal VOC as it is distributed."""

import sys
import tempfile
import zipfile

import numpy as np
import pytest
from miniature_archives import PERSON, write_devkit, write_sbd, write_tar
from miniature_voc import MiniatureVoc

from cagnet_hf.data.builders.pascal_voc import pascal_voc_examples
from cagnet_hf.data.samples import BrokenFileError, read_image


@pytest.fixture
def voc(tmp_path) -> MiniatureVoc:
    return MiniatureVoc(tmp_path / "source")


@pytest.mark.parametrize("level", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_the_source_may_be_given_at_any_level(voc, level):
    examples = pascal_voc_examples(voc.folder / level)
    assert [example.image_id for example in examples["train"]] == ["a", "b", "c"]
    assert [example.image_id for example in examples["test"]] == ["d"]


@pytest.mark.parametrize("part", ["SegmentationClassAug", "ImageSets/Segmentation/val.txt"])
def test_a_missing_part_of_the_source_is_named(voc, part):
    (voc.root / part).rename(voc.root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"{part} is missing: expected"):
        pascal_voc_examples(voc.folder)


def test_a_folder_without_voc_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no VOCdevkit/VOC2012/JPEGImages in it"):
        pascal_voc_examples(tmp_path)


def test_lists_with_paths_are_read(voc):
    voc.write_list("train_aug.txt", ["/JPEGImages/b.jpg /SegmentationClassAug/b.png"])
    assert [example.image_id for example in pascal_voc_examples(voc.folder)["train"]] == ["b"]


def test_test_images_in_the_training_list_are_refused(voc):
    voc.write_list("train_aug.txt", ["a", "d"])
    with pytest.raises(ValueError, match=r": 1 images are in both train_aug\.txt and val\.txt \(first: d\); remove"):
        pascal_voc_examples(voc.folder)


def test_the_real_lists_hold_1782_and_669_images(shared_dir):
    examples = pascal_voc_examples(shared_dir / "data/voc_subset")
    assert {split: len(some) for split, some in examples.items()} == {"train": 1782, "test": 669}


# VOC's own masks joined with SBD


@pytest.fixture
def voc_and_sbd(tmp_path):
    """(folder with VOCdevkit, folder with benchmark_RELEASE): SBD repeats `a` and holds `v` of VOC's val."""
    write_devkit(tmp_path / "voc", "VOC2012", sets="Segmentation", train=["b", "a"], val=["v"], more=["c", "d"])
    write_sbd(tmp_path / "sbd", train=["a", "d"], val=["v", "c"])
    return tmp_path / "voc", tmp_path / "sbd"


def masks_of(examples) -> dict[str, list]:
    """image id -> first row of its mask of stored ids."""
    return {
        example.image_id: np.asarray(read_image(example.mask))[0].tolist()
        for some in examples.values()
        for example in some
    }


BORDERED, FROM_SBD = PERSON[0].tolist(), [8] * 5


def test_train_aug_is_voc_and_sbd_without_val(voc_and_sbd):
    examples = pascal_voc_examples(*voc_and_sbd)
    assert {split: [e.image_id for e in some] for split, some in examples.items()} == {
        "train": ["b", "a", "c", "d"],
        "test": ["v"],
    }


def test_masks_of_voc_keep_their_borders_and_win_over_sbd(voc_and_sbd):
    masks = masks_of(pascal_voc_examples(*voc_and_sbd))
    assert masks == {"a": BORDERED, "b": BORDERED, "v": BORDERED, "c": FROM_SBD, "d": FROM_SBD}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_official_archives_are_read_where_they_lie(voc_and_sbd, tmp_path, mode):
    voc, sbd = voc_and_sbd
    examples = pascal_voc_examples(
        write_tar(voc, tmp_path / "VOCtrainval_11-May-2012.tar", mode, prefix="./"),
        write_tar(sbd, tmp_path / "benchmark.tgz", mode),
    )
    assert masks_of(examples) == masks_of(pascal_voc_examples(voc, sbd))
    for example in examples["train"]:
        official = voc / "VOCdevkit/VOC2012/JPEGImages" / f"{example.image_id}.jpg"
        assert example.image.read_bytes() == official.read_bytes()


def test_members_of_no_use_are_not_kept(voc_and_sbd, tmp_path, monkeypatch):
    voc, sbd = voc_and_sbd
    archive = write_tar(sbd, tmp_path / "benchmark.tgz", "w:gz")
    spools = []
    make = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: spools.append(make()) or spools[-1])
    pascal_voc_examples(voc, archive)
    kept = [
        path for path in sbd.rglob("*") if path.is_file() and "/img/" not in str(path) and "/inst/" not in str(path)
    ]
    assert [len(zipfile.ZipFile(spool).namelist()) for spool in spools] == [len(kept)]


def test_a_mat_file_that_is_none_is_a_broken_file(voc_and_sbd):
    voc, sbd = voc_and_sbd
    path = sbd / "benchmark_RELEASE/dataset/cls/c.mat"
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(BrokenFileError, match=rf"^{path}: not a whole \.mat file with a label map$"):
        masks_of(pascal_voc_examples(voc, sbd))


def test_without_scipy_the_error_says_what_to_install(voc_and_sbd, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ValueError, match=r"^\.mat files are read with scipy: pip install 'cagnet-hf\[data\]'$"):
        pascal_voc_examples(*voc_and_sbd)


def test_a_folder_without_sbd_is_refused(voc_and_sbd):
    voc, _ = voc_and_sbd
    message = "no benchmark_RELEASE/dataset/cls in it; give SBD's folder or archive"
    with pytest.raises(FileNotFoundError, match=f"^{voc}: {message}$"):
        pascal_voc_examples(voc, voc)


def test_the_command_joins_voc_and_sbd(voc_and_sbd, tmp_path, load_script, capsys):
    voc, sbd = voc_and_sbd
    command = ["pascal_voc", "--source", str(voc), "--sbd", str(sbd), "--output", str(tmp_path / "out")]
    assert load_script("prepare_data").main(command) == 0
    printed = capsys.readouterr().out
    assert "| 8 | cat | seen | 2 | 40 | 0 | 0 |" in printed
    assert (
        "Note: train has 4 images, the official one 10,582.\nNote: test has 1 images, the official one 1,449."
        in printed
    )
