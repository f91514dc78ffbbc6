"""From Pascal VOC as it is distributed to a prepared dataset, and what is refused on the way."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from miniature_voc import MiniatureVoc
from PIL import Image

from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data.builders.pascal_voc import pascal_voc_examples
from cagnet_hf.data.examples import Example
from cagnet_hf.data.label_space import LabelSpace
from cagnet_hf.data.prepared import equal_faults, write_prepared
from cagnet_hf.data.report import format_report
from cagnet_hf.data.sources import open_prepared

VOC = load_benchmark("pascal_voc")


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def voc(tmp_path) -> MiniatureVoc:
    return MiniatureVoc(tmp_path / "source")


def prepare(voc: MiniatureVoc, output: Path, **options):
    return write_prepared(pascal_voc_examples(voc.folder), output, VOC, **options)


# The prepared folder


def test_load_dataset_opens_the_folder(voc, tmp_path):
    prepare(voc, tmp_path / "out")
    dataset = load_dataset(str(tmp_path / "out"))
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 3, "test": 1}
    assert dataset["train"].column_names == ["image", "mask", "image_id"]


def test_images_keep_their_bytes(voc, tmp_path):
    prepare(voc, tmp_path / "out")
    stored = Dataset.from_parquet(str(tmp_path / "out/data/test-00000-of-00001.parquet")).with_format("arrow")
    image = stored[:]["image"][0].as_py()
    assert image == {"bytes": voc.image("d").read_bytes(), "path": None}


def test_palette_masks_are_stored_as_their_indices(voc, tmp_path):
    stored_ids = np.array([[0, 1, 20, 255]] * 10, np.uint8).repeat(5, axis=1)
    voc.write_mask("d", stored_ids, palette=True)
    prepare(voc, tmp_path / "out")
    mask = open_prepared(tmp_path / "out", split="test")[0]["mask"]
    assert (mask.mode, mask.format) == ("L", "PNG")
    assert (np.asarray(mask) == stored_ids).all()


def test_names_lie_beside_the_data(voc, tmp_path):
    prepare(voc, tmp_path / "out")
    id2label = json.loads((tmp_path / "out/id2label.json").read_text())
    assert id2label == {str(i): name for i, name in enumerate(VOC.label_names)}


def test_large_splits_become_several_files(voc, tmp_path):
    prepare(voc, tmp_path / "out", max_file_bytes=1)
    names = sorted(path.name for path in (tmp_path / "out/data").glob("train-*"))
    assert names == [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    assert open_prepared(tmp_path / "out", split="train")["image_id"][:] == ["a", "b", "c"]


def test_the_order_of_the_list_survives_many_threads(tmp_path):
    image_ids = [f"image{i}" for i in range(40)]
    voc = MiniatureVoc(tmp_path / "source")
    for image_id in image_ids:
        voc.write_image(image_id, (20, 10))
        voc.write_mask(image_id, np.ones((10, 20), np.uint8))
    voc.write_list("train_aug.txt", image_ids)
    prepare(voc, tmp_path / "out", num_proc=3)
    assert open_prepared(tmp_path / "out", split="train")["image_id"][:] == image_ids


def test_the_report_counts_images_and_pixels_of_each_class(voc, tmp_path):
    reports = prepare(voc, tmp_path / "out")
    assert reports["train"].num_images == 3
    assert reports["train"].num_images_with[:5].tolist() == [0, 1, 1, 1, 0]
    assert reports["train"].num_pixels[:5].tolist() == [0, 200, 200, 200, 0]
    assert "| 1 | aeroplane | seen | 1 | 200 | 0 | 0 |" in format_report(VOC, reports)


# What is refused


def test_a_mask_of_another_size_is_refused(voc, tmp_path):
    voc.write_mask("b", np.ones((10, 19), np.uint8))
    with pytest.raises(
        ValueError, match=r"b\.png \(image .*b\.jpg\): the mask's size 19x10 differs from the 20x10 of its image"
    ):
        prepare(voc, tmp_path / "out")


def test_an_image_that_its_camera_turned_is_measured_upright(voc, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    voc.write_image("d", (20, 10), exif=exif)
    voc.write_mask("d", np.ones((20, 10), np.uint8))
    prepare(voc, tmp_path / "out")
    row = open_prepared(tmp_path / "out", split="test")[0]
    assert row["image"].size == row["mask"].size == (10, 20)


def test_a_label_outside_the_label_set_is_refused(voc, tmp_path):
    voc.write_mask("b", np.full((10, 20), 42, np.uint8))
    with pytest.raises(ValueError, match=r"b\.png: label 42 is not in the label set"):
        prepare(voc, tmp_path / "out")


def test_a_mask_of_unknown_colours_is_refused(voc, tmp_path):
    Image.new("RGB", (20, 10), (1, 2, 3)).save(voc.mask("b"))
    with pytest.raises(ValueError, match=r"b\.png: color \[1, 2, 3\] belongs to no class in the PASCAL palette"):
        prepare(voc, tmp_path / "out")


def test_a_truncated_image_is_refused(voc, tmp_path):
    voc.truncate("b")
    with pytest.raises(ValueError, match=r"pass skip_broken: .*b\.jpg: truncated or damaged"):
        prepare(voc, tmp_path / "out")


def test_equally_broken_files_are_counted_and_the_first_one_named(tmp_path):
    voc = MiniatureVoc(tmp_path / "source", train=[f"image{i}" for i in range(8)])
    for i in range(7):
        voc.image(f"image{i}").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^7 bad pairs.*: 7 files \(first: .*image0\.jpg\): not an image$"):
        prepare(voc, tmp_path / "out")


@pytest.mark.parametrize("number", [5, 599])
def test_a_fault_of_many_files_is_one_line(number):
    def fault(image: int) -> ValueError:
        with pytest.raises(ValueError) as refused:
            LabelSpace(class_ids=(1,), table="t.yaml").to_model_order(
                np.array([[1, 11, 12 if image == 3 else 1]], np.uint8), source=f"{image}.png"
            )
        return refused.value

    lines = equal_faults([fault(image) for image in range(number)])
    way_out = "add it under classes and `ignored` in t.yaml"
    other = f"3.png: label 11 is not in the label set (unknown ids: [11, 12]); {way_out}"
    if number == 5:
        assert len(lines) == 5 and lines[3] == other
    else:
        assert lines == [f"id 11 is in 599 masks (first: 0.png): {way_out}", other]


def test_colours_and_sizes_that_many_masks_share_are_one_line_each(tmp_path):
    voc = MiniatureVoc(tmp_path / "source", train=[f"image{i}" for i in range(12)])
    for i in range(6):
        voc.write_mask(f"image{i}", np.ones((10, 19), np.uint8))
        Image.new("RGB", (20, 10), (1, 2, 3)).save(voc.mask(f"image{i + 6}"))
    with pytest.raises(ValueError) as refused:
        prepare(voc, tmp_path / "out")
    assert str(refused.value) == (
        f"12 bad pairs of image and mask, repair them: 6 files (first: {voc.mask('image0')} (image "
        f"{voc.image('image0')})): the mask's size 19x10 differs from the 20x10 of its image; 6 files (first: "
        f"{voc.mask('image6')}): color [1, 2, 3] belongs to no class in the PASCAL palette; give each class its "
        "color in a class table (benchmark=FILE.yaml)"
    )


def test_broken_files_are_skipped_when_asked_to(voc, tmp_path):
    voc.truncate("a")
    voc.mask("b").unlink()
    reports = prepare(voc, tmp_path / "out", skip_broken=True)
    assert open_prepared(tmp_path / "out", split="train")["image_id"][:] == ["c"]
    assert "a.jpg: truncated or damaged" in reports["train"].skipped[0]
    assert "b.png: No such file" in reports["train"].skipped[1]


def test_wrong_labels_are_never_skipped(voc, tmp_path):
    voc.write_mask("b", np.full((10, 20), 42, np.uint8))
    with pytest.raises(ValueError, match="label 42"):
        prepare(voc, tmp_path / "out", skip_broken=True)


def test_an_empty_split_is_refused(voc, tmp_path):
    voc.write_list("val.txt", [])
    with pytest.raises(ValueError, match=r"val\.txt lists no images"):
        prepare(voc, tmp_path / "out")


def test_a_split_that_skipping_empties_is_refused(voc, tmp_path):
    voc.truncate("d")
    with pytest.raises(ValueError, match=r"split 'test' is empty: every file is broken \(first: .*d\.jpg"):
        prepare(voc, tmp_path / "out", skip_broken=True)


def test_an_image_id_that_occurs_twice_is_refused(voc, tmp_path):
    twice = [Example("a", voc.image("a"), voc.mask("a"))] * 2
    with pytest.raises(ValueError, match="image id 'a' occurs 2 times"):
        write_prepared({"train": twice}, tmp_path / "out", VOC)


# Whole or not at all


def test_a_refused_dataset_leaves_nothing_behind(voc, tmp_path):
    voc.truncate("b")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError):
        prepare(voc, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_an_existing_output_is_refused(voc, tmp_path):
    prepare(voc, tmp_path / "out")
    with pytest.raises(FileExistsError, match="out exists"):
        prepare(voc, tmp_path / "out")


def test_overwrite_replaces_a_prepared_dataset(voc, tmp_path):
    prepare(voc, tmp_path / "out")
    voc.write_list("train_aug.txt", ["b"])
    prepare(voc, tmp_path / "out", overwrite=True)
    assert open_prepared(tmp_path / "out", split="train")["image_id"][:] == ["b"]


def test_a_refused_replacement_leaves_the_old_dataset(voc, tmp_path):
    prepare(voc, tmp_path / "out")
    voc.truncate("b")
    with pytest.raises(ValueError):
        prepare(voc, tmp_path / "out", overwrite=True)
    assert len(open_prepared(tmp_path / "out", split="train")) == 3


def test_overwrite_never_replaces_a_folder_of_another_kind(voc):
    with pytest.raises(FileExistsError, match="no prepared dataset"):
        prepare(voc, voc.folder, overwrite=True)
    assert voc.image("a").is_file()


# Opening


@pytest.fixture
def prepared(voc, tmp_path) -> Path:
    prepare(voc, tmp_path / "out")
    return tmp_path / "out"


def test_rows_decode_to_images(prepared):
    row = open_prepared(prepared, split="test")[0]
    assert isinstance(row["image"], Image.Image) and isinstance(row["mask"], Image.Image)
    assert row["image_id"] == "d"


def test_a_dataset_that_was_prepared_anew_is_read_anew(voc, prepared):
    assert open_prepared(prepared, split="train")["image_id"][:] == ["a", "b", "c"]
    voc.write_list("train_aug.txt", ["b"])
    prepare(voc, prepared, overwrite=True)
    assert open_prepared(prepared, split="train")["image_id"][:] == ["b"]


def test_folders_of_one_name_are_two_datasets(voc, prepared, tmp_path):
    open_prepared(prepared, split="train")
    voc.write_list("train_aug.txt", ["b"])
    prepare(voc, tmp_path / "elsewhere" / "out")
    assert open_prepared(tmp_path / "elsewhere" / "out", split="train")["image_id"][:] == ["b"]
    assert open_prepared(prepared, split="train")["image_id"][:] == ["a", "b", "c"]


def test_a_missing_folder_is_refused(prepared):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_prepared(prepared / "nowhere", split="train")


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: not a dataset"):
        open_prepared(tmp_path / "empty", split="train")


def test_a_missing_split_is_refused_with_those_there_are(prepared):
    with pytest.raises(ValueError, match="no split 'val'; it has train, test"):
        open_prepared(prepared, split="val")


def test_a_missing_column_is_refused_with_those_there_are(prepared):
    with pytest.raises(ValueError, match="no column 'label'; it has image, mask, image_id"):
        open_prepared(prepared, split="test", mask_column="label")


def test_a_column_of_other_things_is_refused(prepared):
    with pytest.raises(ValueError, match=r"column 'image_id' holds .*, not images"):
        open_prepared(prepared, split="test", mask_column="image_id")


def test_an_empty_split_is_refused_on_opening(prepared):
    path = prepared / "data" / "test-00000-of-00001.parquet"
    rows = Dataset.from_parquet(str(path)).select([])
    rows.to_parquet(path)
    with pytest.raises(ValueError, match="split 'test' is empty"):
        open_prepared(prepared, split="test")


def test_a_damaged_dataset_is_refused(prepared):
    path = prepared / "data" / "test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="out: its files cannot be read"):
        open_prepared(prepared, split="test")


def test_other_column_names_are_mapped(prepared, tmp_path):
    names = {"image": "photo", "mask": "annotation"}
    rows = open_prepared(prepared, split="test").rename_columns(names).remove_columns("image_id")
    (tmp_path / "theirs").mkdir()
    rows.to_parquet(tmp_path / "theirs" / "test-00000-of-00001.parquet")
    dataset = open_prepared(tmp_path / "theirs", split="test", image_column="photo", mask_column="annotation")
    assert dataset.column_names == ["image", "mask", "image_id"]
    assert dataset["image_id"][:] == ["test-000000"]


# The command


def test_the_command_prepares_and_reports(voc, tmp_path, load_script, capsys):
    command = ["pascal_voc", "--source", str(voc.folder), "--output", str(tmp_path / "out")]
    assert load_script("prepare_data").main(command) == 0
    assert "| potted_plant | unseen |" in capsys.readouterr().out
    assert len(open_prepared(tmp_path / "out", split="train")) == 3


def test_the_command_tells_a_mistake_in_one_line(tmp_path, load_script, capsys):
    command = ["pascal_voc", "--source", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")]
    assert load_script("prepare_data").main(command) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'nowhere'}: no such folder or archive\n"


# The real data


def test_real_masks_keep_their_ids_and_images_their_bytes(shared_dir, tmp_path):
    examples = {split: some[:20] for split, some in pascal_voc_examples(shared_dir / "data/voc_subset").items()}
    write_prepared(examples, tmp_path / "out", VOC)
    for split, sources in examples.items():
        rows = open_prepared(tmp_path / "out", split=split)
        for row, source in zip(rows, sources, strict=True):
            assert row["image_id"] == source.image_id
            assert (np.asarray(row["mask"]) == np.asarray(Image.open(source.mask))).all()
            assert (np.asarray(row["image"]) == np.asarray(Image.open(source.image))).all()
