"""The rows of the published tables: each trains, saves, loads as remote code; what rows share is trained once."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from safetensors.torch import load_file
from tiny import new_model, tiny_recipe

from cagnet_hf import CaGNetForSemanticSegmentation
from cagnet_hf.apps import comparison, other_scores
from cagnet_hf.apps.comparison import (
    common_starts,
    continues,
    published_results,
    published_rows,
    read_variants,
    recipes_of,
    run_rows,
)
from cagnet_hf.apps.comparison_tables import COLUMNS, WITH_BACKGROUND, comparison_table, differences_table
from cagnet_hf.data.benchmarks import format_class_table, load_benchmark
from cagnet_hf.data.sources import open_dataset
from cagnet_hf.evaluation.scoring import score
from cagnet_hf.methods.options import Recipe
from cagnet_hf.training.features import FeatureMaps
from cagnet_hf.training.loop import StageRun
from cagnet_hf.training.recipe_files import load_recipe
from cagnet_hf.weights.folders import load_model

ROWS = ["spnet", "spnet_c", "spnet_st", "zs3net", "cagnet_pi", "cagnet_pa", "zs3net_st"]
ROWS += ["cagnet_pi_st", "cagnet_pa_st", "gaussian"]
ITERATIONS = 4

# Runs in a process of its own: `python -c ELSEWHERE output_file model_folder...`, prints nothing.
ELSEWHERE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "cagnet_hf":
            raise ImportError("cagnet_hf is not installed here")

sys.meta_path.insert(0, Refuse())
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSemanticSegmentation

torch.set_num_threads(1)
output, *folders = sys.argv[1:]
pixel_values = torch.linspace(-1, 1, 3 * 48 * 48).view(1, 3, 48, 48)
logits = {}
with torch.no_grad():
    for folder in folders:
        model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)
        logits[folder] = model(pixel_values).logits.contiguous()
save_file(logits, output)
"""


def short_recipe(row: str, dataset, *overrides: str) -> Recipe:
    """The row's recipe with a tiny network and a few iterations per stage."""
    stages = load_recipe(f"scenes/{row}").stages
    keys = ["trackers=[]", "num_workers=0", "log_every=1", f"dataset={dataset}", "checkpoint_every=1000"]
    keys += ["patches.epochs=2", "patches.bank_size=32"] if row.startswith("cagnet_pa") else []
    for name, stage in stages.items():
        keys += [f"stages.{name}.iterations={ITERATIONS}", f"stages.{name}.batch_size=2"]
        if getattr(stage, "synthetic_block", 0):
            keys += [f"stages.{name}.real_block=1", f"stages.{name}.synthetic_block=1"]
    return tiny_recipe(row, *keys, *overrides)


@pytest.fixture(scope="module")
def folder(tiny_dataset, tmp_path_factory, one_thread):
    """The runs of all rows, made by one call."""
    output = tmp_path_factory.mktemp("rows")
    run_rows({row: short_recipe(row, tiny_dataset) for row in reversed(ROWS)}, output)
    return output


@pytest.fixture(scope="module")
def elsewhere(folder, tmp_path_factory):
    """Logits of every row's saved model in a process without this package."""
    output = tmp_path_factory.mktemp("elsewhere") / "logits.safetensors"
    models = [str(folder / row / "model") for row in ROWS]
    finished = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(output), *models], capture_output=True, text=True, cwd=output.parent
    )
    assert finished.returncode == 0, finished.stderr
    return dict(zip(ROWS, (load_file(output)[model] for model in models), strict=True))


@pytest.mark.parametrize("row", ROWS)
def test_every_row_trains_saves_and_opens_as_remote_code_with_equal_logits(row, folder, elsewhere):
    model = CaGNetForSemanticSegmentation.from_pretrained(folder / row / "model")
    with torch.no_grad():
        logits = model(torch.linspace(-1, 1, 3 * 48 * 48).view(1, 3, 48, 48)).logits
    assert torch.equal(elsewhere[row], logits)


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_scored_after_every_stage(row, folder, tiny_dataset):
    metrics = json.loads((folder / row / "metrics.json").read_text())
    assert [stage["name"] for stage in metrics["stages"]] == list(short_recipe(row, tiny_dataset).stages)
    assert metrics["S-mIoU"] is not None


@pytest.mark.parametrize("row", ["spnet_c", "zs3net_st", "cagnet_pi_st", "cagnet_pa_st"])
def test_a_row_that_continues_another_goes_on_from_its_end(row, folder):
    shorter = {"spnet_c": "spnet"}.get(row, row.removesuffix("_st"))
    histories = []
    for name in (shorter, row):
        newest = sorted((folder / name / "checkpoints").iterdir())[-1]
        histories.append(json.loads((newest / "trainer_state.json").read_text())["history"])
    assert histories[1][: len(histories[0])] == histories[0]


def test_what_was_shared_gives_the_weights_of_a_run_of_its_own(folder, tiny_dataset, tmp_path):
    run_rows({"zs3net_st": short_recipe("zs3net_st", tiny_dataset)}, tmp_path)
    alone, shared = (load_file(run / "zs3net_st" / "model" / "model.safetensors") for run in (tmp_path, folder))
    assert all(torch.equal(alone[name], shared[name]) for name in shared)


@pytest.mark.parametrize(
    ("row", "stage", "step"),
    [("zs3net_st", 1, 2), ("zs3net_st", 2, 2), ("cagnet_pa_st", 1, 2), ("cagnet_pa_st", 2, 2)],
)
def test_an_interrupted_row_resumes_to_the_same_weights(row, stage, step, tiny_dataset, tmp_path):
    recipe = short_recipe(row, tiny_dataset, "checkpoint_every=2", "checkpoints_kept=100")
    run_rows({row: recipe}, tmp_path)
    weights = tmp_path / row / "model" / "model.safetensors"
    expected = load_file(weights)
    weights.unlink()
    (tmp_path / row / "metrics.json").unlink()
    shutil.rmtree(tmp_path / row / "patches", ignore_errors=True)  # as if they had not been made before the kill
    for checkpoint in (tmp_path / row / "checkpoints").iterdir():
        if checkpoint.name > f"step-{stage:02d}-{step:08d}":
            shutil.rmtree(checkpoint)
    run_rows({row: recipe}, tmp_path)
    resumed = load_file(weights)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


TWO_PROCESSES = """
import sys
from pathlib import Path
from accelerate import PartialState
from test_rows import run_rows, short_recipe

dataset, output = sys.argv[1:]
run_rows({row: short_recipe(row, dataset) for row in ("zs3net", "zs3net_st")}, Path(output))
PartialState().destroy_process_group()
"""


def test_two_processes_train_row_after_row_to_one_model(tiny_dataset, tmp_path):
    (tmp_path / "rows.py").write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*launch, str(tmp_path / "rows.py"), str(tiny_dataset), str(tmp_path / "runs")]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert finished.returncode == 0, finished.stderr[-2000:]
    for row in ("zs3net", "zs3net_st"):
        model, processor = load_model(str(tmp_path / "runs" / row / "model"))
        scores = score(model, processor, open_dataset(str(tiny_dataset), "test"), progress=False)
        written = json.loads((tmp_path / "runs" / row / "metrics.json").read_text())
        assert {key: written[key] for key in scores} == scores  # of two halves of the images, by one model


def test_a_calibration_changes_the_score_alone(folder):
    plain, calibrated = (load_file(folder / row / "model" / "model.safetensors") for row in ("spnet", "spnet_c"))
    assert all(torch.equal(plain[name], calibrated[name]) for name in plain)
    configs = [json.loads((folder / row / "model" / "config.json").read_text()) for row in ("spnet", "spnet_c")]
    assert [config["calibration"] for config in configs] == [0.0, load_recipe("scenes/spnet_c").model["calibration"]]


def test_finished_rows_are_not_trained_again(folder, tiny_dataset, monkeypatch):
    monkeypatch.setattr(comparison.Trainer, "run", lambda trainer: pytest.fail("trained again"))
    results = run_rows({row: short_recipe(row, tiny_dataset) for row in ROWS}, folder)
    assert list(results) == ROWS


def test_every_stage_is_scored_once_whoever_goes_on_from_it(tiny_dataset, tmp_path, monkeypatch):
    scored, score_stage = [], StageRun._score
    monkeypatch.setattr(
        StageRun, "_score", lambda stage: scored.append(stage.trainer.output_dir.name) or score_stage(stage)
    )
    recipes = {row: short_recipe(row, tiny_dataset) for row in ("spnet", "spnet_c", "cagnet_pi", "cagnet_pi_st")}
    results = run_rows(recipes, tmp_path)
    # A calibration changes scores, so the stage that was trained without one is scored with it.
    assert scored == ["spnet", "spnet_c", *["cagnet_pi"] * 2, *["cagnet_pi_st"] * 2]
    assert results["cagnet_pi_st"]["stages"][:2] == results["cagnet_pi"]["stages"]
    model, processor = load_model(tmp_path / "spnet_c" / "model")
    scores = score(model, processor, open_dataset(str(tiny_dataset), "test"), progress=False)
    assert {key: results["spnet_c"][key] for key in scores} == scores
    assert [stage["metrics"]["hIoU"] for stage in results["spnet_c"]["stages"]] == [scores["hIoU"]]


def test_a_changed_recipe_is_refused_with_its_key(folder, tiny_dataset):
    with pytest.raises(ValueError, match=r"the recipe changed in stages\.pretrain\.network\.lr"):
        run_rows({"spnet": short_recipe("spnet", tiny_dataset, "stages.pretrain.network.lr=1")}, folder)


# What continues what


@pytest.mark.parametrize("benchmark", ["pascal_voc", "pascal_context", "coco_stuff", "pascal_voc_edge", "scenes"])
def test_the_published_rows_share_what_they_have_in_common(benchmark):
    recipes = {row: load_recipe(f"{benchmark}/{row}") for row in ROWS}
    pairs = {(a, b) for a in ROWS for b in ROWS if a != b and continues(recipes[a], recipes[b])}
    expected = {(f"{row}_st", row) for row in ("spnet", "zs3net", "cagnet_pi", "cagnet_pa")}
    expected |= {("spnet_c", "spnet"), ("spnet_st", "spnet_c")}  # a calibration acts at test time alone
    assert pairs - {("spnet", "spnet_c")} == expected


@pytest.mark.parametrize(
    ("rows", "starts"),
    [
        (["spnet", "spnet_c", "cagnet_pi", "cagnet_pi_st", "zs3net"], {}),  # all that is shared is a row
        (["cagnet_pi", "cagnet_pi_st", "milder"], {"pretrain": ["pretrain"]}),
        (["cagnet_pi_st", "milder"], {"pretrain": ["pretrain"]}),
        (["cagnet_pi", "gaussian"], {"pretrain": ["pretrain"]}),
        (["cagnet_pi_st", "longer"], {"finetune": ["pretrain", "finetune"]}),
        (["cagnet_pi", "cagnet_pa", "noise", "zs3net"], {}),
    ],
)
def test_first_stages_that_rows_share_are_a_run_of_their_own(rows, starts):
    recipes = {row: load_recipe(f"scenes/{row}") for row in ROWS}
    recipes["milder"] = load_recipe("scenes/cagnet_pi", ["stages.finetune.unseen_rate=0.5"])
    recipes["longer"] = load_recipe("scenes/cagnet_pi_st", ["stages.self_train.iterations=1000"])
    recipes["noise"] = load_recipe("scenes/cagnet_pi", ["generator_latent=noise"])
    found = common_starts(recipes[row] for row in rows)
    assert {name.split("_")[0]: list(recipe.stages) for name, recipe in found.items()} == starts
    assert found.keys() == common_starts(recipes[row] for row in reversed(rows)).keys()


def test_variants_that_share_a_pretraining_give_the_weights_of_runs_of_their_own(tiny_dataset, tmp_path):
    keys = {"plain": [], "milder": ["stages.finetune.unseen_rate=0.5"]}
    recipes = {name: short_recipe("cagnet_pi", tiny_dataset, *changed) for name, changed in keys.items()}
    assert list(run_rows(recipes, tmp_path / "shared")) == ["plain", "milder"]
    assert len(list((tmp_path / "shared").glob("pretrain_*/metrics.json"))) == 1
    run_rows({"milder": recipes["milder"]}, tmp_path / "alone")
    alone, shared, plain = (
        load_file(tmp_path / run / "model" / "model.safetensors")
        for run in ("alone/milder", "shared/milder", "shared/plain")
    )
    assert all(torch.equal(alone[name], shared[name]) for name in shared)
    assert not all(torch.equal(plain[name], shared[name]) for name in shared)


def test_rows_and_seeds_share_the_features_of_a_resting_backbone(tiny_dataset, tmp_path, monkeypatch):
    frozen = ["feature_cache={}", "augmentation={scale_range: [1, 1], flip_probability: 0.5}"]
    frozen += ["stages.pretrain.scales=[1.0]", "stages.pretrain.network.multipliers.backbone=0"]
    computed, of = [], FeatureMaps.of

    def counted(self, samples, *arguments):
        return of(self, (computed.append(sample.id) or (number, sample) for number, sample in samples), *arguments)

    monkeypatch.setattr(FeatureMaps, "of", counted)
    new_model(tiny_recipe("spnet"))[0].save_pretrained(tmp_path / "weights")
    for seed in (0, 1):
        keys = [*frozen, f"seed={seed}", f"backbone_weights={tmp_path / 'weights'}", "stages.finetune.scales=[1.0]"]
        recipes = {"zs3net": short_recipe("zs3net", tiny_dataset, *keys)}
        recipes["spnet"] = short_recipe("spnet", tiny_dataset, *keys[:-1])
        run_rows(recipes, tmp_path / f"seed_{seed}", tmp_path / "features")
    assert len(computed) == len(set(computed)) == 18
    assert not list(tmp_path.glob("seed_*/*/features"))


def test_a_gaussian_generator_shares_the_network_of_cagnet(folder, tiny_dataset, tmp_path):
    run_rows({"gaussian": short_recipe("gaussian", tiny_dataset)}, tmp_path)
    assert len(list(folder.glob("pretrain_*"))) == 1
    alone, shared, cagnet = (
        load_file(run / "model" / "model.safetensors")
        for run in (tmp_path / "gaussian", folder / "gaussian", next(folder.glob("pretrain_*")))
    )
    assert all(torch.equal(alone[name], shared[name]) for name in shared)
    stages = [
        json.loads((run / "metrics.json").read_text())["stages"][0]
        for run in (folder / "gaussian", next(folder.glob("pretrain_*")))
    ]
    assert stages[0]["peak_memory_mib"] == stages[1]["peak_memory_mib"]
    network = [name for name in shared if name.startswith("cagnet.")]
    assert network and all(torch.equal(shared[name], cagnet[name]) for name in network)


def test_a_shared_start_serves_a_row_that_is_added_later(folder, tiny_dataset, tmp_path, monkeypatch):
    recipes = {row: short_recipe(row, tiny_dataset) for row in ("cagnet_pi", "gaussian")}
    for name in ("cagnet_pi", next(folder.glob("pretrain_*")).name):
        shutil.copytree(folder / name, tmp_path / name)
    trained, train = [], StageRun._train

    def noted(run, batches):
        trained.append((run.name, run.stage.iterations - run.state.iteration))
        train(run, batches)

    monkeypatch.setattr(StageRun, "_train", noted)
    run_rows(recipes, tmp_path)
    assert trained == [("pretrain", 0), ("fit", ITERATIONS)]


def test_where_an_earlier_stage_was_scored_with_another_calibration_nothing_is_continued():
    calibrated = ["model.calibration=0.5"]
    plain, other = load_recipe("scenes/cagnet_pi"), load_recipe("scenes/cagnet_pi", calibrated)
    assert not continues(other, plain)
    assert continues(other, load_recipe("scenes/cagnet_pi", ["until=pretrain"]))
    later = load_recipe("scenes/cagnet_pi", [*calibrated, "stages.pretrain.model.calibration=0"])
    assert continues(later, load_recipe("scenes/cagnet_pi", ["until=pretrain", "stages.pretrain.model.calibration=0"]))


def test_another_seed_continues_nothing():
    assert not continues(load_recipe("scenes/cagnet_pi_st", ["seed=1"]), load_recipe("scenes/cagnet_pi"))


@pytest.mark.parametrize("path", sorted((REPOSITORY / "scripts" / "ablations").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_ablation_is_a_changed_row(path):
    recipes = recipes_of(path.stem, read_variants(path))
    assert len({recipe.model_dump_json() for recipe in recipes.values()}) == len(recipes) > 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- cagnet_pi", "variants are a mapping"),
        ("../up: [cagnet_pi]", "'../up' is to name a folder"),
        ("one: cagnet_pi", "one: write [ROW, key=value, ...]"),
        ("one: [cagnet_pii]", "has no row 'cagnet_pii'; did you mean 'cagnet_pi'?"),
        ("one: [cagnet_pi, sead=1]", "did you mean 'seed'"),
    ],
)
def test_variants_that_cannot_be_read_are_refused(text, reason, load_script, tmp_path, capsys):
    (tmp_path / "variants.yaml").write_text(text)
    arguments = ["--benchmark", "scenes", "--variants", str(tmp_path / "variants.yaml")]
    assert load_script("compare").main([*arguments, "--output_dir", str(tmp_path / "out")]) == 2
    assert reason in capsys.readouterr().err


# The table


def test_published_numbers_are_fractions_of_every_row():
    for rows in published_results().values():
        assert list(rows) == sorted(rows, key=ROWS.index)
        assert rows.keys() == set(ROWS) - {"gaussian", "spnet_st"}
        for row in rows.values():
            assert set(row) == set(COLUMNS)
            assert all(0 <= value <= 1 for value in row.values())


def result(**values) -> dict:
    facts = {"seconds": 60.0, "protocol": "full", "num_images": 6}
    return dict.fromkeys(COLUMNS, 0.5) | facts | values


def test_the_table_gives_mean_and_interval_beside_the_published_numbers():
    rows = {"spnet": {"0": result(hIoU=0.1), "1": result(hIoU=0.3)}, "mine": {"0": result(hIoU=None)}}
    published = published_rows(load_recipe("pascal_voc_edge/spnet"))
    lines = comparison_table("pascal_voc_edge", rows, published).splitlines()
    assert lines[0].startswith(
        "| pascal_voc_edge, protocol full, 6 images | hIoU | mIoU | PA | MA | S-mIoU | U-mIoU |"
    )
    assert lines[2].startswith("| SPNet | 20.0 ± 127.1 | 50.0 ± 0.0 |")
    assert lines[3].startswith("| *published, full benchmark* | *0.0* | *56.9* |")
    assert lines[4].startswith("| mine | – |")


def test_differences_are_paired_by_seed_and_those_that_are_resolved_are_bold():
    def rows(seeds):
        own = {str(seed): result(hIoU=0.2 + 0.01 * seed) for seed in range(seeds)}
        better = {seed: result(hIoU=scores["hIoU"] + 0.05 + 0.002 * int(seed)) for seed, scores in own.items()}
        either = {seed: result(hIoU=scores["hIoU"] + 0.1 * (-1) ** int(seed)) for seed, scores in own.items()}
        return {"spnet": own, "zs3net": better, "mine": either}

    lines = differences_table(rows(8)).splitlines()
    assert lines[0] == "| hIoU: row less column | SPNet | ZS3Net |"
    assert lines[2] == "| ZS3Net | **+5.7 ± 0.4, p 0.008** |  |"
    assert lines[3].startswith("| mine | +0.0 ± 8.9, p 1.000 | −5.7 ± 9.0, p 0.")
    assert lines[5].startswith("Bold: p below 0.05") and "1 of 3 differences are resolved" in lines[5]
    few = differences_table(rows(5)).splitlines()
    assert few[2].startswith("| ZS3Net | +5.4 ± 0.4, p 0.062") and "cannot give a p value below 0.062" in few[5]
    assert not differences_table(rows(1))


def test_seeds_that_a_row_lacks_are_left_out_of_its_differences():
    rows = {"spnet": {str(seed): result(hIoU=0.1) for seed in range(3)}, "mine": {"2": result(hIoU=0.2)}}
    assert not differences_table(rows)
    rows["mine"] |= {"0": result(hIoU=None), "1": result(hIoU=0.3)}
    assert "| mine | +15.0 ± 63.5, p 0.500 |" in differences_table(rows)


@pytest.mark.parametrize("key", ["split=tuning", "supervised=true"])
def test_nothing_published_stands_beside_what_cannot_be_compared(key):
    assert published_rows(load_recipe("pascal_voc/cagnet_pi"))
    assert not published_rows(load_recipe("pascal_voc/cagnet_pi", [key]))
    assert not published_rows(load_recipe("scenes/cagnet_pi"))


def test_a_key_of_a_stage_changes_the_rows_that_have_it():
    keys = ["seed=3", "stages.pretrain.iterations=1", "stages.finetune.iterations=2"]
    recipes = recipes_of("scenes", {"one": ["spnet"], "two": ["zs3net", "seed=4"]}, keys)
    assert recipes == {
        "one": load_recipe("scenes/spnet", keys[:2]),
        "two": load_recipe("scenes/zs3net", [*keys, "seed=4"]),
    }


def test_the_command_writes_table_numbers_and_figure(folder, load_script, monkeypatch, capsys, charts):
    summaries = {row: json.loads((folder / row / "metrics.json").read_text()) for row in ("spnet", "cagnet_pi")}
    places = []

    def run(recipes, folder, features):
        places.append((folder, features))
        return {row: summaries[row] for row in recipes}

    monkeypatch.setattr(comparison, "run_rows", run)
    arguments = ["--benchmark", "scenes", "--rows", "spnet", "cagnet_pi", "--seeds", "10", "11"]
    output = folder / "table"
    output.mkdir()
    assert load_script("compare").main([*arguments, "--output_dir", str(output)]) == 0
    assert capsys.readouterr().out == (output / "comparison.md").read_text()
    written = json.loads((output / "comparison.json").read_text())
    assert written["rows"]["spnet"]["10"]["hIoU"] == summaries["spnet"]["hIoU"]
    assert len((output / "comparison.json").read_text().splitlines()) == 14  # a line for each run
    assert places == [(output / f"seed_{seed}", output / "features") for seed in (10, 11)]
    with Image.open(output / "comparison.png") as picture:
        assert picture.width > 400


def test_the_other_scores_of_every_row_are_a_table_of_their_own(load_script, tmp_path, monkeypatch, capsys, charts):
    background = dict.fromkeys(WITH_BACKGROUND, 0.25) | {"background_unlabelled": None}
    scores = {"paper": dict.fromkeys(COLUMNS, 0.5), "with_background": {"0.0": background, "0.9": background}}
    monkeypatch.setattr(comparison, "run_rows", lambda recipes, *_: {row: result() for row in recipes})
    monkeypatch.setattr(other_scores, "_measure", lambda *_: scores)
    (tmp_path / "seed_0" / "spnet" / "model").mkdir(parents=True)
    (tmp_path / "seed_0" / "spnet" / "model" / "config.json").write_text("{}")
    arguments = ["--benchmark", "scenes", "--rows", "spnet", "--output_dir", str(tmp_path), "--all_scores"]
    assert load_script("compare").main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    with_background = "25.0 | 25.0 | 25.0 | 25.0 | –"
    assert lines[-1] == f"| SPNet | 50.0 | 50.0 | 50.0 | {with_background} | {with_background} |"
    assert lines[-3].count("|") == lines[-2].count("|") == lines[-1].count("|")
    assert "with background, min_score 0.9: background_IoU" in lines[-3]
    written = json.loads((tmp_path / "comparison.json").read_text())["other_scores"]["spnet"]["0"]
    assert written == {"paper": scores["paper"], "with_background 0.0": background, "with_background 0.9": background}


@pytest.mark.parametrize("given", ["folder", "key"])
def test_a_benchmark_of_one_s_own_is_compared_and_gives_the_table_its_name(
    given, load_script, tmp_path, monkeypatch, capsys, charts
):
    table = format_class_table(load_benchmark("scenes")).replace("name: scenes", "name: fa|rm", 1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "classes.yaml").write_text(table)
    compared = {}
    monkeypatch.setattr(comparison, "run_rows", lambda recipes, *_: compared.update(recipes) or {"spnet": result()})
    benchmark = {
        "folder": ["--benchmark", str(tmp_path / "data")],
        "key": ["--benchmark", "pascal_voc_frozen", "--set", f"benchmark={tmp_path / 'data'}"],
    }
    arguments = [*benchmark[given], "--rows", "spnet", "--output_dir", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    assert load_script("compare").main(arguments) == 0
    assert compared["spnet"] == load_recipe("pascal_voc_frozen/spnet", [f"benchmark={tmp_path / 'data'}"])
    title = "fa|rm with recipes of pascal_voc_frozen"
    assert capsys.readouterr().out.startswith("| " + title.replace("|", r"\|") + ", protocol full, 6 images | hIoU")
    assert json.loads((tmp_path / "out/comparison.json").read_text())["benchmark"] == title


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--benchmark", "scene"], "no benchmark 'scene'; did you mean 'scenes'?; known: coco_stuff"),
        (["--benchmark", "scenes", "--rows", "spnett"], "has no row 'spnett'; did you mean 'spnet'?"),
        (["--benchmark", "scenes", "--rows", "spnet", "--set", "sead=1"], "did you mean 'seed'"),
        (["--benchmark", "scenes", "--variants", "absent.yaml"], "absent.yaml: cannot be read"),
        (["--benchmark", "scenes", "--variants", "absent.yaml", "--rows", "spnet"], "exclude each other"),
        (
            ["--benchmark", "scenes", "--rows", "spnet", "--set", "stages.finetune.iterations=1"],
            "none of the rows has",
        ),
    ],
)
def test_the_command_refuses_before_it_trains(arguments, reason, load_script, tmp_path, capsys):
    output = tmp_path / "out"
    assert load_script("compare").main([*arguments, "--output_dir", str(output)]) == 2
    assert reason in capsys.readouterr().err
    assert not output.exists()
