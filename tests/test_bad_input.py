"""What users get wrong, command by command: exit code 2, one line that says what, and nothing written.

A case is a name, a command, a function that makes its bad input and returns the arguments, and part of the line.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from datasets import Dataset, Value
from miniature_archives import write_jpeg, write_png
from PIL import Image
from safetensors.torch import load_file, save_file
from trained import arguments, write_dataset
from transformers import SegformerConfig

from cagnet_hf.data.benchmarks import format_class_table, load_benchmark
from cagnet_hf.data.scenes import scenes_class_embeddings

SCENES = load_benchmark("scenes")
CLASSES = """\
classes:
- {id: 0, name: nothing}
- {id: 1, name: sheep}
- {id: 4, name: cow}
seen: [sheep]
unseen: [cow]
ignored: [nothing]
"""
IDS = np.array([[0, 1, 1, 4, 255]] * 4, np.uint8)


class Place:
    """Where a case makes its bad input; `out` is what the command is asked to write."""

    def __init__(self, folder: Path, run: Path, dataset: Path):
        self.folder, self.run, self.dataset, self.out = folder, run, dataset, folder / "out"
        self.model = run / "model"

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    # A dataset, a model, a folder of photographs: whole copies, to be damaged

    def copied_dataset(self, change: Callable[[Dataset], Dataset] | None = None) -> Path:
        path = self.folder / "data_set"
        shutil.copytree(self.dataset, path)
        if change is not None:
            parquet = path / "data" / "train-00000-of-00001.parquet"
            rows = Dataset.from_parquet(str(parquet), cache_dir=str(self.folder.parent / "cache"))
            change(rows).to_parquet(parquet)
        return path

    def copied_model(self) -> Path:
        return Path(shutil.copytree(self.model, self.folder / "model"))

    def photographs(self) -> Path:
        source = self.folder / "farm"
        for stem in ("one", "two", "three"):
            write_jpeg(source / "images" / f"{stem}.jpg")
            write_png(source / "masks" / f"{stem}.png", IDS)
        self.write("farm/classes.yaml", CLASSES)
        return source

    # Arguments of the commands

    def train(self, *keys: str, recipe: str = "scenes", **options) -> list[str]:
        return arguments(options.pop("dataset", self.dataset), self.out, *keys, recipe=recipe, **options)

    def evaluate(self, *options: str, model: Path | None = None, dataset: object = None) -> list[str]:
        chosen = ["--model", str(model or self.model), "--dataset", str(dataset or self.dataset)]
        return [*chosen, "--output", str(self.out / "metrics.json"), *options]

    def calibrate(self, *options: str, dataset: Path | None = None) -> list[str]:
        given = ["--model", str(self.model), "--dataset", str(dataset or self.dataset)]
        return [*given, "--output", str(self.out / "curve.json"), *options]

    def compare(self, *options: str) -> list[str]:
        return [*options, "--output_dir", str(self.out)]

    def predict(self, *images: Path, model: Path | None = None) -> list[str]:
        return ["--model", str(model or self.model), *map(str, images), "--output", str(self.out)]

    def prepare(self, source: Path, *options: str, kind: str = "folder") -> list[str]:
        return [kind, "--source", str(source), "--output", str(self.out), *options]

    def convert(self, checkpoint: Path, *options: str) -> list[str]:
        return [str(checkpoint), "--output", str(self.out), *options]

    def embeddings(self, vectors: Path, *options: str) -> list[str]:
        output = ["--output", str(self.out / "table.safetensors")]
        return ["--word_vectors", str(vectors), "--benchmark", "scenes", *output, *options]


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def hostile(place: Place) -> Path:
    path = place.folder / "hostile.pth"
    torch.save({"state_dict": {"weight": torch.zeros(1), "payload": Hostile(place.folder / "it_ran")}}, path)
    return path


def embedding_array(place: Place, change: Callable[[np.ndarray], np.ndarray | None]) -> str:
    """`class_embeddings=FILE` with a row for each label name of scenes, changed."""
    vectors = np.ones((len(SCENES.label_names), 24), np.float32)
    vectors[list(SCENES.class_ids)] = scenes_class_embeddings(SCENES)
    changed = change(vectors)
    np.save(place.folder / "vectors.npy", vectors if changed is None else changed)
    return f"class_embeddings={place.folder / 'vectors.npy'}"


def set_row(vectors: np.ndarray, value: float) -> None:
    vectors[SCENES.class_ids[3], :] = value


def embedding_table(place: Place, table: dict) -> str:
    return f"class_embeddings={place.write('vectors.json', json.dumps(table))}"


def tampered(path: Path, *, length: int | None = None) -> Path:
    """A safetensors file whose header lies: about its own length, or about where a tensor ends."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    if length is not None:
        path.write_bytes(length.to_bytes(8, "little") + data[8:])
        return path
    header = re.sub(rb'"data_offsets":\[0,(\d+)\]', lambda m: m[0].replace(m[1], b"9" * len(m[1])), data[8 : 8 + size])
    assert header != data[8 : 8 + size]
    path.write_bytes(data[:8] + header + data[8 + size :])
    return path


def with_model(place: Place, change: Callable[[Path], object]) -> Path:
    model = place.copied_model()
    change(model)
    return model


def photographs(place: Place, change: Callable[[Path], object], *options: str) -> list[str]:
    source = place.photographs()
    change(source)
    return place.prepare(source, *options)


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def cut(path: Path, share: float = 0.5) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def tar_with(place: Place, member: str) -> Path:
    with tarfile.open(place.folder / "photos.tar", "w") as tar:
        tar.add(place.write("payload", "x"), arcname=member)
    return place.folder / "photos.tar"


def zip_with(place: Place, member: str, size: int = 1) -> Path:
    with zipfile.ZipFile(place.folder / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(member, "w", force_zip64=True) as file:
            for _ in range(max(1, size >> 20)):
                file.write(bytes(min(size, 1 << 20)))
    return place.folder / "photos.zip"


def bomb_png(place: Place) -> Path:
    """A PNG of few kilobytes that claims a billion pixels."""
    data = bytearray(place.write("bomb.png", (place.photographs() / "masks" / "one.png").read_bytes()).read_bytes())
    data[16:24] = (40_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return place.write("bomb.png", bytes(data))


class Case(NamedTuple):
    name: str
    command: str
    make: Callable[[Place], list[str]]
    reason: str


def keys(name: str, reason: str, *overrides: str, recipe: str = "scenes") -> Case:
    """train.py with recipe keys alone."""
    return Case(name, "train", lambda place: place.train(*overrides, recipe=recipe), reason)


def recipe_file(name: str, text: str | bytes, reason: str) -> Case:
    return Case(name, "train", lambda place: place.train(recipe=str(place.write("my.yaml", text))), reason)


CASES = [
    # Recipes
    keys("a misspelt recipe", "did you mean 'scenes/", recipe="scenez"),
    keys("a recipe of no method", "no recipe 'scenes/resnet'", recipe="scenes/resnet"),
    keys("a misspelt key", "unknown key 'sead'; did you mean 'seed'?", "sead=1"),
    keys("a misspelt key of a stage", "did you mean 'stages.pretrain.network'?", "stages.pretrain.netwrok.lr=1"),
    keys("a misspelt field of the model", "did you mean 'model.feature_size'?", "model.feture_size=8"),
    keys(
        "a misspelt option of the processor", "did you mean 'processor.image_mean'?", "processor.image_maen=[0, 0, 0]"
    ),
    keys("a misspelt stage", "did you mean 'finetune'?", "stages.finetun.iterations=1"),
    keys("a misspelt end", "until=pretrian is no stage; did you mean 'pretrain'?", "until=pretrian"),
    keys("a misspelt benchmark", "unknown benchmark 'scene'; did you mean 'scenes'?", "benchmark=scene"),
    keys("a word for a number", "stages.pretrain.iterations", "stages.pretrain.iterations=many"),
    keys("a negative seed", "seed", "seed=-1"),
    keys("a rate of zero", "stages.pretrain.network.lr", "stages.pretrain.network.lr=0"),
    keys("a rate that is no number", "stages.pretrain.network.lr", "stages.pretrain.network.lr=.nan"),
    keys("an endless rate", "stages.pretrain.network.lr", "stages.pretrain.network.lr=.inf"),
    keys("a list for a mapping", "stages", "stages=[pretrain]"),
    keys("an unknown optimiser", "stages.pretrain.network.optimizer", "stages.pretrain.network.optimizer=lion"),
    keys("no stage at all", "stages", "stages={}"),
    keys("scales of zero", "scales must start with 1.0 and be greater than 0", "stages.pretrain.scales=[1.0, 0]"),
    keys("a range turned round", "0 < smallest <= largest", "augmentation.scale_range=[1.5, 0.5]"),
    keys("a crop of nothing", "crop_size", "stages.pretrain.crop_size=0"),
    keys("a key without a value", "'seed' is no override: write key=value", "seed"),
    keys("a value that is no YAML", "the value is not YAML", "seed=[1"),
    keys("a value where keys are", "holds a value, not keys", "method.name=1"),
    keys(
        "a map that does not fit patches",
        "25 is no multiple of patch_size 3; 24 is",
        "stages.finetune.synthetic_size=25",
        recipe="scenes/cagnet_pa",
    ),
    keys("more ranks than classes", "99 of 16 classes", "stages.finetune.pseudo_labels={rule: top_k, top_k: 99}"),
    keys("a field of another type", "feature_size", "model.feature_size=large"),
    keys("an unknown backbone", "backbone", "model.backbone=vgg"),
    keys("a fact that the benchmark says", "seen_ids", "model.seen_ids=[0]"),
    keys("an unknown tracker", "tensorbord", "trackers=[tensorbord]"),
    recipe_file("a recipe file that includes itself", "include: [my.yaml]\n", "includes itself"),
    recipe_file("a recipe file of nothing", "", "benchmark"),
    recipe_file("a recipe file that is a list", "- scenes\n", "a recipe is a mapping of keys to values"),
    recipe_file("a recipe file of bytes", bytes(range(128, 256)), "cannot be read"),
    recipe_file("a recipe file that calls Python", "seed: !!python/object/apply:os.getpid []\n", "cannot be read"),
    keys("a number of iterations below zero", "stages.pretrain.iterations", "stages.pretrain.iterations=-5"),
    keys("half an iteration", "stages.pretrain.iterations", "stages.pretrain.iterations=1.5"),
    keys("no number of iterations", "stages.pretrain.iterations", "stages.pretrain.iterations=null"),
    keys("endless iterations", "stages.pretrain.iterations", "stages.pretrain.iterations=.inf"),
    keys("an empty batch", "stages.pretrain.batch_size", "stages.pretrain.batch_size=0"),
    keys("a batch below zero", "stages.pretrain.batch_size", "stages.pretrain.batch_size=-1"),
    keys("a batch in words", "stages.pretrain.batch_size", "stages.pretrain.batch_size=two"),
    keys("a list of batches", "stages.pretrain.batch_size", "stages.pretrain.batch_size=[2]"),
    keys("nothing accumulated", "stages.pretrain.accumulate", "stages.pretrain.accumulate=0"),
    keys("a rate below zero", "stages.pretrain.network.lr", "stages.pretrain.network.lr=-0.1"),
    keys("a rate in words", "stages.pretrain.network.lr", "stages.pretrain.network.lr=fast"),
    keys("a list of rates", "stages.pretrain.network.lr", "stages.pretrain.network.lr=[0.1]"),
    keys("an optimiser without momentum", "stages.pretrain.network.momentum", "stages.pretrain.network.momentum=2"),
    keys("a decay below zero", "stages.pretrain.network.weight_decay", "stages.pretrain.network.weight_decay=-1"),
    keys("a misspelt schedule", "stages.pretrain.network.schedule", "stages.pretrain.network.schedule=cosin"),
    keys("a word for an optimiser", "stages.pretrain.network", "stages.pretrain.network=fast"),
    keys("a number for a stage", "stages.pretrain", "stages.pretrain=1"),
    keys("no stages", "stages", "stages=null"),
    keys("a word for stages", "stages", "stages=pretrain"),
    keys("a block below zero", "stages.finetune.real_block", "stages.finetune.real_block=-1"),
    keys("a synthetic block below zero", "stages.finetune.synthetic_block", "stages.finetune.synthetic_block=-2"),
    keys("a misspelt part", "stages.finetune.reinitialize", "stages.finetune.reinitialize=[clasifier]"),
    keys("a seed in words of a recipe", "seed", "seed=one"),
    keys("half a seed", "seed", "seed=1.5"),
    keys("no seed", "seed", "seed=null"),
    keys("a list of seeds", "seed", "seed=[1]"),
    keys("a mapping of seeds", "seed", "seed={a: 1}"),
    keys("a seed that is no number", "seed", "seed=.nan"),
    keys("workers below zero", "num_workers", "num_workers=-1"),
    keys("workers in words", "num_workers", "num_workers=many"),
    keys("a log at every nothing", "log_every", "log_every=0"),
    keys("a checkpoint at every nothing", "checkpoint_every", "checkpoint_every=0"),
    keys("a checkpoint at every step back", "checkpoint_every", "checkpoint_every=-1"),
    keys("no checkpoint kept", "checkpoints_kept", "checkpoints_kept=0"),
    keys("scores at every step back", "evaluate_every", "evaluate_every=-1"),
    keys("a misspelt protocol", "evaluation_protocol", "evaluation_protocol=half"),
    keys("a split of another kind", "split", "split=train"),
    keys("a switch in words", "streaming", "streaming=perhaps"),
    keys("a switch of seven", "in_memory", "in_memory=7"),
    keys("a switch that is a list", "supervised", "supervised=[]"),
    keys("a switch of two", "deterministic", "deterministic=2"),
    keys("a tracker that is no list", "trackers", "trackers=tensorboard"),
    keys("a tracker that is a number", "trackers", "trackers=[1]"),
    keys("an empty buffer", "shuffle_buffer", "shuffle_buffer=0"),
    keys("a label map that is a list", "label_map", "label_map=[1]"),
    keys("a label map of words", "label_map", "label_map={a: b}"),
    keys("a list of datasets", "dataset", "dataset=[a]"),
    keys("a column that is a list", "image_column", "image_column=[]"),
    keys("a benchmark that is a number", "benchmark", "benchmark=1"),
    keys("no benchmark", "benchmark", "benchmark=null"),
    keys("a list of benchmarks", "benchmark", "benchmark=[scenes]"),
    keys("a processor that is a list", "processor", "processor=[1]"),
    keys("a range of one number", "augmentation.scale_range", "augmentation.scale_range=[1]"),
    keys("a range that is a number", "augmentation.scale_range", "augmentation.scale_range=1"),
    keys("a range below zero", "scale_range is [smallest, largest]", "augmentation.scale_range=[-1, 1]"),
    keys("an unknown augmentation", "augmentation.flip", "augmentation.flip=perhaps"),
    keys("no scales", "scales must start with 1.0", "stages.pretrain.scales=[]"),
    keys("a scale that is no list", "stages.pretrain.scales", "stages.pretrain.scales=1"),
    keys("a crop below zero", "stages.pretrain.crop_size", "stages.pretrain.crop_size=-3"),
    keys("a crop of three sides", "stages.pretrain.crop_size", "stages.pretrain.crop_size=[1, 2, 3]"),
    keys("two signs of equality", "seed", "seed==1"),
    keys("a key of a number", "seed: Input should be a valid integer", "seed.x=1"),
    keys("vectors that are a number", "class_embeddings", "class_embeddings=7"),
    keys("weights that are a number", "backbone_weights", "backbone_weights=7"),
    keys("half a worker", "num_workers", "num_workers=1.5"),
    keys("a log at every step back", "log_every", "log_every=-1"),
    keys("a log in words", "log_every", "log_every=often"),
    keys("checkpoints kept below zero", "checkpoints_kept", "checkpoints_kept=-1"),
    keys("checkpoints kept in words", "checkpoints_kept", "checkpoints_kept=few"),
    keys("scores in words", "evaluate_every", "evaluate_every=often"),
    keys("a protocol that is a number", "evaluation_protocol", "evaluation_protocol=1"),
    keys("no split", "split", "split=null"),
    keys("a buffer below zero", "shuffle_buffer", "shuffle_buffer=-1"),
    keys("a checkpoint in words", "checkpoint_every", "checkpoint_every=often"),
    keys("a value without a key", "is no override: write key=value", "=1"),
    keys("an unknown first key", "unknown key 'a'", "a.b.c=1"),
    keys("a stage without a name", "no stage ''", "stages..iterations=1"),
    keys("a list of ends", "is no stage", "until=[pretrain]"),
    keys("a mapping cut short", "the value is not YAML", "seed={1: "),
    keys("a text cut short", "the value is not YAML", 'seed="'),
    keys("a day that there is not", "the value is not YAML", "seed=2001-99-99"),
    keys("a list of itself", "seed", "seed=&a [*a]"),
    keys("a function of Python", "the value is not YAML", "seed=!!python/name:os.system"),
    recipe_file("a recipe file nested too deeply", "seed: " + "[" * 20_000, "nested too deeply"),
    recipe_file("a recipe file with a day that there is not", "seed: 2001-99-99\n", "cannot be read"),
    recipe_file("a recipe file cut short", "stages: {pretrain: [\n", "cannot be read"),
    recipe_file("a recipe file that includes a number", "include: 7\n", "include is a list of files"),
    recipe_file(
        "a recipe file that includes what is missing", "include: [absent.yaml]\n", "absent.yaml: cannot be read"
    ),
    recipe_file("a recipe file of two documents", "seed: 1\n---\nseed: 2\n", "cannot be read"),
    Case(
        "a class table nested too deeply",
        "prepare_data",
        lambda place: photographs(place, lambda f: (f / "classes.yaml").write_text("[" * 20_000)),
        "nested too deeply",
    ),
    Case(
        "a class of two lines",
        "prepare_data",
        lambda place: photographs(place, lambda f: edited(f / "classes.yaml", "name: cow", 'name: "cow\\nsheep"')),
        "holds a control character",
    ),
    Case(
        "a mask with an orientation",
        "prepare_data",
        lambda place: photographs(place, lambda f: _turn(f / "masks" / "two.png")),
        "two.png: a mask with an EXIF orientation (6)",
    ),
    Case(
        "a list of a test image that is not there",
        "prepare_data",
        lambda place: photographs(place, lambda f: (f / "test.txt").write_text("one two\n")),
        "no image is called 'one two'",
    ),
    Case(
        "an empty list of test images",
        "prepare_data",
        lambda place: photographs(place, lambda f: (f / "test.txt").write_text("\n")),
        "lists no images",
    ),
    Case(
        "a zip with a member thousands of folders deep",
        "prepare_data",
        lambda place: place.prepare(zip_with(place, "a/" * 5000 + "one.jpg")),
        "folders deep",
    ),
    Case(
        "a tar with a member thousands of folders deep",
        "prepare_data",
        lambda place: place.prepare(tar_with(place, "a/" * 5000 + "one.jpg")),
        "folders deep",
    ),
    # Data and class vectors of a run
    keys("a dataset that is missing", "/absent/scenes: no such folder", "dataset=/absent/scenes"),
    keys("a column that is missing", "no column 'picture'; it has image, mask, image_id", "image_column=picture"),
    Case(
        "an empty folder for a dataset",
        "train",
        lambda place: place.train(dataset=place.write("empty/.keep", "").parent),
        "not a dataset on disk or on the Hub",
    ),
    Case(
        "a Parquet file cut short",
        "train",
        lambda place: place.train(
            dataset=cut(place.copied_dataset() / "data/train-00000-of-00001.parquet").parents[1]
        ),
        "data_set: not a dataset",
    ),
    Case(
        "a column of words",
        "train",
        lambda place: place.train(
            "mask_column=image_id",
            dataset=place.copied_dataset(lambda rows: rows.cast_column("image_id", Value("string"))),
        ),
        "not images",
    ),
    Case(
        "an empty split",
        "train",
        lambda place: place.train(dataset=place.copied_dataset(lambda rows: rows.select([]))),
        "split 'train' is empty",
    ),
    Case(
        "no split to test on",
        "train",
        lambda place: place.train(dataset=_without_test(place.copied_dataset())),
        "no split 'test'; it has train",
    ),
    Case(
        "vectors with a NaN",
        "train",
        lambda place: place.train(embedding_array(place, lambda v: set_row(v, np.nan))),
        "has values that are not finite",
    ),
    Case(
        "a vector of zeros",
        "train",
        lambda place: place.train(embedding_array(place, lambda v: set_row(v, 0))),
        "is zero",
    ),
    Case(
        "too few vectors",
        "train",
        lambda place: place.train(embedding_array(place, lambda v: v[:5])),
        "5 rows, but benchmark scenes has 17 label names",
    ),
    Case(
        "an array of objects",
        "train",
        lambda place: place.train(embedding_array(place, lambda v: np.array([Hostile(place.folder / "it_ran")]))),
        "object arrays are refused",
    ),
    Case(
        "vectors of two sizes",
        "train",
        lambda place: place.train(embedding_table(place, {"a": [1, 2], "b": [1]})),
        "the embedding of 'b' has size (1,)",
    ),
    Case(
        "a class without a vector",
        "train",
        lambda place: place.train(embedding_table(place, {"a": [1, 2]})),
        "no embedding of class",
    ),
    Case(
        "one name twice",
        "train",
        lambda place: place.train(embedding_table(place, {"Red_disc": [1, 2], "red disc": [2, 1]})),
        "are the same name",
    ),
    Case(
        "a table with a lying header",
        "train",
        lambda place: place.train(
            f"class_embeddings={tampered(place.copied_model() / 'model.safetensors', length=1 << 60)}"
        ),
        "not an embedding table",
    ),
    keys("vectors that are missing", "absent.npy: no such file of class embeddings", "class_embeddings=absent.npy"),
    keys("weights that are missing", "absent", "backbone_weights=/absent/weights.safetensors"),
    Case(
        "a folder that holds a run",
        "train",
        lambda place: arguments(place.dataset, place.run),
        "add --resume, or choose another --output_dir",
    ),
    Case(
        "a run resumed with another rate",
        "train",
        lambda place: arguments(place.dataset, place.run, "stages.pretrain.network.lr=1", resume=True),
        "the recipe changed in stages.pretrain.network.lr",
    ),
    Case(
        "a run resumed on other data",
        "train",
        lambda place: ["--resume", *_resumed_on(place, write_dataset(place.folder / "other", train=9))],
        "the recipe changed in dataset",
    ),
    # evaluate.py, calibrate.py, compare.py
    Case("no such model", "evaluate", lambda place: place.evaluate(model=place.folder / "absent"), "no such model"),
    Case(
        "a run's folder for a model",
        "evaluate",
        lambda place: place.evaluate(model=place.run),
        "did you mean",
    ),
    Case(
        "a model of another architecture",
        "evaluate",
        lambda place: place.evaluate(
            model=with_model(place, lambda m: (m / "config.json").write_text(json.dumps(SegformerConfig().to_dict())))
        ),
        "a 'segformer' model, not a CaGNet one",
    ),
    Case(
        "a configuration that is no JSON",
        "evaluate",
        lambda place: place.evaluate(model=with_model(place, lambda m: (m / "config.json").write_text("{"))),
        "config",
    ),
    Case(
        "a header that lies about its length",
        "evaluate",
        lambda place: place.evaluate(
            model=with_model(place, lambda m: tampered(m / "model.safetensors", length=(1 << 63) - 1))
        ),
        "damaged",
    ),
    Case(
        "a header that lies about a tensor",
        "evaluate",
        lambda place: place.evaluate(model=with_model(place, lambda m: tampered(m / "model.safetensors"))),
        "damaged",
    ),
    Case(
        "weights without a tensor",
        "evaluate",
        lambda place: place.evaluate(model=with_model(place, _without_a_tensor)),
        "its weights lack",
    ),
    Case(
        "a pickle in place of the weights",
        "evaluate",
        lambda place: place.evaluate(
            model=with_model(
                place,
                lambda m: ((m / "model.safetensors").unlink(), shutil.copy(hostile(place), m / "pytorch_model.bin")),
            )
        ),
        "model.safetensors",
    ),
    Case(
        "a dataset of other classes",
        "evaluate",
        lambda place: place.evaluate(dataset=_with_table(place, format_class_table(load_benchmark("pascal_voc")))),
        "has other classes than the model: id 1 is 'aeroplane' there and ",
    ),
    Case(
        "a dataset with a renamed class",
        "evaluate",
        lambda place: place.evaluate(
            dataset=_with_table(place, format_class_table(SCENES).replace(SCENES.label_names[3], "zebra"))
        ),
        f"id 3 is 'zebra' there and {SCENES.label_names[3]!r} here",
    ),
    Case("a seed in words", "evaluate", lambda place: place.evaluate(dataset="scenes:first"), "write scenes:SEED"),
    Case("a split that is missing", "evaluate", lambda place: place.evaluate("--split", "val"), "it has train, test"),
    Case(
        "an output that is a folder",
        "evaluate",
        lambda place: place.evaluate("--output", str(place.write("taken/file", "").parent)),
        "taken",
    ),
    Case(
        "a model that knows the unseen classes",
        "calibrate",
        lambda place: place.calibrate(dataset=_with_table(place, format_class_table(SCENES))),
        "choose on a model trained with split=tuning",
    ),
    Case(
        "a calibration for no model",
        "calibrate",
        lambda place: place.calibrate("--apply_to", str(place.folder)),
        "config.json",
    ),
    Case(
        "a calibration for another architecture",
        "calibrate",
        lambda place: place.calibrate(
            "--apply_to", str(with_model(place, lambda m: edited(m / "config.json", '"cagnet"', '"segformer"')))
        ),
        "not the configuration of a model of this package",
    ),
    Case(
        "a misspelt comparison",
        "compare",
        lambda place: place.compare("--benchmark", "scenez"),
        "did you mean 'scenes'?",
    ),
    Case(
        "a misspelt row",
        "compare",
        lambda place: place.compare("--benchmark", "scenes", "--rows", "spnet", "zs3ent"),
        "scenes has no row 'zs3ent'; did you mean 'zs3net'?; rows: cagnet_pa",
    ),
    Case(
        "a key that no row has",
        "compare",
        lambda place: place.compare("--benchmark", "scenes", "--rows", "spnet", "--set", "stages.finetune.lr=1"),
        "none of the rows has a stage 'finetune'",
    ),
    # predict.py
    Case("no such image", "predict", lambda place: place.predict(place.folder / "absent.png"), "absent.png"),
    Case("a text for an image", "predict", lambda place: place.predict(place.write("a.jpg", "text")), "a.jpg"),
    Case(
        "a truncated JPEG",
        "predict",
        lambda place: place.predict(cut(place.photographs() / "images" / "one.jpg", 0.7)),
        "one.jpg",
    ),
    Case("an image of a billion pixels", "predict", lambda place: place.predict(bomb_png(place)), "bomb.png"),
    # prepare_data.py
    Case("no such source", "prepare_data", lambda place: place.prepare(place.folder / "absent"), "absent"),
    Case(
        "an empty source",
        "prepare_data",
        lambda place: place.prepare(place.write("empty/.keep", "").parent),
        "classes.yaml is missing",
    ),
    Case(
        "a class both seen and unseen",
        "prepare_data",
        lambda place: photographs(
            place, lambda f: edited(f / "classes.yaml", "unseen: [cow]", "unseen: [cow, sheep]")
        ),
        "class 'sheep' is in several of seen, unseen, ignored",
    ),
    Case(
        "a misspelt class",
        "prepare_data",
        lambda place: photographs(place, lambda f: edited(f / "classes.yaml", "seen: [sheep]", "seen: [shep]")),
        "'shep' is no class; did you mean 'sheep'?",
    ),
    Case(
        "an id beyond a byte",
        "prepare_data",
        lambda place: photographs(place, lambda f: edited(f / "classes.yaml", "id: 4", "id: 300")),
        "an id is a number from 0 to 254",
    ),
    Case(
        "a mask id out of range",
        "prepare_data",
        lambda place: photographs(place, lambda f: write_png(f / "masks" / "two.png", IDS + 7)),
        "two.png: label ",
    ),
    Case(
        "a mask of another size",
        "prepare_data",
        lambda place: photographs(place, lambda f: write_png(f / "masks" / "two.png", IDS[:3])),
        "two.jpg): the mask's size 5x3 differs from the 5x4",
    ),
    Case(
        "a mask of 16 bits",
        "prepare_data",
        lambda place: photographs(
            place, lambda f: Image.fromarray(IDS.astype(np.uint16) * 256).save(f / "masks" / "two.png")
        ),
        "two.png",
    ),
    Case(
        "a mask of unknown colours",
        "prepare_data",
        lambda place: photographs(place, lambda f: Image.new("RGB", (5, 4), (1, 2, 3)).save(f / "masks" / "two.png")),
        "belongs to no class",
    ),
    Case(
        "a mask with a turned image",
        "prepare_data",
        lambda place: photographs(place, lambda f: _turn(f / "images" / "one.jpg")),
        "one.jpg): the mask's size 5x4 differs from the 4x5",
    ),
    Case(
        "a truncated photograph",
        "prepare_data",
        lambda place: photographs(place, lambda f: cut(f / "images" / "one.jpg", 0.7)),
        "one.jpg: truncated or damaged",
    ),
    Case(
        "a photograph of a billion pixels",
        "prepare_data",
        lambda place: photographs(place, lambda f: shutil.copy(bomb_png(place), f / "masks" / "two.png")),
        "two.png: too large to be decoded safely",
    ),
    Case(
        "a photograph without a mask",
        "prepare_data",
        lambda place: photographs(place, lambda f: (f / "masks" / "two.png").unlink()),
        "two.png",
    ),
    Case(
        "no photograph at all",
        "prepare_data",
        lambda place: photographs(place, lambda f: [path.unlink() for path in f.glob("*/*.*g")]),
        "empty",
    ),
    Case(
        "a tar whose member climbs out",
        "prepare_data",
        lambda place: place.prepare(tar_with(place, "../climbed")),
        "member '../climbed' points out of the archive",
    ),
    Case(
        "a tar whose member is absolute",
        "prepare_data",
        lambda place: place.prepare(_with_absolute_member(place)),
        "points out of the archive",
    ),
    Case(
        "a zip whose member climbs out",
        "prepare_data",
        lambda place: place.prepare(zip_with(place, "images/../../climbed")),
        "points out of the archive",
    ),
    Case(
        "a zip bomb",
        "prepare_data",
        lambda place: place.prepare(zip_with(place, "images/one.jpg", size=1100 << 20)),
        "member 'images/one.jpg' would unpack to 1,100 MB",
    ),
    Case(
        "a zip cut short",
        "prepare_data",
        lambda place: place.prepare(cut(zip_with(place, "classes.yaml", size=1 << 20))),
        "truncated or damaged",
    ),
    Case(
        "an archive of another kind",
        "prepare_data",
        lambda place: place.prepare(place.write("photos.rar", "x")),
        "neither a folder nor an archive",
    ),
    Case(
        "a prepared dataset that is there",
        "prepare_data",
        lambda place: ["folder", "--source", str(place.photographs()), "--output", str(place.dataset)],
        "scenes",
    ),
    Case("nothing to check", "prepare_data", lambda place: ["check", str(place.folder / "absent")], "no such folder"),
    # convert_checkpoint.py, prepare_embeddings.py
    Case(
        "a hostile pickle", "convert_checkpoint", lambda place: place.convert(hostile(place)), "which are never loaded"
    ),
    Case(
        "a checkpoint of another network",
        "convert_checkpoint",
        lambda place: place.convert(_checkpoint(place, {"transformer.weight": torch.zeros(2, 2)})),
        "no known network",
    ),
    Case(
        "a checkpoint cut short",
        "convert_checkpoint",
        lambda place: place.convert(cut(_checkpoint(place, {"weight": torch.zeros(100, 100)}))),
        "damaged",
    ),
    Case(
        "a safetensors file with a lying header",
        "convert_checkpoint",
        lambda place: place.convert(tampered(place.copied_model() / "model.safetensors")),
        "not a whole safetensors file",
    ),
    Case("no such checkpoint", "convert_checkpoint", lambda place: place.convert(Path("absent.pth")), "no such"),
    Case("no word vectors", "prepare_embeddings", lambda place: place.embeddings(Path("absent.vec")), "absent.vec"),
    Case(
        "word vectors that are no numbers",
        "prepare_embeddings",
        lambda place: place.embeddings(place.write("words.vec", "2 2\nred 1 x\nblue 1 2\n")),
        "words.vec",
    ),
    Case(
        "word vectors that lack a class",
        "prepare_embeddings",
        lambda place: place.embeddings(place.write("words.vec", "2 2\nred 1 2\nblue 1 2\n")),
        "words.vec",
    ),
]


def _without_test(dataset: Path) -> Path:
    (dataset / "data" / "test-00000-of-00001.parquet").unlink()
    return dataset


def _resumed_on(place: Place, dataset: Path) -> list[str]:
    return arguments(dataset, place.run)


def _without_a_tensor(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights.popitem()
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def _with_table(place: Place, table: str) -> Path:
    """The dataset with a class table of its own."""
    dataset = place.copied_dataset()
    (dataset / "classes.yaml").write_text(table)
    return dataset


def _turn(photograph: Path) -> None:
    """Mark a photograph as taken with the camera turned by 90 degrees."""
    image = Image.open(photograph)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(photograph, exif=exif)


def _with_absolute_member(place: Place) -> Path:
    with tarfile.open(place.folder / "photos.tar", "w") as tar:
        member = tarfile.TarInfo("/etc/climbed")
        tar.addfile(member)
    return place.folder / "photos.tar"


def _checkpoint(place: Place, tensors: dict[str, torch.Tensor]) -> Path:
    torch.save(tensors, place.folder / "weights.pth")
    return place.folder / "weights.pth"


@pytest.fixture
def place(tmp_path, trained_run, tiny_dataset, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets.disable_progress_bars()
    (tmp_path / "work").mkdir()
    yield Place(tmp_path / "work", trained_run, tiny_dataset)
    datasets.enable_progress_bars()


def contents(*folders: Path) -> dict[str, tuple[int, int]]:
    """Every file below, with its size and time."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def without_progress(text: str) -> list[str]:
    lines = text.replace("\r", "\n").splitlines()
    return [
        line
        for line in lines
        if line.strip() and not re.search(r"\d%\||[\d?] ?(it|image|examples)/s|[\d?]s/(it|image)", line)
    ]


def assert_one_line(code: int, stderr: str, reason: str) -> None:
    lines = without_progress(stderr)
    assert code == 2, stderr
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    assert reason in lines[0]
    assert len(lines[0]) < 1300  # a list of all recipes is the longest


def test_there_are_cases_enough():
    assert len(CASES) >= 200
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_it_is_refused_in_one_line_and_nothing_is_written(case, place, load_script, one_thread, capsys):
    argv = case.make(place)
    before = contents(place.folder, place.run, place.dataset)
    capsys.readouterr()
    code = load_script(case.command).main(argv)
    printed = capsys.readouterr()
    assert_one_line(code, printed.err, case.reason)
    assert "Traceback" not in printed.out
    assert contents(place.folder, place.run, place.dataset) == before


AS_PROCESSES = (
    "a misspelt key",
    "a header that lies about a tensor",
    "a truncated JPEG",
    "a tar whose member climbs out",
    "a hostile pickle",
)


@pytest.mark.parametrize("name", AS_PROCESSES, ids=lambda name: name.replace(" ", "_"))
def test_a_process_of_its_own_refuses_alike(name, place):
    case = next(case for case in CASES if case.name == name)
    argv = case.make(place)
    before = contents(place.folder)
    finished = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / f"{case.command}.py"), *argv], capture_output=True, text=True
    )
    assert_one_line(finished.returncode, finished.stderr, case.reason)
    assert contents(place.folder) == before


@pytest.mark.parametrize("wrong", [["--gamma", "nan"], ["--gamma", "2"], ["--batch_size", "0"]], ids=" ".join)
def test_an_option_out_of_its_range_is_refused(wrong, place, load_script, capsys):
    code = load_script("evaluate").main(place.evaluate(*wrong))
    assert_one_line(code, capsys.readouterr().err, f"{wrong[0].removeprefix('--')} {wrong[1]}")


def test_a_repository_of_the_hub_is_refused_without_a_connection(place, load_script, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # or it would try for half a minute
    code = load_script("evaluate").main(["--model", "nobody/nothing-here", "--dataset", str(place.dataset)])
    lines = without_progress(capsys.readouterr().err)
    assert (code, len(lines)) == (2, 1)
    assert "nobody/nothing-here" in lines[0] or "couldn't connect" in lines[0]
