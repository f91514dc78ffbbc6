"""Masks that would teach nothing, or something wrong, are named before hours are spent on them."""

import io
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from test_modeling import TINY, build
from trained import arguments

from cagnet_hf import CaGNetConfig, CaGNetImageProcessor
from cagnet_hf.apps.prediction import segment
from cagnet_hf.data.label_space import LabelSpace
from cagnet_hf.data.rows import StreamedRows, undecoded
from cagnet_hf.data.samples import decode_row
from cagnet_hf.data.sources import open_dataset
from cagnet_hf.data.stream import LabelledImages, check_training_labels

TABLE = """
classes:
  - {id: 0, name: background}
  - {id: 1, name: cat}
  - {id: 2, name: dog}
  - {id: 3, name: cow}
seen: [cat, dog]
unseen: [cow]
ignored: [background]
"""


def encoded(image, kind="PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def own_folder(folder, train: list[list[int]], test: list[list[int]]):
    """Photographs whose masks hold these ids."""
    for split, masks in (("train", train), ("test", test)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for number, ids in enumerate(masks):
            label_map = np.resize(np.array(ids, np.uint8), (8, 8))
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / split / "images" / f"{split}{number}.png")
            Image.fromarray(label_map).save(folder / split / "masks" / f"{split}{number}.png")
    (folder / "classes.yaml").write_text(TABLE)
    return folder


def prepare(load_script, source, output):
    return load_script("prepare_data").main(["folder", "--source", str(source), "--output", str(output)])


def test_binary_masks_of_0_and_255_are_named_with_the_way_out(load_script, tmp_path, capsys):
    source = own_folder(tmp_path / "mine", [[0, 255]] * 2, [[0, 255]])
    assert prepare(load_script, source, tmp_path / "out") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "no training mask has a pixel of a seen class, they hold 0, 255; 255 means unlabelled" in message
    assert "label_map={255: NAME}" in message
    assert not (tmp_path / "out").exists()


def test_a_training_set_of_an_unseen_class_alone_is_refused(load_script, tmp_path, capsys):
    source = own_folder(tmp_path / "mine", [[0, 3]] * 2, [[1, 2, 3]])
    assert prepare(load_script, source, tmp_path / "out") == 2
    assert "no training mask has a pixel of a seen class, they hold 0, 3" in capsys.readouterr().err


def test_a_class_that_only_the_test_split_shows_is_a_warning(load_script, tmp_path, caplog):
    source = own_folder(tmp_path / "mine", [[0, 1]] * 2, [[1, 2, 3]])
    with caplog.at_level(logging.WARNING):
        assert prepare(load_script, source, tmp_path / "out") == 0
    assert "Seen classes that only the test split shows, nothing can be learnt of them: ['dog']" in caplog.text


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_training_without_a_labelled_pixel_is_refused(load_script, tiny_dataset, tmp_path, capsys, streaming):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        rows = open_dataset(str(tiny_dataset), split, labels=LabelSpace()).dataset
        blank = encoded(Image.fromarray(np.full((64, 64), 255, np.uint8)))
        rows = rows.map(lambda row: {"mask": {"bytes": blank, "path": None}})  # noqa: B023
        rows.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    assert load_script("train").main(arguments(tmp_path, tmp_path / "run", f"streaming={streaming}")) == 2
    assert "no training mask has a pixel of a seen class, they hold 255; 255 means" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model").exists()


def test_masks_of_a_stream_are_read_until_one_has_a_label(tmp_path):
    masks = [{"bytes": encoded(Image.new("L", (8, 8), value)), "path": None} for value in (255, 255, 1)]
    rows = {"image": [{"bytes": b"never read", "path": None}] * 4, "mask": [*masks, {"bytes": b"", "path": None}]}
    features = Features({"image": ImageFeature(), "mask": ImageFeature(), "image_id": Value("string")})
    rows = Dataset.from_dict(rows | {"image_id": list("abcd")}, features=features).to_iterable_dataset()
    stream = StreamedRows(undecoded(rows, "image", "mask"), LabelSpace(), shuffle_buffer=2)
    labels = LabelSpace((1, 2), 2)
    check_training_labels(LabelledImages(stream, labels, hide_unseen=True), stream)
    with pytest.raises(ValueError, match="mask of d"):  # in search of class 2, the broken mask is read
        check_training_labels(LabelledImages(stream, LabelSpace((2, 1), 1), hide_unseen=True), stream)


def test_a_jpeg_mask_is_refused_wherever_it_comes_from():
    row = {
        "image": {"bytes": encoded(Image.new("RGB", (8, 8))), "path": None},
        "mask": {"bytes": encoded(Image.new("L", (8, 8)), "JPEG"), "path": None},
        "image_id": "one",
    }
    with pytest.raises(ValueError, match="mask of one: a JPEG does not keep the ids of a mask; save it as PNG"):
        decode_row(row, LabelSpace())


def test_broken_rows_of_a_stream_are_named_by_their_number(tmp_path):
    good, broken = encoded(Image.new("RGB", (8, 8))), b"no image"
    images = [{"bytes": data, "path": None} for data in (good, good, broken)]
    masks = [{"bytes": encoded(Image.new("L", (8, 8))), "path": None}] * 3
    features = Features({"image": ImageFeature(), "mask": ImageFeature()})
    rows = Dataset.from_dict({"image": images, "mask": masks}, features=features)
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    streamed = open_dataset(str(tmp_path), "train", labels=LabelSpace(), streaming=True)
    with pytest.raises(ValueError, match="image of row 2"):
        list(streamed)


def test_more_classes_than_a_byte_holds():
    names = dict(enumerate(f"class {i}" for i in range(300)))
    model = build(id2label=names, unseen_ids=(), ignore_index=-100)
    with torch.no_grad():
        model.classifier.class_head.bias[299] = 1000
    (prediction,) = segment(model, CaGNetImageProcessor(size=16), [Image.new("RGB", (8, 8))])
    assert (prediction.label_map == 299).all()
    assert prediction.classes[0].name == "class 299"
    with pytest.raises(ValueError, match="label maps have 1 to 255 classes"):
        prediction.overlay()
    with pytest.raises(ValueError, match="300 classes with ids up to 299, but stored masks are bytes"):
        LabelSpace.of(model.config)
    assert LabelSpace.of(CaGNetConfig(**TINY)).class_ids == (0, 1, 2, 3, 4)


def test_a_launcher_whose_processes_would_train_alone_is_refused(
    load_script, tiny_dataset, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert load_script("train").main(arguments(tiny_dataset, tmp_path / "run")) == 2
    message = capsys.readouterr().err
    assert "the launcher started 2 processes, but each of them trains alone" in message
    assert "ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2" in message
