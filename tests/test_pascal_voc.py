"""Reading Pascal VOC as it is distributed."""

import pytest
from miniature_voc import MiniatureVoc

from cagnet_hf.data.pascal_voc import pascal_voc_examples


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
    with pytest.raises(ValueError, match=r"also in train_aug\.txt \(first: d\)"):
        pascal_voc_examples(voc.folder)


def test_the_real_lists_hold_1782_and_669_images(shared_dir):
    examples = pascal_voc_examples(shared_dir / "data/voc_subset")
    assert {split: len(some) for split, some in examples.items()} == {"train": 1782, "test": 669}
