"""To the Hub and back: what is pushed opens elsewhere with the numbers it had here; what cannot be, says so."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import OWNER, READ_TOKEN, STRANGER_TOKEN, HubServer
from huggingface_hub import HfApi, ModelCard
from original_checkpoints import tiny, tiny_trunk
from PIL import Image
from safetensors.torch import load_file
from test_architecture import TRAVELLING
from trained import arguments
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from cagnet_hf import METRIC_PATH
from cagnet_hf.data.sources import open_prepared
from cagnet_hf.weights.folders import load_model

MODEL, DATASET, METRIC = f"{OWNER}/cagnet-scenes", f"{OWNER}/scenes-data", f"{OWNER}/zero_shot_segmentation"
SCORES = ("S-mIoU", "U-mIoU", "hIoU", "mIoU", "PA", "MA", "U-PA", "U-MA")

# Runs in a process of its own, in an empty folder: `python -c ELSEWHERE commit`.
ELSEWHERE = f"""
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "cagnet_hf":
            raise ImportError("cagnet_hf is not installed here")

sys.meta_path.insert(0, Refuse())

import evaluate, torch
from datasets import load_dataset
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

image, remote = Image.open("image.png"), {{"trust_remote_code": True}}
logits = {{}}
for name, where in (("main", {{}}), ("pinned", {{"revision": sys.argv[1]}})):
    processor = AutoImageProcessor.from_pretrained({MODEL!r}, **remote, **where)
    model = AutoModelForSemanticSegmentation.from_pretrained({MODEL!r}, **remote, **where)
    with torch.no_grad():
        logits[name] = model(**processor(images=image, return_tensors="pt")).logits.contiguous()
save_file(logits, "logits.safetensors")
segments = pipeline("image-segmentation", model={MODEL!r}, revision=sys.argv[1], **remote)(image)
dataset = load_dataset({DATASET!r})
metric = evaluate.load({METRIC!r}, num_labels=3, seen_ids=[0, 1], unseen_ids=[2])
metric.add_batch(predictions=[[[0, 1], [2, 0]]], references=[[[0, 1], [2, 2]]])
facts = {{
    "pixels": {{segment["label"]: segment["mask"].histogram()[255] for segment in segments}},
    "splits": {{split: rows.num_rows for split, rows in dataset.items()}},
    "first": [dataset["test"].column_names, dataset["test"][0]["image"].size, dataset["test"][0]["mask"].mode],
    "U-mIoU": metric.compute()["U-mIoU"],
}}
open("facts.json", "w").write(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server
    assert server.unknown == []


@pytest.fixture
def here(hub, tmp_path, monkeypatch):
    """This process takes the server for the Hub; `here(token)` changes the token."""

    def stand_in(token):
        hub.stand_in(monkeypatch, tmp_path / "hf", token)

    hub.stand_in(monkeypatch, tmp_path / "hf")
    return stand_in


@pytest.fixture
def push(here, load_script, capsys):
    """`push(folder, *arguments)`: (exit code, what was printed, error lines) of push_to_hub.py."""

    def run(folder, *arguments, repo_id=MODEL):
        code = load_script("push_to_hub").main(["--model", str(folder), "--repo_id", repo_id, *arguments])
        printed = capsys.readouterr()
        return code, printed.out, [line for line in printed.err.replace("\r", "\n").splitlines() if "error" in line]

    return run


@pytest.fixture(scope="module")
def image(tiny_dataset) -> Image.Image:
    return open_prepared(tiny_dataset, split="test")[0]["image"].convert("RGB")


@pytest.fixture(scope="module")
def commits(hub, trained_run, tiny_dataset, load_script, tmp_path_factory) -> list[str]:
    """Two commits of the model, the second of weights that are all zero; a dataset and the metric beside it."""
    folder = tmp_path_factory.mktemp("pushed")
    with pytest.MonkeyPatch.context() as patch:
        hub.stand_in(patch, folder / "hf")
        main, api = load_script("push_to_hub").main, HfApi()
        assert main(["--model", str(trained_run / "model"), "--repo_id", MODEL.split("/")[1]]) == 0
        model, _ = load_model(str(trained_run / "model"))
        for parameter in model.parameters():
            parameter.data.zero_()
        shutil.copytree(trained_run / "model", folder / "zero")
        model.save_pretrained(folder / "zero")
        assert main(["--model", str(folder / "zero"), "--repo_id", MODEL]) == 0
        api.create_repo(DATASET, repo_type="dataset")
        api.upload_folder(repo_id=DATASET, repo_type="dataset", folder_path=tiny_dataset)
        api.create_repo(METRIC, repo_type="space", space_sdk="gradio")
        api.upload_folder(repo_id=METRIC, repo_type="space", folder_path=METRIC_PATH, allow_patterns="*.py")
    return list(hub.repositories["models", MODEL].commits)[1:]


@pytest.fixture(scope="module")
def elsewhere(hub, commits, image, tmp_path_factory) -> Path:
    """What a new process without this package made of the repositories."""
    folder = tmp_path_factory.mktemp("elsewhere")
    image.save(folder / "image.png")
    environment = {**os.environ, **hub.environment(folder / "hf", READ_TOKEN), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", ELSEWHERE, commits[0]]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


@torch.no_grad()
def logits_of(model_path, image) -> torch.Tensor:
    model, processor = load_model(str(model_path))
    return model(**processor(images=image, return_tensors="pt")).logits


# Elsewhere


@torch.no_grad()
@pytest.mark.usefixtures("one_thread")
def test_logits_elsewhere_are_those_of_the_pinned_commit(elsewhere, trained_run, image):
    model = AutoModelForSemanticSegmentation.from_pretrained(trained_run / "model")
    processor = AutoImageProcessor.from_pretrained(trained_run / "model")
    logits = load_file(elsewhere / "logits.safetensors")
    assert torch.equal(logits["pinned"], model(**processor(images=image, return_tensors="pt")).logits)
    assert not logits["main"].any()


def test_the_pipeline_elsewhere_covers_the_image(elsewhere, image, trained_run):
    pixels = json.loads((elsewhere / "facts.json").read_text())["pixels"]
    assert sum(pixels.values()) == image.width * image.height
    assert pixels.keys() <= json.loads((trained_run / "metrics.json").read_text())["per_class"].keys()


def test_a_prepared_dataset_elsewhere(elsewhere, image):
    facts = json.loads((elsewhere / "facts.json").read_text())
    assert facts["splits"] == {"train": 12, "test": 6}
    assert facts["first"] == [["image", "mask", "image_id"], [image.width, image.height], "L"]


def test_the_metric_elsewhere(elsewhere):
    assert json.loads((elsewhere / "facts.json").read_text())["U-mIoU"] == 0.5


# With the package, by id


def test_the_package_opens_a_commit_by_id(commits, here, trained_run, image):
    assert torch.equal(logits_of(f"{MODEL}@{commits[0]}", image), logits_of(trained_run / "model", image))
    assert not logits_of(MODEL, image).any()


def test_predict_takes_an_id(commits, here, load_script, trained_run, image, tmp_path):
    image.save(tmp_path / "photo.png")
    for model, output in ((trained_run / "model", "folder"), (f"{MODEL}@{commits[0]}", "id")):
        command = ["--model", str(model), str(tmp_path / "photo.png"), "--output", str(tmp_path / output)]
        assert load_script("predict").main(command) == 0
    assert (tmp_path / "id" / "photo.png").read_bytes() == (tmp_path / "folder" / "photo.png").read_bytes()


def test_evaluate_takes_an_id(commits, here, load_script, trained_run, tiny_dataset, tmp_path):
    def scores(dataset) -> dict:
        command = ["--model", f"{MODEL}@{commits[0]}", "--dataset", dataset, "--output", str(tmp_path / "scores.json")]
        assert load_script("evaluate").main(command) == 0
        return json.loads((tmp_path / "scores.json").read_text())

    trained = json.loads((trained_run / "metrics.json").read_text())
    assert scores(str(tiny_dataset)).items() <= trained.items()
    assert scores("scenes:10")["num_images"] == 160


@pytest.mark.parametrize(
    ("model", "token", "reason"),
    [
        (f"{OWNER}/absent", READ_TOKEN, "no such model on the Hub"),
        ("absent", READ_TOKEN, "no such model on the Hub"),
        (f"{OWNER}/secret", STRANGER_TOKEN, "no such model on the Hub that you may see"),
        (f"{OWNER}/secret", None, "hf auth login"),
        (f"{MODEL}@{'0' * 40}", READ_TOKEN, f"no revision '{'0' * 40}'"),
        ("two words", READ_TOKEN, "no id for the Hub"),
    ],
)
def test_a_model_that_cannot_be_opened_is_told_in_one_line(commits, here, model, token, reason, hub):
    HfApi().create_repo(f"{OWNER}/secret", private=True, exist_ok=True)
    here(token)
    with pytest.raises(ValueError, match=reason) as refusal:
        load_model(model)
    assert "\n" not in str(refusal.value)


def test_without_a_connection_the_cache_serves(commits, here, monkeypatch, image):
    logits = logits_of(MODEL, image)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert torch.equal(logits_of(MODEL, image), logits)
    with pytest.raises(ValueError, match="the Hub cannot be reached, and no copy is in the cache"):
        load_model(f"{OWNER}/other")


# The page


@pytest.fixture
def page(commits, hub) -> tuple[ModelCard, dict[str, bytes]]:
    files = hub.repositories["models", MODEL].commits[commits[0]]
    contents = {path: blob.content for path, blob in files.items()}
    return ModelCard(contents["README.md"].decode()), contents


def test_one_commit_holds_model_code_processor_card_recipe_metrics_and_figures(page):
    assert page[1].keys() == {
        *("model.safetensors", "config.json", "preprocessor_config.json", "README.md", "recipe.yaml", "metrics.json"),
        *(f"{name}.py" for name in TRAVELLING),
        *(f"figures/{name}.png" for name in ("losses", "per_class_iou", "confusion", "predictions")),
    }


def test_the_scores_are_read_back_equal(page, trained_run):
    metrics = json.loads((trained_run / "metrics.json").read_text())
    results = page[0].data.eval_results
    assert {r.metric_type: r.metric_value for r in results} == {name.lower(): metrics[name] for name in SCORES}
    assert {(r.dataset_split, r.metric_args["protocol"], r.metric_args["calibration"]) for r in results} == {
        ("test", "full", 0.0)
    }
    assert all(r.metric_name.endswith("(protocol full)") for r in results)


def test_the_card_has_classes_vectors_figures_limits_citation_and_time(page, trained_run):
    card, files = page
    metrics = json.loads((trained_run / "metrics.json").read_text())
    for name, scores in metrics["per_class"].items():
        row = next(line for line in card.text.splitlines() if f"| {name} |" in line)
        assert ("**unseen**" in row) is not scores["seen"]
        assert f"| {scores['pixels']:,} |" in row
    assert "| attributes |" in card.text
    assert f"{metrics['seconds']:,.0f} s of training" in card.text
    for heading in ("Intended use and limits", "Licence", "Citation"):
        assert f"## {heading}" in card.text
    assert all(path in card.text for path in files if path.startswith("figures/"))
    assert f'from_pretrained("{MODEL}", trust_remote_code=True)' in card.text


def test_the_code_on_the_card_runs(page, here, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image.save("image.jpg")
    names = {}
    exec(re.search(r"```python\n(.*?)```", page[0].text, re.DOTALL)[1], names)
    assert names["label_map"].shape == (image.height, image.width)


def test_nothing_tells_where_the_run_lay(page, trained_run, tiny_dataset):
    texts = [content for path, content in page[1].items() if Path(path).suffix in (".md", ".yaml", ".json")]
    assert not [text for text in texts if str(tiny_dataset.parent).encode() in text]
    assert not [text for text in texts if str(trained_run.parent).encode() in text]


def test_a_pushed_recipe_is_whole(page):
    recipe = yaml.safe_load(page[1]["recipe.yaml"])
    assert (recipe["content_loss"], recipe["dataset"]) == ("mmd", "scenes")


@pytest.fixture
def run_copy(trained_run, tmp_path):
    shutil.copytree(trained_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    return tmp_path / "run"


def test_a_licence_and_a_later_calibration_stand_on_the_card(push, run_copy, hub):
    config = json.loads((run_copy / "model" / "config.json").read_text())
    (run_copy / "model" / "config.json").write_text(json.dumps(config | {"calibration": 0.5}))
    assert push(run_copy / "model", "--license", "mit", repo_id=f"{OWNER}/calibrated")[0] == 0
    card = ModelCard(hub.files(f"{OWNER}/calibrated")["README.md"].decode())
    assert card.data.license == "mit"
    assert "saved with γ = 0.5" in card.text
    assert card.data.eval_results is None  # not announced as this model's


def test_numbers_of_other_classes_are_not_claimed(push, run_copy, hub):
    metrics = json.loads((run_copy / "metrics.json").read_text())
    metrics["per_class"]["zebra"] = metrics["per_class"].pop("red striped disc")
    (run_copy / "metrics.json").write_text(json.dumps(metrics))
    assert push(run_copy / "model", repo_id=f"{OWNER}/other-classes")[0] == 0
    files = hub.files(f"{OWNER}/other-classes")
    assert "metrics.json" not in files
    assert b"zebra" not in files["README.md"]
    assert b"figures/" not in files["README.md"]


def test_files_that_are_no_part_of_a_model_stay_at_home(push, run_copy, hub):
    (run_copy / "model" / ".env").write_text("HF_TOKEN=secret")
    (run_copy / "model" / "notes.txt").write_text("secret")
    assert push(run_copy / "model", repo_id=f"{OWNER}/clean")[0] == 0
    assert not {".env", "notes.txt"} & hub.files(f"{OWNER}/clean").keys()


# Training that ends on the Hub


def test_train_pushes_what_it_trained(here, trained_run, tiny_dataset, load_script, hub, tmp_path, capsys):
    shutil.copytree(trained_run, tmp_path / "run")
    command = [*arguments(tiny_dataset, tmp_path / "run", resume=True), "--push_to_hub", f"{OWNER}/trained"]
    assert load_script("train").main(command) == 0
    files = hub.files(f"{OWNER}/trained")
    assert files["model.safetensors"] == (trained_run / "model" / "model.safetensors").read_bytes()
    assert f"{hub.url}/{OWNER}/trained/commit/" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["", "backbone_weights=resnet.pth"])
def test_train_refuses_before_it_trains(here, key, tiny_dataset, load_script, hub, tmp_path, capsys):
    here(STRANGER_TOKEN)
    command = [*arguments(tiny_dataset, tmp_path / "run", *filter(None, [key])), "--push_to_hub", f"{OWNER}/refused"]
    assert load_script("train").main(command) == 2
    assert ("--license" if key else "may not write") in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert ("models", f"{OWNER}/refused") not in hub.repositories


# What is not pushed


@pytest.mark.parametrize(
    ("repo_id", "token", "reason"),
    [
        ("a/b/c", READ_TOKEN, "'a/b/c' is no id for the Hub: write owner/name"),
        ("model", None, "no token for the Hub: run `hf auth login`, or set HF_TOKEN"),
        ("model", "hf_forged", "does not accept your token"),
        ("model", READ_TOKEN, "your token may not write there"),
        (f"{OWNER}/model", STRANGER_TOKEN, "your token may not write there"),
        (MODEL, STRANGER_TOKEN, "your token may not write there"),
    ],
)
def test_who_may_not_push_is_told_in_one_line(commits, push, here, trained_run, repo_id, token, reason):
    here(token)
    code, _, errors = push(trained_run / "model", repo_id=repo_id)
    assert (code, len(errors)) == (2, 1)
    assert reason in errors[0]


def test_no_connection_is_told_in_one_line(push, trained_run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    code, _, errors = push(trained_run / "model")
    assert (code, len(errors)) == (2, 1)
    assert "cannot reach http://127.0.0.1:9" in errors[0]


def test_a_public_repository_is_not_taken_for_a_private_one(commits, push, trained_run):
    code, _, errors = push(trained_run / "model", "--private")
    assert (code, len(errors)) == (2, 1)
    assert f"{MODEL} is public already" in errors[0]


def test_a_private_repository_is_made_private(push, trained_run, hub):
    assert push(trained_run / "model", "--private", repo_id="hidden")[0] == 0
    assert hub.repositories["models", f"{OWNER}/hidden"].private


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("absent", "no such folder"),
        ("empty", "no model in this folder"),
        ("run", "did you mean"),
        ("cut", "damaged"),
        ("nameless", "nothing says what this model is"),
    ],
)
def test_what_is_no_model_is_refused(push, run_copy, folder, reason, tmp_path):
    (tmp_path / "empty").mkdir()
    if folder in ("cut", "nameless"):
        shutil.copytree(run_copy / "model", tmp_path / folder)
        (tmp_path / folder / "README.md").unlink()
    if folder == "cut":
        weights = tmp_path / "cut" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    code, _, errors = push(tmp_path / folder)
    assert (code, len(errors)) == (2, 1)
    assert reason in errors[0]


@pytest.fixture(params=["segmenter", "backbone"])
def converted(request, load_script, tmp_path, capsys) -> Path:
    torch.save(tiny() if request.param == "segmenter" else tiny_trunk(), tmp_path / "original.pth")
    command = [str(tmp_path / "original.pth"), "--output", str(tmp_path / "converted")]
    assert load_script("convert_checkpoint").main(command) == 0
    capsys.readouterr()
    return tmp_path / "converted"


def test_a_converted_checkpoint_is_pushed_with_a_licence_only(push, converted, hub, request):
    repo_id = f"{OWNER}/{request.node.callspec.id}"
    code, _, errors = push(converted, repo_id=repo_id)
    assert (code, len(errors)) == (2, 1)
    assert "--license" in errors[0]
    assert ("models", repo_id) not in hub.repositories
    assert push(converted, "--license", "cc-by-nc-4.0", repo_id=repo_id)[0] == 0
    card = ModelCard(hub.files(repo_id)["README.md"].decode())
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.eval_results is None
    assert "## Origin" in card.text
    # Saved anew, without its card, it is still someone else's.
    shutil.copytree(converted, converted.with_name("again"))
    (converted.with_name("again") / "README.md").write_text("A card of mine.")
    assert push(converted.with_name("again"))[0] == 2
    assert f'from_pretrained("{repo_id}", trust_remote_code=True)' in card.text
