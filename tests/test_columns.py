"""Datasets of other people, read by naming their columns: whole or streamed, with masks of ids or of colours."""

import io
import json
import re
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from miniature_archives import pascal_palette
from PIL import Image as PilImage
from trained import SCHEDULE, arguments

from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data.label_space import LabelSpace
from cagnet_hf.data.samples import decode_row
from cagnet_hf.data.sources import open_dataset, open_prepared
from cagnet_hf.data.stream import EndlessBatches, LabelledImages, StreamedBatches, TrainingBatches, TrainingExamples
from cagnet_hf.data.transforms import TrainingTransform
from cagnet_hf.model.image_processing_cagnet import CaGNetImageProcessor
from cagnet_hf.training.record import dataset_fingerprint

SCENES = load_benchmark("scenes")
COLUMNS = {"image_column": "photo", "mask_column": "annotation"}
# What `scenes` calls 0 to 16, their dataset calls 100 to 116, and 7 is a class of theirs that nobody asked for.
THEIR_IDS = {100 + i: i for i in range(17)} | {7: None}
STREAMED = {"streaming": True, "shuffle_buffer": 5}


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def colours(mask: PilImage.Image) -> PilImage.Image:
    return PilImage.fromarray(pascal_palette()[np.asarray(mask)])


def palette(mask: PilImage.Image) -> PilImage.Image:
    mask = mask.copy()
    mask.putpalette(pascal_palette().tobytes())
    return mask


def theirs(mask: PilImage.Image) -> PilImage.Image:
    ids = np.asarray(mask).astype(np.int32) + 100
    ids[:2] = 7
    return PilImage.fromarray(ids)  # mode I, as of 16-bit files


KINDS = {"grey": lambda mask: mask, "palette": palette, "RGB": colours, "ids of their own": theirs}


def png(image: PilImage.Image) -> dict:
    buffer = io.BytesIO()
    (image.convert("I;16") if image.mode == "I" else image).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def write(tmp_path, tiny_dataset):
    """`write(kind)`: scenes as someone else would upload them, twelve images to train on in three files."""

    def make(kind: str = "RGB", name: str = "theirs") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        features = Features({"photo": Image(), "annotation": Image(), "height": Value("int64")})
        for split, files in (("train", 3), ("test", 1)):
            rows = [
                {"photo": png(row["image"]), "annotation": png(KINDS[kind](row["mask"])), "height": 96}
                for row in open_prepared(tiny_dataset, split=split)
            ]
            for number in range(files):
                shard = Dataset.from_list(rows[number::files], features=features)
                shard.to_parquet(folder / f"{split}-{number:05d}-of-{files:05d}.parquet")
        return folder

    return make


def with_label_map(label_map: dict) -> LabelSpace:
    return replace(SCENES.label_space, label_map=label_map)


def labels_of(kind: str) -> LabelSpace:
    return with_label_map(THEIR_IDS if kind == "ids of their own" else {})


def examples_of(dataset, seed: int = 0, **options) -> TrainingExamples:
    processor = CaGNetImageProcessor(size={"height": 96, "width": 96})
    transform = TrainingTransform(processor, 64)
    return TrainingExamples(LabelledImages(dataset, SCENES.label_space, hide_unseen=True), transform, seed)


# What the masks show


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_mask_is_read_as_prepared_ones_are(write, tiny_dataset, kind, streaming):
    rows = open_dataset(str(write(kind)), "test", **COLUMNS, labels=labels_of(kind), streaming=streaming)
    expected = open_dataset(str(tiny_dataset), "test")
    for row, prepared in zip(rows, expected, strict=True):
        ids = prepared.labels.clone()
        if kind == "ids of their own":
            ids[:2] = 255
        assert torch.equal(row.labels, ids)
        assert torch.equal(row.image, prepared.image)


def test_colors_of_the_class_table_are_decoded(write, tmp_path):
    lines = [f"- {{id: {i}, name: c{i}, color: {pascal_palette()[i + 1].tolist()}}}" for i in range(17)]
    (tmp_path / "shifted.yaml").write_text(
        "\n".join(["classes:", *lines, f"seen: {list(range(16))}", "unseen: [16]", ""])
    )
    benchmark = load_benchmark(tmp_path / "shifted.yaml")
    table = pascal_palette()[1:18]
    ids = np.arange(17, dtype=np.uint8)[None]
    assert (benchmark.label_space.read(PilImage.fromarray(table[ids]), "m") == ids).all()
    with pytest.raises(ValueError, match=r"^label_map: the classes of .* have colors, which say it already$"):
        replace(benchmark.label_space, label_map={0: 1})


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        ({100: "red stripped disc"}, "100 means 'red stripped disc', which is no class of scenes; did you mean"),
        ({100: 99}, "100 means 99, which is no class of scenes"),
        ({1000: 1}, "1000 is no id from 0 to 255"),
    ],
)
def test_a_label_map_that_names_no_class_is_refused(label_map, message):
    with pytest.raises(ValueError, match=f"^label_map: {message}"):
        with_label_map(label_map)


def test_classes_may_be_named_in_a_label_map():
    name = SCENES.label_names[3]
    mask = PilImage.fromarray(np.array([[9, 8, 255]], np.uint8))
    assert with_label_map({9: name, 8: None}).read(mask, "m").tolist() == [[3, 255, 255]]


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
def test_images_of_sixteen_bits_are_trained_on_as_they_are_predicted(tmp_path, streaming):
    folder = tmp_path / "deep"
    folder.mkdir()
    values = np.linspace(0, 65535, 20).astype(np.uint16).reshape(4, 5)
    row = {"image": png(PilImage.fromarray(values)), "mask": png(GREY), "image_id": "a"}
    features = Features({"image": Image(), "mask": Image(), "image_id": Value("string")})
    Dataset.from_list([row], features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    rows = open_dataset(str(folder), "train", streaming=streaming)
    row = next(iter(rows.shuffled(0))) if streaming else 0
    image, _ = LabelledImages(rows, SCENES.label_space, hide_unseen=True)[row]
    plain = CaGNetImageProcessor(do_resize=False, do_rescale=False, do_normalize=False, do_flip_channel_order=False)
    expected = plain(PilImage.fromarray(values), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(image.float(), expected)


# What is refused when a row is read, in one line that names it


@pytest.fixture
def read_row():
    """`read_row(image, mask)`: a row of these bytes, whole and streamed; both give the same error."""

    def read(tmp_path: Path, image: dict, mask: dict, labels=None, **options) -> str:
        folder = tmp_path / "one"
        folder.mkdir()
        features = Features({"image": Image(), "mask": Image(), "image_id": Value("string")})
        row = {"image": image, "mask": mask, "image_id": "a"}
        Dataset.from_list([row], features=features).to_parquet(folder / "train-00000-of-00001.parquet")
        messages = set()
        for streaming in (False, True):
            rows = open_dataset(str(folder), "train", labels=labels, streaming=streaming)
            with pytest.raises(ValueError) as refused:
                next(iter(rows))
            messages.add(str(refused.value))
        assert len(messages) == 1, messages
        (message,) = messages
        return message

    return read


GREY = PilImage.fromarray(np.ones((4, 5), np.uint8))
PHOTO = PilImage.new("RGB", (5, 4))


def test_a_mask_of_another_size_is_refused(read_row, tmp_path):
    message = read_row(tmp_path, png(PHOTO.resize((6, 4))), png(GREY))
    assert message == "mask of a: the mask's size 5x4 differs from the 6x4 of its image"


def test_a_truncated_image_is_refused(read_row, tmp_path):
    whole = png(PilImage.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)))
    message = read_row(tmp_path, {"bytes": whole["bytes"][:200], "path": None}, png(GREY))
    assert message.startswith("image of a: truncated or damaged (") and "\n" not in message


def test_what_is_no_image_is_refused(read_row, tmp_path):
    assert read_row(tmp_path, {"bytes": b"text", "path": None}, png(GREY)) == "image of a: not an image"


def test_a_missing_mask_is_refused(read_row, tmp_path):
    assert read_row(tmp_path, png(PHOTO), None) == "mask of a: there is none"
    with pytest.raises(ValueError, match="mask of a: there is none"):  # `datasets` reads such a row, but writes none
        decode_row({"image": png(PHOTO), "mask": {"bytes": None, "path": None}, "image_id": "a"}, LabelSpace())


def test_an_empty_file_is_refused(read_row, tmp_path):
    empty = {"bytes": b"", "path": None}
    for column, row in (("mask", (png(PHOTO), empty)), ("image", (empty, png(GREY)))):
        (tmp_path / column).mkdir()
        assert read_row(tmp_path / column, *row) == f"{column} of a: not an image"


def test_a_mask_with_an_alpha_channel_alone_is_refused(read_row, tmp_path):
    message = read_row(tmp_path, png(PHOTO), png(GREY.convert("LA")))
    assert message == "mask of a: mode LA; a mask must be a grey, palette or RGB image"


def test_an_id_that_is_too_large_is_refused(read_row, tmp_path):
    deep = PilImage.fromarray(np.full((4, 5), 300, np.int32))
    assert read_row(tmp_path, png(PHOTO), png(deep)) == "mask of a: label 300 is no id from 0 to 255"


def test_an_unknown_colour_is_refused(read_row, tmp_path):
    message = read_row(tmp_path, png(PHOTO), png(PilImage.new("RGB", (5, 4), (1, 2, 3))), SCENES.label_space)
    assert message == (
        "mask of a: color [1, 2, 3] belongs to no class in the PASCAL palette; "
        "give each class its color in a class table (benchmark=FILE.yaml)"
    )


def test_an_id_that_the_label_map_lacks_is_refused(read_row, tmp_path):
    message = read_row(tmp_path, png(PHOTO), png(GREY), with_label_map({100: 1}))
    assert (
        message
        == "mask of a: label 1 is not in label_map (unknown ids: [1]); add it there, with null where it is no class"
    )


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("split", "columns", "message"),
    [
        ("val", COLUMNS, "no split 'val'; it has test, train"),
        ("train", {"image_column": "photo"}, "no column 'mask'; it has photo, annotation, height"),
        ("train", COLUMNS | {"mask_column": "height"}, "column 'height' holds Value('int64'), not images"),
    ],
)
def test_what_a_dataset_lacks_is_named(write, split, columns, message, streaming):
    folder = write()
    with pytest.raises(ValueError) as refused:
        open_dataset(str(folder), split, **columns, streaming=streaming)
    assert str(refused.value).replace("train, test", "test, train") == f"{folder}: {message}"


def test_an_empty_stream_is_refused(write):
    rows = open_dataset(str(write()), "train", **COLUMNS, **STREAMED)
    rows.rows = rows.rows.take(0)
    with pytest.raises(ValueError, match=r"^the training split is empty$"):
        next(iter(StreamedBatches(rows, 4, 0)))


# The order of a stream


@pytest.fixture
def streamed(write):
    return open_dataset(str(write()), "train", **COLUMNS, labels=SCENES.label_space, **STREAMED)


def keys(batches: StreamedBatches, count: int) -> list:
    return [[(position, row["image"]["bytes"]) for position, row in batch] for batch in islice(batches, count)]


def test_every_epoch_shows_every_row_once_in_another_order(streamed):
    (batch,) = keys(StreamedBatches(streamed, 36, seed=0), 1)
    assert [position for position, _ in batch] == list(range(36))
    epochs = [[row for _, row in batch[start : start + 12]] for start in (0, 12, 24)]
    assert len(set(epochs[0])) == 12 and set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    assert keys(StreamedBatches(streamed, 36, seed=1), 1) != [batch]


@pytest.mark.parametrize("start", [1, 2, 3, 7, 9])
def test_starting_later_equals_skipping(streamed, start):
    skipped = keys(StreamedBatches(streamed, 5, seed=3), start + 4)[start:]
    assert keys(StreamedBatches(streamed, 5, seed=3, start=start), 4) == skipped


def test_two_processes_share_the_batches_of_one(streamed):
    shares = [StreamedBatches(streamed, 4, seed=0, start=2, process=process, processes=2) for process in range(2)]
    together = [one + other for one, other in zip(*(keys(share, 5) for share in shares), strict=True)]
    assert together == keys(StreamedBatches(streamed, 8, seed=0, start=2), 5)


def test_workers_change_nothing(streamed):
    def draw(num_workers):
        stream = TrainingBatches(examples_of(streamed), StreamedBatches(streamed, 4, 0), num_workers, False)
        return torch.cat([batch["pixel_values"] for batch in islice(stream, 5)])

    assert torch.equal(draw(0), draw(2))


def test_streamed_examples_have_the_pixels_of_prepared_ones(streamed, tiny_dataset):
    prepared = open_dataset(str(tiny_dataset), "train")
    row_of = {sample.image.numpy().tobytes(): number for number, sample in enumerate(prepared)}
    theirs, ours = examples_of(streamed), examples_of(prepared)
    (batch,) = islice(StreamedBatches(streamed, 12, seed=0), 1)
    for position, row in batch:
        number = row_of[streamed[row].image.numpy().tobytes()]
        one, other = theirs[position, row], ours[position, number]
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_rows_of_a_dataset_opened_whole_are_in_the_order_of_a_prepared_one(write, tiny_dataset):
    theirs = open_dataset(str(write("palette")), "train", **COLUMNS)
    assert theirs.image_ids([0, 1]) == ["train-000000", "train-000001"]
    batches = islice(EndlessBatches(12, 4, seed=0), 3)
    for key in [key for batch in batches for key in batch]:
        assert examples_of(theirs)[key]["pixel_values"].shape == (3, 64, 64)


# Training


def train(load_script, dataset: Path, output: Path, *keys: str, **options) -> int:
    columns = [f"{key}={value}" for key, value in COLUMNS.items()]
    stages = ["stages.pretrain.iterations=6", "stages.finetune.iterations=6", "checkpoint_every=2"]
    return load_script("train").main(arguments(dataset, output, *columns, *stages, *keys, **options))


def weights(output: Path) -> bytes:
    return (output / "model" / "model.safetensors").read_bytes()


def test_a_recipe_names_the_columns(write, load_script, one_thread, tmp_path):
    label_map = "label_map=" + json.dumps({str(theirs): ours for theirs, ours in THEIR_IDS.items()})
    assert train(load_script, write("ids of their own"), tmp_path / "run", label_map) == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["num_images"] == 6


@pytest.fixture
def evaluate(trained_run, load_script, tmp_path, capsys):
    """`evaluate(dataset, *options)`: (exit code, metrics, the last line of stderr)."""

    def run(dataset: Path, *options: str):
        output, columns = tmp_path / "metrics.json", [f"--{key}={value}" for key, value in COLUMNS.items()]
        command = ["--model", str(trained_run / "model"), "--dataset", str(dataset), "--output", str(output)]
        code = load_script("evaluate").main([*command, *columns, *options])
        return code, json.loads(output.read_text()) if code == 0 else None, capsys.readouterr().err.splitlines()[-1]

    return run


LABEL_MAP = f"--label_map={json.dumps({100 + i: i for i in range(17)})}".replace('"', "")


@pytest.mark.parametrize("options", [[], ["--streaming"]], ids=["whole", "streamed"])
def test_a_dataset_of_other_ids_is_scored_as_the_prepared_one(write, evaluate, trained_run, monkeypatch, options):
    monkeypatch.setitem(KINDS, "shifted", lambda mask: PilImage.fromarray(np.asarray(mask).astype(np.int32) + 100))
    code, metrics, _ = evaluate(write("shifted"), "--benchmark=scenes", LABEL_MAP, *options)
    assert code == 0
    assert metrics.pop("with_background")["background_unlabelled"] == 0  # every pixel of it was given to a class
    assert metrics.items() <= json.loads((trained_run / "metrics.json").read_text()).items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([LABEL_MAP], "say whose classes these are (benchmark=NAME or FILE.yaml)"),
        (["--benchmark=scenes", "--label_map=dog"], "label_map 'dog': write ids and classes such as {1: dog, 2: sofa"),
        (["--benchmark=pascal_voc"], "has other classes than the model: id 1 is 'aeroplane' there and"),
    ],
)
def test_what_cannot_be_scored_is_told(write, evaluate, options, message):
    code, _, line = evaluate(write("grey"), *options)
    assert code == 2
    assert line.startswith("error: ") and message in line


def test_a_streamed_run_resumes_to_the_same_numbers(write, load_script, one_thread, tmp_path):
    keys = ["streaming=true", "shuffle_buffer=5"]
    dataset = write()
    assert train(load_script, dataset, tmp_path / "whole", *keys) == 0
    metrics = json.loads((tmp_path / "whole/metrics.json").read_text())
    assert metrics["num_images"] == 6
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for left in ("metrics.json", "model/model.safetensors"):
        (tmp_path / "cut" / left).unlink()
    for checkpoint in (tmp_path / "cut" / "checkpoints").iterdir():
        if checkpoint.name != "step-00-00000004":
            shutil.rmtree(checkpoint)
    assert train(load_script, dataset, tmp_path / "cut", *keys, resume=True) == 0
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_stream_of_other_files_is_another_dataset(write):
    folder = write()

    def fingerprint(split="train") -> dict:
        return dataset_fingerprint(open_dataset(str(folder), split, **COLUMNS, **STREAMED))

    train, test = fingerprint(), fingerprint("test")
    assert (train["num_files"], test["num_files"]) == (3, 1)
    assert train == fingerprint() != test
    first = sorted(folder.glob("train-*"))[0]
    Dataset.from_parquet(str(first)).select(range(3)).to_parquet(first)
    assert fingerprint() != train


def test_a_streamed_run_does_not_go_on_with_other_files(write, load_script, one_thread, tmp_path, capsys):
    dataset = write()
    keys = ["streaming=true", "until=pretrain"]
    columns = [f"{key}={value}" for key, value in COLUMNS.items()]
    short = [*SCHEDULE, "stages.pretrain.iterations=2", "checkpoint_every=2"]
    command = ["--recipe", "scenes", "--output_dir", str(tmp_path / "run"), f"dataset={dataset}", *columns, *short]
    assert load_script("train").main([*command, *keys]) == 0
    first = sorted(dataset.glob("test-*"))[0]
    Dataset.from_parquet(str(first)).select(range(3)).to_parquet(first)
    assert load_script("train").main(["--resume", *command, *keys]) == 2
    assert "cannot resume: the test split changed from 1 files with digest" in capsys.readouterr().err


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_a_loss_that_is_not_finite_names_the_images(write, load_script, one_thread, tmp_path, capsys, streaming):
    """Here by the numbers that a dataset of its own has for them."""
    folder = write()
    for file in folder.glob("train-*"):
        rows = Dataset.from_parquet(str(file))
        rows.add_column("image_id", [int(file.stem[6:11]) * 10 + i for i in range(len(rows))]).to_parquet(file)
    for file in folder.glob("test-*"):
        rows = Dataset.from_parquet(str(file))
        rows.add_column("image_id", list(range(100, 100 + len(rows)))).to_parquet(file)
    keys = [f"streaming={streaming}", "stages.pretrain.network.lr=1e30"]
    assert train(load_script, folder, tmp_path / "run", *keys) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    images = re.search(r"\(images (\d+), (\d+)\); lower", line)
    assert {int(images[1]), int(images[2])} <= {10 * file + row for file in range(3) for row in range(4)}


def test_images_held_in_memory_train_the_same_model(write, load_script, one_thread, tmp_path):
    """Order, augmentation and their code are the same; only where the decoded images wait differs."""
    dataset = write()
    assert train(load_script, dataset, tmp_path / "workers", "num_workers=1") == 0
    assert train(load_script, dataset, tmp_path / "held", "in_memory=true") == 0
    assert weights(tmp_path / "held") == weights(tmp_path / "workers")


def test_a_stream_is_not_held_in_memory(write, load_script, tmp_path, capsys):
    assert train(load_script, write(), tmp_path / "run", "streaming=true", "in_memory=true") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: scenes/cagnet_pi: streaming and in_memory exclude each other: leave out one"
    )


def test_what_is_drawn_is_not_streamed():
    with pytest.raises(ValueError, match=r"^dataset 'scenes:0' is drawn, not streamed: leave out streaming$"):
        open_dataset("scenes:0", "train", streaming=True)
