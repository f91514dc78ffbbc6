"""The numbers of README.md are those of the metrics files that the commands wrote."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from cagnet_hf.apps.comparison import read_variants

REPOSITORY = Path(__file__).resolve().parents[1]
CARDS = REPOSITORY / "model_cards"
COLUMNS = ("S-mIoU", "U-mIoU", "hIoU", "mIoU", "PA", "MA", "U-PA", "U-MA")


def block(path: Path, name: str) -> str:
    return re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", path.read_text("utf-8"), re.S).group(1)


def test_the_tables_are_made_from_the_metrics_files(load_script):
    script = load_script("results_table")
    assert block(REPOSITORY / "README.md", "results") == script.results_table(CARDS)
    for folder in (CARDS / "scenes", CARDS / "pascal_voc_edge"):
        assert block(CARDS / "README.md", folder.name) == script.study_table(folder)
    assert block(CARDS / "README.md", "self-training") == script.self_training_table(CARDS)
    for name, compared in script.comparisons(CARDS).items():
        assert block(CARDS / "frozen.md", name) == script.comparison_block(name, compared)
    made = script.made_features_table(CARDS / "frozen" / "made_features.json")
    assert block(CARDS / "frozen.md", "made features") == made
    rows = script.comparisons(CARDS)["pascal_voc"]["rows"]
    prior = script.image_prior_table(CARDS / "frozen" / "image_prior.json", rows)
    assert block(CARDS / "frozen.md", "image prior") == prior
    for study in ("contexts", "schedules"):
        assert block(CARDS / "frozen.md", study) == script.rested_table(CARDS / "frozen" / f"{study}.json")
    assert json.loads(script.MEASURED.read_text("utf-8")) == script.measured(CARDS)


def test_a_benchmark_s_table_has_both_protocols_and_what_training_took(load_script, tmp_path):
    run = json.loads((CARDS / "scenes" / "spnet_seed10.json").read_text("utf-8"))
    stages = [stage | {"peak_memory_mib": 2048} for stage in run["stages"]]
    run["stages"] = [stage | {"peak_memory_mib": 0} for stage in run["stages"]]  # not measured
    other = run | {"hIoU": run["hIoU"] + 0.1, "stages": stages, "seconds": 90}
    for name, metrics in {"mine_seed0": run | {"seconds": 30}, "mine_seed1": other, "spnet_tuning": run}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(metrics))
    (tmp_path / "mine_seed0_paper.json").write_text(json.dumps(run | {"U-mIoU": 0.25}))
    (tmp_path / "mine_tuning.json").write_text(json.dumps(run | {"hIoU": 0.125}))
    _, _, line = load_script("results_table").study_table(tmp_path).splitlines()
    cells = line.strip("| ").split(" | ")
    assert cells[:2] == ["mine", "2"]
    assert cells[4].endswith(f"({run['hIoU']:.3f}–{run['hIoU'] + 0.1:.3f})")
    assert cells[8] == "0.250"
    assert cells[10:] == ["0.125", "1.0 (0.5–1.5)", "2.0"]


@pytest.mark.parametrize("path", sorted(CARDS.glob("*/ablations.json")), ids=lambda path: path.parent.name)
def test_the_ablations_are_those_of_the_variants(path, load_script):
    assert block(CARDS / "README.md", f"{path.parent.name} ablations") == load_script("results_table").ablation_table(
        path
    )
    variants = read_variants(REPOSITORY / "scripts/ablations" / f"{path.parent.name}.yaml")
    assert json.loads(path.read_text("utf-8"))["variants"] == variants


def test_a_variant_s_line_says_what_was_changed_and_what_that_did_seed_by_seed(load_script, tmp_path):
    runs = {
        "cagnet_pi": {
            "10": {"S-mIoU": 0.5, "U-mIoU": 0.5, "hIoU": 0.5},
            "11": {"S-mIoU": 0.25, "U-mIoU": 0.25, "hIoU": 0.25},
        },
        "noise": {
            "10": {"S-mIoU": 0.5, "U-mIoU": 0.25, "hIoU": 0.375},
            "11": {"S-mIoU": 0.5, "U-mIoU": 0.5, "hIoU": 0.5},
        },
    }
    variants = {"cagnet_pi": ["cagnet_pi"], "noise": ["cagnet_pi", "generator_latent=noise"]}
    (tmp_path / "ablations.json").write_text(json.dumps({"variants": variants, "rows": runs}))
    head, _, unchanged, noise = load_script("results_table").ablation_table(tmp_path / "ablations.json").splitlines()
    assert head.endswith("| hIoU | hIoU − that of `cagnet_pi` |")
    assert unchanged.endswith("| 10, 11 | 0.375 (0.250–0.500) | 0.375 (0.250–0.500) | 0.375 (0.250–0.500) | – |")
    assert noise == (
        "| noise | CaGNet(pi) | `generator_latent=noise` | 10, 11 | 0.500 (0.500–0.500) | 0.375 (0.250–0.500) | "
        "0.438 (0.375–0.500) | +0.062 (−0.125, +0.250) |"
    )


def test_the_study_on_cells_has_a_line_for_every_variant(load_script, tmp_path):
    def run(hiou, **latent):
        probes = {"seen": {"probe_accuracy": 0.75}} if latent else {}  # of unseen classes there were too few cells
        return {"S-mIoU": 0.5, "U-mIoU": 0.25, "hIoU": hiou, "hIoU_at_best_offset": hiou + 0.1} | latent | probes

    latent = {"nats_per_channel": None, "variance_from_image": 1.0, "class_from_latent": 0.0688}
    variants = {"noise": {"0": run(0.3, **latent), "1": run(0.4, **latent)}, "bank": {"0": run(0.25, **latent)}}
    for contexts in (True, False):
        if not contexts:
            variants = {name: {seed: run(one["hIoU"]) for seed, one in of.items()} for name, of in variants.items()}
        (tmp_path / "study.json").write_text(json.dumps({"variants": variants}))
        lines = load_script("results_table").rested_table(tmp_path / "study.json").splitlines()
        head, _, noise, bank, _, said = lines
        assert head.count("|") == noise.count("|") == bank.count("|")
        start = "| noise | 2 | 0.500 ± 0.000 | 0.250 ± 0.000 | 0.350 ± 0.635 | 0.450 ± 0.635 | 0.071 | – | – |"
        assert noise.startswith(start)
        assert bank.startswith("| bank | 1 | 0.500 | 0.250 | 0.250 | 0.350 | – | −5.0, p 1.000 | −5.0, p 1.000 |")
        assert bank.endswith("| – | 1 | 0.069 | 0.75 | – |") == contexts
        assert said.startswith("Nothing is resolved: 1 seeds")


def test_what_self_training_does_is_told_apart_from_what_follows(load_script, tmp_path):
    def run(*stages):
        return {"stages": [{"name": name, "metrics": {"hIoU": score}} for name, score in stages]}

    short = [("finetune", 0.25), ("self_train", 0.5)]
    (tmp_path / "scenes").mkdir()
    for name, stages in {
        "zs3net_seed0": short[:1],
        "zs3net_st_seed0": short,
        "cagnet_pi_st_seed0": [*short, ("finetune_after_self_train", 0.125)],
        "cagnet_pi_st_seed1": [*short, ("finetune_after_self_train", 0.625)],
    }.items():
        (tmp_path / "scenes" / f"{name}.json").write_text(json.dumps(run(*stages)))
    assert load_script("results_table").self_training_table(tmp_path).splitlines()[2:] == [
        "| `scenes` | ZS3Net+ST | +0.250 | – |",
        "| `scenes` | CaGNet(pi)+ST | +0.250 (+0.250, +0.250) | +0.125 (−0.125, +0.375) |",
    ]


@pytest.mark.parametrize(
    ("difference", "shown"), [([0.0004], "+0.000"), ([-0.0004], "+0.000"), ([-0.25, 0.0], "−0.125 (−0.250, +0.000)")]
)
def test_a_difference_has_a_sign_and_nothing_is_no_loss(difference, shown, load_script):
    assert load_script("results_table").differences(difference) == shown


@pytest.mark.parametrize("folder", [CARDS / "scenes", CARDS / "pascal_voc_edge"], ids=lambda folder: folder.name)
def test_both_protocols_score_the_same_runs(folder):
    runs = {path.stem for path in folder.glob("*_seed*.json")}
    assert {run.removesuffix("_paper") for run in runs if run.endswith("_paper")} == {
        run for run in runs if not run.endswith("_paper")
    }


def test_the_cards_are_made_from_metrics_and_recipes(load_script):
    cards = load_script("results_table").cards_of_runs(CARDS)

    assert {path: path.read_text("utf-8") for path in sorted(CARDS.glob("*/*_seed*.md"))} == cards
    for path in cards:
        scores = {result.metric_name: result.metric_value for result in ModelCard.load(path).data.eval_results}
        metrics = json.loads(path.with_suffix(".json").read_text("utf-8"))
        assert scores == {f"{name} (protocol full)": metrics[name] for name in COLUMNS}


@pytest.mark.parametrize("path", sorted(CARDS.glob("*/*_seed*.json")), ids=lambda path: path.stem)
def test_a_metrics_file_is_consistent_in_itself(path):
    metrics = json.loads(path.read_text("utf-8"))
    seen, unseen = metrics["S-mIoU"], metrics["U-mIoU"]

    assert metrics["hIoU"] == pytest.approx(2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0)
    for group, is_seen in (("S-mIoU", True), ("U-mIoU", False)):
        values = [c["iou"] for c in metrics["per_class"].values() if c["seen"] is is_seen and c["iou"] is not None]
        assert metrics[group] == pytest.approx(sum(values) / len(values))
