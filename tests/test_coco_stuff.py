"""Reading COCO-Stuff as it is distributed."""

import zipfile

import numpy as np
import pytest
from miniature_archives import write_jpeg, write_png, write_zip

from cagnet_hf.data.builders.coco_stuff import coco_stuff_examples
from cagnet_hf.data.sources import open_prepared

MAPS = "stuffthingmaps_trainval2017"


@pytest.fixture
def coco(tmp_path):
    """The unpacked folders: two training images, one test image with every id that is annotated or not, and 255."""
    folder = tmp_path / "coco"
    for split, stems in (("train2017", ["000000000009", "000000000025"]), ("val2017", ["000000000139"])):
        for number, stem in enumerate(stems):
            size = (183, 1) if split == "val2017" else (5, 4)
            ids = np.arange(183)[None] if split == "val2017" else np.full((4, 5), 20 + number)
            ids = np.where(ids == 182, 255, ids).astype(np.uint8)
            write_jpeg(folder / split / f"{stem}.jpg", size)
            write_png(folder / MAPS / split / f"{stem}.png", ids)
    return folder


def zipped(coco, tmp_path):
    """The same as the official archives, of which only that of the maps has no folder of its own name in it."""
    folder = tmp_path / "zipped"
    folder.mkdir()
    for split in ("train2017", "val2017"):
        write_zip(coco / split, folder / f"{split}.zip")
    (coco / MAPS).rename(coco / "maps")
    with zipfile.ZipFile(folder / f"{MAPS}.zip", "w") as archive:
        for path in sorted((coco / "maps").rglob("*.png")):
            archive.write(path, path.relative_to(coco / "maps"))
    (coco / "maps").rename(coco / MAPS)
    return folder


def contents(examples) -> dict:
    return {
        split: [(e.image_id, e.image.read_bytes(), e.mask.read_bytes()) for e in some]
        for split, some in examples.items()
    }


def test_images_and_maps_are_paired_by_name(coco):
    examples = coco_stuff_examples(coco)
    assert {split: [e.image_id for e in some] for split, some in examples.items()} == {
        "train": ["000000000009", "000000000025"],
        "test": ["000000000139"],
    }


def test_zips_are_read_where_they_lie(coco, tmp_path):
    folder = zipped(coco, tmp_path)
    before = sorted(folder.iterdir())
    assert contents(coco_stuff_examples(folder)) == contents(coco_stuff_examples(coco))
    assert sorted(folder.iterdir()) == before


def test_the_command_prepares_zips(coco, tmp_path, load_script, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    command = ["coco_stuff", "--source", str(zipped(coco, tmp_path)), "--output", str(tmp_path / "out")]
    assert load_script("prepare_data").main([*command, "--num_proc", "2"]) == 0
    row = open_prepared(tmp_path / "out", split="test")[0]
    assert np.asarray(row["mask"])[0].tolist() == [*range(182), 255]


def test_the_command_lists_every_broken_file(coco, tmp_path, load_script, capsys):
    for path in (coco / "train2017").iterdir():
        path.unlink()
    for number in range(4):
        write_jpeg(coco / "train2017" / f"{number}.jpg")
    code = load_script("prepare_data").main(["coco_stuff", "--source", str(coco), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr()
    maps = [f"{coco}/{MAPS}/train2017/{number}.png: No such file or directory" for number in range(4)]
    images = [f"{coco}/train2017/0000000000{n}.jpg: No such file or directory" for n in ("09", "25")]
    every = sorted([*maps, *images], key=lambda line: line.rpartition("/")[2])
    assert code == 2
    assert printed.out.splitlines() == every
    assert printed.err.splitlines()[-1] == (
        f"error: 6 bad pairs of image and mask, repair them or pass skip_broken: 6 files (first: "
        f"{every[0].replace(': ', '): ', 1)}"
    )


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        ("val2017", "neither val2017 nor val2017.zip in it"),
        (MAPS, f"neither {MAPS} nor {MAPS}.zip in it"),
    ],
)
def test_a_missing_part_is_named(coco, gone, reason):
    (coco / gone).rename(coco / "elsewhere")
    with pytest.raises(FileNotFoundError) as refused:
        coco_stuff_examples(coco)
    assert str(refused.value) == f"{coco}: {reason}"


def test_maps_of_one_split_only_are_refused(coco):
    (coco / MAPS / "val2017").rename(coco / "elsewhere")
    with pytest.raises(FileNotFoundError) as refused:
        coco_stuff_examples(coco)
    assert str(refused.value) == f"{coco}/{MAPS}: no val2017 in it; get the official {MAPS}.zip"


def test_an_image_in_both_splits_is_refused(coco):
    write_jpeg(coco / "val2017" / "000000000009.jpg")
    with pytest.raises(ValueError) as refused:
        coco_stuff_examples(coco)
    assert (
        str(refused.value)
        == f"{coco}: 1 images are in both train2017 and val2017 (first: 000000000009); remove them from one"
    )


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no such folder; give the one that holds train2017 or train2017\.zip"
    ):
        coco_stuff_examples(tmp_path / "absent")
