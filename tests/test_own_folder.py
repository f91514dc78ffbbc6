"""A user's own photographs and masks: read, prepared, and trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
from miniature_archives import pascal_palette, write_jpeg, write_png, write_zip
from PIL import Image
from trained import arguments

from cagnet_hf.data import label_space
from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data.builders.own_folder import folder_examples
from cagnet_hf.data.samples import read_image
from cagnet_hf.data.sources import open_prepared

CLASSES = """\
classes:
- {id: 0, name: nothing}
- {id: 1, name: sheep}
- {id: 4, name: cow}
seen: [sheep]
unseen: [cow]
ignored: [nothing]
"""
COLORS = {0: [9, 9, 9], 1: [250, 0, 0], 4: [0, 0, 250]}
COLORED = CLASSES
for stored_id, color in COLORS.items():
    COLORED = COLORED.replace(f"id: {stored_id},", f"color: {color}, id: {stored_id},")
IDS = np.array([[0, 1, 1, 4, 255]] * 4, np.uint8)
STEMS = [f"img_{number}" for number in range(10)]


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_pairs(folder: Path, stems=STEMS) -> None:
    for stem in stems:
        write_jpeg(folder / "images" / f"{stem}.jpg")
        write_png(folder / "masks" / f"{stem}.png", IDS)


@pytest.fixture
def farm(tmp_path):
    write_pairs(tmp_path / "farm")
    (tmp_path / "farm" / "classes.yaml").write_text(CLASSES)
    return tmp_path / "farm"


def ids_of(examples) -> dict[str, list[str]]:
    return {split: [example.image_id for example in some] for split, some in examples.items()}


def first_mask(folder: Path) -> np.ndarray:
    examples, benchmark = folder_examples(folder)
    (mask,) = (example.mask for some in examples.values() for example in some if example.image_id == "img_0")
    return benchmark.label_space.read(read_image(mask), str(mask))


# Which images are tested on


def test_a_share_is_held_out_that_depends_on_names_only(farm):
    examples, benchmark = folder_examples(farm)
    assert sorted(ids_of(examples)["train"] + ids_of(examples)["test"]) == STEMS
    assert len(examples["test"]) == 2 and len(folder_examples(farm, 0.5)[0]["test"]) == 5
    assert ids_of(folder_examples(farm)[0]) == ids_of(examples)
    assert benchmark.name == "farm"


def test_the_test_images_may_be_listed(farm):
    (farm / "test.txt").write_text("img_3.jpg\nimg_7\n")
    assert ids_of(folder_examples(farm)[0])["test"] == ["img_3", "img_7"]


def test_a_listed_name_without_an_image_is_refused(farm):
    (farm / "test.txt").write_text("img_3\nimg_30\n")
    with pytest.raises(ValueError) as refused:
        folder_examples(farm)
    assert str(refused.value) == f"{farm}/test.txt: no image is called 'img_30'"


def test_the_splits_may_be_folders(farm):
    write_pairs(farm / "train", ["a", "b"])
    write_pairs(farm / "test", ["c"])
    assert ids_of(folder_examples(farm)[0]) == {"train": ["a", "b"], "test": ["c"]}


def test_pairs_may_be_listed_with_names_of_their_own(farm):
    (farm / "masks" / "img_2.png").rename(farm / "other.png")
    rows = [("images/img_1.jpg", "masks/img_1.png"), ("images/img_2.jpg", "other.png")]
    lines = [json.dumps({"file_name": image, "mask_file_name": mask}) for image, mask in rows]
    (farm / "metadata.jsonl").write_text("\n".join(lines))
    examples, _ = folder_examples(farm, 0.5)
    assert sorted(ids_of(examples)["train"] + ids_of(examples)["test"]) == ["img_1", "img_2"]
    for example in examples["train"] + examples["test"]:
        assert (np.asarray(read_image(example.mask)) == IDS).all()
        assert example.image.read_bytes() == (farm / "images" / f"{example.image_id}.jpg").read_bytes()


@pytest.mark.parametrize("line", ["images/img_1.jpg", '{"file_name": "images/img_1.jpg"}', "[1]"])
def test_a_line_that_names_no_pair_is_refused(farm, line):
    (farm / "metadata.jsonl").write_text('{"file_name": "a.jpg", "mask_file_name": "a.png"}\n' + line)
    with pytest.raises(ValueError) as refused:
        folder_examples(farm)
    assert str(refused.value) == f"{farm}/metadata.jsonl, line 2: no object with file_name and mask_file_name"


def test_a_zip_is_read_where_it_lies(farm, tmp_path):
    (tmp_path / "archive").mkdir()
    examples, benchmark = folder_examples(write_zip(farm, tmp_path / "archive" / "herd.zip"))
    assert ids_of(examples) == ids_of(folder_examples(farm)[0])
    assert benchmark.name == "herd"


# Masks


def test_masks_of_ids_are_taken_as_they_are(farm):
    assert (first_mask(farm) == IDS).all()


def test_palette_masks_are_taken_by_index(farm):
    write_png(farm / "masks" / "img_0.png", IDS, palette=True)
    assert (first_mask(farm) == IDS).all()


def test_the_palette_is_that_of_pascal():
    assert (label_space.pascal_palette() == pascal_palette()).all()
    known = {0: [0, 0, 0], 1: [128, 0, 0], 15: [192, 128, 128], 20: [0, 64, 128], 255: [224, 224, 192]}
    assert {i: label_space.pascal_palette()[i].tolist() for i in known} == known


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_without_colors_a_colour_mask_is_of_the_pascal_palette(farm, mode):
    Image.fromarray(pascal_palette()[IDS]).convert(mode).save(farm / "masks" / "img_0.png")
    assert (first_mask(farm) == IDS).all()


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_colour_masks_are_decoded_by_the_colors_of_the_table(farm, mode):
    """A palette's order is any: the program that wrote it chose it."""
    (farm / "classes.yaml").write_text(COLORED)
    table = pascal_palette()
    for stored_id, color in COLORS.items():
        table[stored_id] = color
    mask = Image.fromarray(table[IDS])
    (mask if mode == "RGB" else mask.quantize(8)).save(farm / "masks" / "img_0.png")
    assert (first_mask(farm) == IDS).all()


def test_masks_of_ids_stay_so_beside_colors(farm):
    (farm / "classes.yaml").write_text(COLORED)
    assert (first_mask(farm) == IDS).all()


@pytest.mark.parametrize(("text", "whose"), [(CLASSES, " in the PASCAL palette"), (COLORED, "")])
def test_an_unknown_colour_is_refused(farm, text, whose):
    (farm / "classes.yaml").write_text(text)
    Image.new("RGB", (5, 4), (1, 2, 3)).save(farm / "masks" / "img_0.png")
    with pytest.raises(ValueError) as refused:
        first_mask(farm)
    assert str(refused.value) == (
        f"{farm}/masks/img_0.png: color [1, 2, 3] belongs to no class{whose}; "
        f"give each class its color in {farm}/classes.yaml"
    )


def test_one_color_of_two_classes_is_refused(farm):
    (farm / "classes.yaml").write_text(COLORED.replace("[0, 0, 250]", "[250, 0, 0]"))
    with pytest.raises(ValueError) as refused:
        folder_examples(farm)
    assert str(refused.value) == f"{farm}/classes.yaml: color [250, 0, 0] of class 'sheep' is that of another, too"


# What is refused


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("classes.yaml", "the class table: classes (id, name), seen, unseen"),
        ("images", "the folder of photographs"),
        ("masks", "the folder of masks, named as their images"),
    ],
)
def test_a_missing_part_is_named(farm, part, what):
    (farm / part).rename(farm / "elsewhere")
    with pytest.raises(FileNotFoundError) as refused:
        folder_examples(farm)
    assert str(refused.value) == f"{farm}/{part} is missing: expected {what}"


def test_jpeg_masks_are_refused(farm):
    (farm / "masks" / "img_3.png").unlink()
    write_jpeg(farm / "masks" / "img_3.jpg")
    with pytest.raises(ValueError) as refused:
        folder_examples(farm)
    assert str(refused.value) == f"{farm}/masks/img_3.jpg: a JPEG does not keep the ids of a mask; save it as PNG"


def test_two_images_of_one_name_are_refused(farm):
    Image.new("RGB", (5, 4)).save(farm / "images" / "img_3.png")
    with pytest.raises(ValueError) as refused:
        folder_examples(farm)
    assert str(refused.value) == (f"{farm}/images/img_3.png: img_3.jpg has the same name but for the suffix; keep one")


# The command


def command(source: Path, *options: str) -> list[str]:
    return ["folder", "--source", str(source), "--output", str(source.parent / "out"), *options]


def test_what_stands_alone_is_refused_or_skipped(farm, load_script, capsys):
    (farm / "masks" / "img_3.png").unlink()
    (farm / "images" / "img_4.jpg").unlink()
    (farm / "images" / "._img_5.jpg").write_bytes(b"what macOS leaves behind")
    assert load_script("prepare_data").main(command(farm)) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: 2 bad pairs of image and mask, repair them or pass skip_broken: "
        f"{farm}/masks/img_3.png: No such file or directory; {farm}/images/img_4.jpg: No such file or directory"
    )
    assert load_script("prepare_data").main(command(farm, "--skip_broken")) == 0
    printed = capsys.readouterr().out
    assert "Skipped in train: 2\n" in printed and f"- {farm}/masks/img_3.png: No such file or directory" in printed


@pytest.mark.parametrize("share", ["0", "1", "nan"])
def test_a_share_that_is_none_is_refused(farm, load_script, capsys, share):
    assert load_script("prepare_data").main(command(farm, "--test_share", share)) == 2
    assert capsys.readouterr().err == f"error: --test_share {float(share)}: choose a share between 0 and 1\n"
    assert not (farm.parent / "out").exists()


def test_the_prepared_dataset_is_a_benchmark_of_its_own(farm, tmp_path, load_script):
    assert load_script("prepare_data").main(command(farm)) == 0
    benchmark = load_benchmark(tmp_path / "out")
    assert benchmark == folder_examples(farm)[1]
    assert json.loads((tmp_path / "out" / "id2label.json").read_text()) == {"0": "nothing", "1": "sheep", "4": "cow"}
    mask = open_prepared(tmp_path / "out", split="train")[0]["mask"]
    assert (mask.mode, np.asarray(mask).tolist()) == ("L", IDS.tolist())


def test_a_recipe_trains_on_it(farm, tmp_path, load_script, one_thread):
    assert load_script("prepare_data").main(command(farm)) == 0
    (tmp_path / "vectors.json").write_text(json.dumps({"sheep": [1.0, 0.2], "cow": [0.9, 0.5]}))
    keys = [
        f"benchmark={tmp_path / 'out'}",
        f"class_embeddings={tmp_path / 'vectors.json'}",
        "model.feature_size=2",
        "stages.pretrain.iterations=2",
    ]
    arguments_of_run = arguments(tmp_path / "out", tmp_path / "run", *keys, recipe="scenes/spnet")
    arguments_of_run.remove(f"dataset={tmp_path / 'out'}")  # a benchmark that is a dataset needs no other
    assert load_script("train").main(arguments_of_run) == 0
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config["id2label"] == {"0": "sheep", "1": "cow"}
    assert config["dataset_ids"] == [1, 4] and config["ignored_dataset_ids"] == [0]
    assert json.loads((tmp_path / "run/metrics.json").read_text())["num_images"] == 2


def test_missing_vectors_are_named_all(farm, tmp_path, load_script, capsys):
    (farm / "classes.yaml").write_text(CLASSES.replace("sheep", "qqq").replace("cow", "zzz"))
    assert load_script("prepare_data").main(command(farm)) == 0
    keys = [f"benchmark={tmp_path / 'out'}", "class_embeddings=bundled"]
    assert load_script("train").main(arguments(tmp_path / "out", tmp_path / "run", *keys, recipe="scenes/spnet")) == 2
    assert "no bundled vector of 'qqq', 'zzz'; pip install 'cagnet-hf[names]'" in capsys.readouterr().err
