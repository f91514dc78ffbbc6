"""`prepare_data.py check`: what it counts, what it warns of, what it shows."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from miniature_archives import write_jpeg, write_png
from PIL import Image

from cagnet_hf.data.benchmarks import Benchmark
from cagnet_hf.data.examples import Example
from cagnet_hf.data.prepared import write_prepared
from cagnet_hf.data.sources import open_prepared
from cagnet_hf.data.survey import format_survey, survey, telling_images, warnings

FARM = Benchmark("farm", ("nothing", "dog", "sheep", "cow"), seen_ids=(1, 2), unseen_ids=(3,), ignored_ids=(0,))
GOOD = {"train": [[1, 2, 3, 0, 255], [2, 2, 2, 2, 2]], "test": [[1, 1, 2, 3, 3]]}


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def prepare(tmp_path):
    """`prepare(rows)`: a prepared dataset whose masks repeat the given rows; images are named by split and number."""

    def make(rows: dict[str, list[list[int]]], twin: bool = False) -> Path:
        examples = {}
        for split, masks in rows.items():
            examples[split] = []
            for number, row in enumerate(masks):
                image, mask = (tmp_path / "source" / f"{split}{number}.{suffix}" for suffix in ("jpg", "png"))
                write_jpeg(image)
                write_png(mask, np.array([row] * 4, np.uint8))
                examples[split].append(Example(f"{split}{number}", image, mask))
        if twin:
            examples["test"][0].image.write_bytes(examples["train"][1].image.read_bytes())
        write_prepared(examples, tmp_path / "out", FARM)
        return tmp_path / "out"

    return make


def test_a_good_dataset_gives_no_warning(prepare):
    assert warnings(FARM, survey(prepare(GOOD), FARM)) == []


@pytest.mark.parametrize(
    ("rows", "warning"),
    [
        (GOOD | {"train": [[1, 1, 3, 3, 3]]}, "train has no pixel of the seen classes sheep"),
        (GOOD | {"test": [[3, 3, 3, 3, 0]]}, "test has no pixel of the seen classes dog, sheep"),
        (GOOD | {"test": [[1, 1, 2, 2, 2]]}, "test has no pixel of the unseen classes cow"),
        (
            {"train": [[1, 2, 0, 0, 0]], "test": [[1, 2, 0, 0, 0], [3, 0, 0, 0, 255]]},
            "seen and unseen classes never share an image: no context leads from one to the other",
        ),
        (
            GOOD | {"train": [[1, 2, 3, 0, 255], [3, 3, 0, 0, 255]]},
            "1 of 2 training images have no pixel of a seen class to learn from",
        ),
    ],
)
def test_what_would_spoil_training_is_warned_of(prepare, rows, warning):
    assert warnings(FARM, survey(prepare(rows), FARM)) == [warning]


def test_a_test_image_that_is_trained_on_is_found_by_its_bytes(prepare):
    found = warnings(FARM, survey(prepare(GOOD, twin=True), FARM))
    assert found == ["1 test images are training images, too (first: test0 is train1)"]


def test_classes_without_any_annotation_are_not_missed(prepare):
    known = Benchmark("farm", FARM.label_names, (1, 2), (3,), (0,), unannotated_ids=(1,))
    rows = GOOD | {"train": [[2, 2, 3, 0, 255]], "test": [[2, 2, 2, 3, 3]]}
    assert warnings(known, survey(prepare(rows), known)) == []


def test_shares_balance_and_sizes_are_told(prepare):
    text = format_survey(FARM, survey(prepare(GOOD), FARM))
    assert "| 3 | cow | unseen | 1 | 4 | 1 | 8 |" in text
    assert "train, pixels: seen 70.0%, unseen 10.0%, ignored classes 10.0%, unlabelled 10.0%" in text
    assert "train, balance: sheep has 6 times the pixels of dog" in text
    assert "train, width: 5 to 5, median 5\ntrain, height: 4 to 4, median 4" in text


def test_the_images_shown_hold_every_class_between_them(prepare):
    rows = {"train": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [2, 2, 2, 2, 2]], "test": [[1, 2, 1, 2, 0], [3, 3, 3, 3, 3]]}
    surveys = survey(prepare(rows), FARM)
    assert telling_images(surveys, 2) == [("test", 0), ("test", 1)]
    assert sorted(telling_images(surveys, 12)) == [("test", 0), ("test", 1), ("train", 0), ("train", 1), ("train", 2)]


def test_a_damaged_image_is_named(prepare):
    path = prepare(GOOD) / "data" / "train-00000-of-00001.parquet"
    rows = Dataset.from_parquet(str(path)).with_format("arrow")[:].to_pylist()
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:200]
    Dataset.from_list(rows, features=Dataset.from_parquet(str(path)).features).to_parquet(path)
    with pytest.raises(ValueError, match=r"^1 bad pairs .*: image of train train1: truncated or damaged \("):
        survey(path.parents[1], FARM)


# The command


def test_the_command_reports_and_writes_a_sheet_beside_the_data(prepare, load_script, capsys):
    folder = prepare(GOOD | {"test": [[1, 1, 2, 2, 2]]})
    assert load_script("prepare_data").main(["check", str(folder)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [
        "Warning: test has no pixel of the unseen classes cow",
        f"Wrote {folder / 'contact_sheet.png'}",
    ]
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.mode == "RGB" and sheet.width == 4 * 280 + 5 * 8 and sheet.height > 224 + 100
        colors = {color for _, color in sheet.getcolors(1 << 24)}
    assert len(colors) > 50
    assert len(open_prepared(folder, split="train")) == 2


def test_the_sheet_may_lie_elsewhere(prepare, tmp_path, load_script):
    assert load_script("prepare_data").main(["check", str(prepare(GOOD)), "--sheet", str(tmp_path / "sheet.png")]) == 0
    assert (tmp_path / "sheet.png").is_file() and not (tmp_path / "out" / "contact_sheet.png").exists()


def test_the_classes_may_be_those_of_a_benchmark(prepare, load_script, capsys):
    rows = {"train": [[1, 2, 3, 3, 3]], "test": [[0, 1, 2, 3, 3]]}
    command = ["check", str(prepare(rows)), "--benchmark", "pascal_voc", "--num_proc", "1"]
    assert load_script("prepare_data").main(command) == 0
    assert "Warning: train has no pixel of the seen classes boat, bottle" in capsys.readouterr().out
    assert load_script("prepare_data").main([*command[:3], "voc"]) == 2
    assert "unknown benchmark 'voc'; known: " in capsys.readouterr().err


def test_a_missing_folder_is_refused(tmp_path, load_script, capsys):
    assert load_script("prepare_data").main(["check", str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'absent'}: no such folder\n"


def test_a_folder_that_was_not_prepared_is_refused(tmp_path, load_script, capsys):
    assert load_script("prepare_data").main(["check", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}: no classes.yaml in it; `cagnet-hf prepare_data` makes folders that have one\n"
    )
