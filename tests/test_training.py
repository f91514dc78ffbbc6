"""Training runs from the command line: what they leave behind and what they refuse."""

import dataclasses
import json
import multiprocessing
import re
import shutil

import numpy as np
import pytest
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from test_architecture import TRAVELLING
from trained import FINETUNE, PRETRAIN, arguments

from cagnet_hf.data.benchmarks import format_class_table, load_benchmark
from cagnet_hf.data.scenes import scenes_class_embeddings

CONTRACT = {
    "hIoU",
    "mIoU",
    "PA",
    "MA",
    "S-mIoU",
    "U-mIoU",
    "U-PA",
    "U-MA",
    "protocol",
    "num_images",
    "per_class",
    "calibration",
}
ONE_ITERATION = ["stages.pretrain.iterations=1", "stages.finetune.iterations=0"]


@pytest.fixture
def train(load_script, tiny_dataset, one_thread, capsys):
    """`train(output, *keys)`: (exit code, the error lines) of a run."""

    def run(output, *keys, **options):
        code = load_script("train").main(arguments(tiny_dataset, output, *keys, **options))
        printed = capsys.readouterr().err.replace("\r", "\n").splitlines()
        return code, [line for line in printed if "error" in line.lower() or "Traceback" in line]

    return run


def checkpoint_names(output) -> list[str]:
    return sorted(folder.name for folder in (output / "checkpoints").iterdir())


# What a run leaves behind


def test_the_model_folder_is_complete(trained_run):
    names = {path.name for path in (trained_run / "model").iterdir()}
    code = {f"{name}.py" for name in TRAVELLING}
    assert names == code | {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"}


def test_the_model_is_the_one_that_was_trained(trained_run):
    newest = trained_run / "checkpoints" / checkpoint_names(trained_run)[-1]
    trained, saved = (load_file(folder / "model.safetensors") for folder in (newest, trained_run / "model"))
    assert trained.keys() == saved.keys()
    assert all((saved[name] == trained[name]).all() for name in saved)


def test_the_configuration_names_the_classes_in_model_order(trained_run):
    config = json.loads((trained_run / "model" / "config.json").read_text())
    assert config["model_type"] == "cagnet"
    assert config["seen_ids"] == list(range(12))
    assert config["unseen_ids"] == list(range(12, 16))
    assert config["dataset_ids"] == list(range(1, 17))
    assert tuple(config["id2label"].values()) == load_benchmark("scenes").class_names


def test_metrics_have_the_keys_of_the_contract(trained_run):
    metrics = json.loads((trained_run / "metrics.json").read_text())
    assert metrics.keys() >= CONTRACT
    assert (metrics["protocol"], metrics["num_images"]) == ("full", 6)
    assert len(metrics["per_class"]) == 16
    assert all(
        entry.keys() == {"iou", "recall", "seen", "pixels", "given_to"} for entry in metrics["per_class"].values()
    )


def test_metrics_are_given_after_every_stage(trained_run):
    metrics = json.loads((trained_run / "metrics.json").read_text())
    stages = metrics["stages"]
    assert [(s["name"], s["iterations"]) for s in stages] == [("pretrain", PRETRAIN), ("finetune", FINETUNE)]
    assert stages[-1]["metrics"] == {key: metrics[key] for key in CONTRACT}
    assert all(stage["peak_memory_mib"] > 50 for stage in stages)
    assert stages[0]["metrics"] != stages[1]["metrics"]


def test_the_model_card_carries_the_scores(trained_run):
    metrics = json.loads((trained_run / "metrics.json").read_text())
    card = ModelCard.load(trained_run / "model" / "README.md")
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert scores["hiou"] == metrics["hIoU"]
    assert scores["s-miou"] == metrics["S-mIoU"]
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-segmentation")
    assert "synthetic" in card.text


def test_a_benchmark_of_ones_own_is_called_by_its_name_not_its_place(train, tiny_dataset, tmp_path):
    shutil.copytree(tiny_dataset, tmp_path / "secret" / "data")
    scenes = load_benchmark("scenes")
    table = format_class_table(dataclasses.replace(scenes, name="orchard"))
    (tmp_path / "secret" / "data" / "classes.yaml").write_text(table)
    vectors = np.zeros((len(scenes.label_names), 24), np.float32)
    vectors[list(scenes.class_ids)] = scenes_class_embeddings(scenes)
    np.save(tmp_path / "vectors.npy", vectors)
    keys = [f"benchmark={tmp_path / 'secret' / 'data'}", f"class_embeddings={tmp_path / 'vectors.npy'}"]
    assert train(tmp_path / "run", *ONE_ITERATION, *keys) == (0, [])
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "orchard" in card
    assert "secret" not in card


@pytest.mark.parametrize("name", ["losses", "per_class_iou", "confusion", "predictions"])
def test_figures_open(trained_run, name):
    with Image.open(trained_run / "figures" / f"{name}.png") as picture:
        picture.load()
        assert picture.width > 200


def test_the_recipe_is_recorded_whole(trained_run):
    recorded = yaml.safe_load((trained_run / "recipe.yaml").read_text())
    assert recorded["stages"]["finetune"]["iterations"] == FINETUNE
    assert recorded["content_loss"] == "mmd"  # a default


def test_checkpoints_are_made_at_their_interval_and_at_the_end_of_a_stage(trained_run):
    expected = [f"step-00-{i:08d}" for i in range(4, PRETRAIN + 1, 4)]
    expected += [f"step-01-{i:08d}" for i in range(4, FINETUNE + 1, 4)]
    assert checkpoint_names(trained_run) == expected


def test_only_the_newest_checkpoints_are_kept(train, tmp_path):
    kept = ["checkpoint_every=1", "checkpoints_kept=2"]
    stages = ["stages.pretrain.iterations=4", "stages.finetune.iterations=0"]
    assert train(tmp_path / "run", *stages, *kept) == (0, [])
    assert checkpoint_names(tmp_path / "run") == ["step-00-00000003", "step-00-00000004"]


def test_the_tuning_split_is_scored_on_its_own_unseen_classes(train, tmp_path):
    assert train(tmp_path / "run", *ONE_ITERATION, "split=tuning") == (0, [])
    per_class = json.loads((tmp_path / "run" / "metrics.json").read_text())["per_class"]
    benchmark = load_benchmark("scenes").for_tuning()
    assert tuple(per_class) == benchmark.class_names
    assert [entry["seen"] for entry in per_class.values()] == [True] * 9 + [False] * 3


def test_a_reinitialized_part_starts_its_stage_from_new_weights(train, trained_run, tmp_path):
    """A stage without an iteration and nothing else: what differs from the pre-trained weights is the new part."""
    weights = {}
    for name, keys in (("kept", ()), ("new", ("stages.finetune.reinitialize=[generator]",))):
        train(tmp_path / name, "stages.finetune.iterations=0", *keys)
        weights[name] = load_file(tmp_path / name / "model" / "model.safetensors")
    changed = {key.split(".")[0] for key in weights["kept"] if not weights["kept"][key].equal(weights["new"][key])}

    assert changed == {"generator"}


def test_spnet_is_trained_by_the_same_command(train, tmp_path):
    assert train(tmp_path / "run", "stages.pretrain.iterations=1", recipe="scenes/spnet") == (0, [])
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["classifier"] == "projection"


# What a run refuses, in one line


def test_a_folder_that_holds_a_run_is_not_overwritten(train, trained_run):
    code, errors = train(trained_run)
    assert code == 2
    assert len(errors) == 1
    assert "add --resume" in errors[0]


def test_resuming_with_another_recipe_names_the_keys(train, trained_run):
    code, errors = train(trained_run, "seed=1", "stages.finetune.classifier.lr=1", resume=True)
    assert code == 2
    assert len(errors) == 1
    assert "stages.finetune.classifier.lr" in errors[0]
    assert "seed" in errors[0]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("sead=1", "unknown key 'sead'; did you mean 'seed'?"),
        ("benchmark=scenery", "unknown benchmark 'scenery'"),
        ("model.feature_size=large", "feature_size"),
        ("model.seen_ids=[0]", "seen_ids"),
        ("processor.image_maen=[0, 0, 0]", "did you mean 'processor.image_mean'?"),
        ("dataset=/absent/scenes", "/absent/scenes: no such folder"),
        ("image_column=picture", "no column 'picture'"),
        ("class_embeddings=absent.npy", "absent.npy"),
        ("backbone_weights=package", "does not fit backbone='resnet'"),
    ],
)
def test_bad_input_is_refused_in_one_line(train, tmp_path, wrong, reason):
    code, errors = train(tmp_path / "run", *ONE_ITERATION, wrong)
    assert code == 2
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert reason in errors[0]


def test_an_unknown_recipe_is_refused_in_one_line(train, tmp_path):
    code, errors = train(tmp_path / "run", recipe="scene")
    assert (code, len(errors)) == (2, 1)
    assert "no recipe 'scene'; did you mean 'scenes" in errors[0]


def test_a_benchmark_without_data_says_how_to_make_them(train, tmp_path):
    code, errors = train(tmp_path / "run", "dataset=null", recipe="pascal_voc_edge/cagnet_pi")
    assert (code, len(errors)) == (2, 1)
    assert "`cagnet-hf prepare_data pascal_voc`" in errors[0]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_label_outside_the_label_set_names_its_image(train, tmp_path, tiny_dataset, num_workers):
    path = tmp_path / "data" / "data" / "train-00000-of-00001.parquet"
    shutil.copytree(tiny_dataset, tmp_path / "data")
    rows = Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    rows.map(lambda row: {"mask": Image.new("L", (96, 96), 99)}).to_parquet(path)
    code, errors = train(tmp_path / "run", f"dataset={tmp_path / 'data'}", f"num_workers={num_workers}")
    assert (code, len(errors)) == (2, 1)
    assert re.fullmatch(r"error: mask of scenes_0_train_\d+: label 99 is not in the label set .*", errors[0])
    assert not multiprocessing.active_children()  # they ignore SIGTERM, and Python would wait for them at its exit


def test_keys_may_stand_between_options(load_script, tiny_dataset, tmp_path, capsys):
    first, *others = arguments(tiny_dataset, tmp_path / "run", "sead=1")
    assert load_script("train").main(["seed=1", first, *others]) == 2
    assert "unknown key 'sead'" in capsys.readouterr().err


def test_a_refused_run_leaves_its_folder_free(train, tmp_path):
    assert train(tmp_path / "run", "dataset=/absent/scenes")[0] == 2
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_loss_that_is_not_finite_stops_the_run_in_one_line(train, tmp_path):
    code, errors = train(tmp_path / "run", "log_every=1", "stages.pretrain.network.lr=1e30")
    assert code == 2
    assert len(errors) == 1
    assert errors[0].startswith("error: loss ")
    assert "not finite at iteration" in errors[0]
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_no_checkpoint_is_made_of_a_loss_that_is_not_finite(train, tmp_path):
    often = ["log_every=1000", "checkpoint_every=1", "stages.pretrain.network.lr=1e30"]
    assert train(tmp_path / "run", *often)[0] == 2
    for checkpoint in (tmp_path / "run").glob("checkpoints/*"):  # there may be none
        weights = load_file(checkpoint / "model.safetensors")
        assert not any(values.isnan().any() for values in weights.values()), checkpoint.name
