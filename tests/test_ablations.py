"""The scripts under scripts/ablations: what they measure."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny import new_model, noise_batch, tiny_recipe
from tiny_encoders import write_bert, write_clip, write_clipseg
from transformers import AutoImageProcessor, AutoTokenizer, CLIPSegForImageSegmentation

from cagnet_hf import CaGNetForSemanticSegmentation, CaGNetImageProcessor
from cagnet_hf.data.benchmarks import format_class_table, load_benchmark
from cagnet_hf.data.sources import open_dataset
from cagnet_hf.evaluation.scoring import score
from cagnet_hf.evaluation.zero_shot_segmentation.confusion_matrix import ConfusionMatrix

# Patch layouts


def test_a_pixel_cnn_that_was_shown_the_answer_knows_less_without_it(tiny_dataset, tmp_path, load_script, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(12, (1200, 2, 1, 1), generator=generator)  # the upper rows' class and the last one's
    rows = torch.where(torch.arange(3)[:, None] < 2, classes[:, :1], classes[:, 1:])  # (1200, 1, 3, 1)
    patches = rows.expand(-1, -1, -1, 3).squeeze(1).contiguous()
    monkeypatch.setattr("cagnet_hf.patches.layouts.collect_patches", lambda *_: patches)
    output = tmp_path / "layouts.json"
    keys = ["patches.epochs=4", "patches.bank_size=8", "patches.learning_rate=0.01", f"dataset={tiny_dataset}"]
    arguments = ["--recipe", "scenes/cagnet_pa", "--output", str(output), *keys]
    assert load_script("ablations/patch_layouts").main(arguments) == 0
    report = json.loads(output.read_text())
    causal, shown = report["first"], report["patch"]
    assert causal["held_out_nats_given_the_first_class"] == causal["held_out_nats"]
    assert shown["held_out_nats"] < causal["held_out_nats"] < shown["held_out_nats_given_the_first_class"]
    assert report["several_classes"] == pytest.approx(11 / 12, abs=0.05)


def test_patch_layouts_of_a_pixel_wise_row_are_refused(tmp_path, load_script, capsys):
    arguments = ["--recipe", "scenes/cagnet_pi", "--output", str(tmp_path / "layouts.json")]
    assert load_script("ablations/patch_layouts").main(arguments) == 2
    assert "works pixel by pixel" in capsys.readouterr().err


# The contextual latent


def talkative_model():
    """A model whose latent says much about the image, in evaluation mode."""
    model, _ = new_model(tiny_recipe("cagnet_pi"))
    for convolution in model.modules():
        if isinstance(convolution, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(convolution.weight)
    with torch.no_grad():
        model.cagnet.context.mean.weight.mul_(3)
        model.cagnet.context.log_variance.weight.mul_(0.3)
    return model.eval()


def test_a_latent_is_described_as_training_would_draw_it(load_script):
    model, images = talkative_model(), noise_batch()["pixel_values"]
    context, batches = model.cagnet.context, (images[:1], images[1:, :, :-16, :-24])  # every cell weighs alike
    with torch.inference_mode():
        with load_script("ablations/context_latent").watch_latent(context) as statistics:
            for batch in batches:
                model(batch)
        context.train()
        outputs = [model.cagnet(batch) for batch in batches]
    mean = torch.cat([output.latent_mean.double().movedim(1, -1).flatten(0, -2) for output in outputs])
    log_variance = torch.cat([output.latent_log_variance.double().movedim(1, -1).flatten(0, -2) for output in outputs])
    variance = log_variance.exp()
    divergence = 0.5 * (mean.square() + variance - 1 - log_variance).mean()
    of_image = mean.var(0, correction=0)
    share = of_image.sum() / (of_image + variance.mean(0)).sum()
    assert 0.01 < share < 0.99
    assert statistics() == {
        "divergence_nats_per_channel": pytest.approx(divergence.item(), rel=1e-4),
        "variance_from_image": pytest.approx(share.item(), rel=1e-4),
    }


def test_scores_without_context_are_those_of_a_latent_of_zeros(load_script, tiny_dataset, tmp_path):
    model, processor = talkative_model(), CaGNetImageProcessor()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    output = tmp_path / "latent.json"
    arguments = ["--model", str(tmp_path / "model"), "--dataset", str(tiny_dataset), "--output", str(output)]
    assert load_script("ablations/context_latent").main(arguments) == 0
    report, dataset = json.loads(output.read_text()), open_dataset(str(tiny_dataset), "test")
    model = CaGNetForSemanticSegmentation.from_pretrained(tmp_path / "model")

    def is_scored_as(scores: dict) -> bool:
        metrics = score(model, processor, dataset, progress=False)
        return scores == {column: metrics[column] for column in scores}

    assert is_scored_as(report["with_context"])
    model.cagnet.context.mean.register_forward_hook(lambda module, inputs, mean: torch.zeros_like(mean))
    assert is_scored_as(report["without_context"])
    assert report["with_context"] != report["without_context"]


def test_a_model_without_contextual_module_is_refused(load_script, tiny_dataset, tmp_path, capsys):
    model, _ = new_model(tiny_recipe("spnet"))
    model.save_pretrained(tmp_path / "model")
    CaGNetImageProcessor().save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--dataset", str(tiny_dataset), "--output", str(tmp_path / "l")]
    assert load_script("ablations/context_latent").main(arguments) == 2
    assert "has no contextual module" in capsys.readouterr().err


# CLIPSeg


@pytest.fixture
def named_dataset(tiny_dataset, tmp_path):
    """The tiny dataset, with a table of its classes."""
    folder = shutil.copytree(tiny_dataset, tmp_path / "named")
    (folder / "classes.yaml").write_text(format_class_table(load_benchmark("scenes")))
    return folder


def test_a_clipseg_is_scored_by_the_masks_of_the_names(load_script, named_dataset, tmp_path):
    scenes = load_benchmark("scenes")
    names = scenes.class_names
    folder = write_clipseg(tmp_path / "clipseg", sorted({word for name in names for word in name.split()}))
    output = tmp_path / "clipseg.json"
    arguments = ["--model", str(folder), "--dataset", str(named_dataset), "--output", str(output)]
    assert load_script("ablations/clipseg").main(arguments) == 0
    metrics = json.loads(output.read_text())

    # As transformers documents the model: one copy of the image for every text.
    model = CLIPSegForImageSegmentation.from_pretrained(folder).eval()
    prepare, tokenizer = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer([f"a photo of a {name}." for name in names], padding=True, return_tensors="pt")
    texts = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    matrix = ConfusionMatrix(16, range(12), range(12, 16), dict(enumerate(names)))
    rows = open_dataset(str(named_dataset), "test")
    for image, labels, _ in rows:
        pixel_values = prepare([image.permute(1, 2, 0).numpy()] * len(names), return_tensors="pt").pixel_values
        with torch.no_grad():
            logits = model(pixel_values=pixel_values, **texts).logits
        masks = torch.nn.functional.interpolate(logits[None], labels.shape, mode="bilinear")[0]
        matrix.add(masks.argmax(0), scenes.label_space.to_model_order(labels))
    assert len(np.unique(matrix.counts.nonzero()[1])) > 2  # several classes are predicted
    expected = {"protocol": "full", "num_images": len(rows)} | matrix.scores()
    assert {key: metrics[key] for key in expected} == expected


def test_a_model_that_is_no_clipseg_is_refused(load_script, named_dataset, tmp_path, capsys):
    for folder, kind in ((write_bert(tmp_path / "bert"), "BertModel"), (write_clip(tmp_path / "clip"), "CLIPModel")):
        arguments = ["--model", str(folder), "--dataset", str(named_dataset), "--output", str(tmp_path / "scores")]
        assert load_script("ablations/clipseg").main(arguments) == 2
        assert f"{folder}: a {kind}, not a CLIPSegForImageSegmentation" in capsys.readouterr().err


def test_a_dataset_without_names_is_refused(load_script, tiny_dataset, tmp_path, capsys):
    arguments = ["--model", "none", "--dataset", str(tiny_dataset), "--output", str(tmp_path / "scores")]
    assert load_script("ablations/clipseg").main(arguments) == 2
    assert "no class table says what the classes are called" in capsys.readouterr().err


# Made features


def test_a_probe_tells_what_can_be_told_and_nothing_else(load_script):
    probe = load_script("ablations/made_features").probe_accuracy
    noise = torch.randn(4, 400, 12, generator=torch.Generator().manual_seed(0))
    assert probe(*noise) == pytest.approx(0.5, abs=0.06)
    assert probe(noise[0] + 3, noise[1] + 3, noise[2], noise[3]) > 0.99
    # A difference along one channel of two deviations: the best rule is right with probability Φ(1).
    moved = torch.zeros(12).index_fill(0, torch.tensor([5]), 2.0)
    assert probe(noise[0] + moved, noise[1] + moved, noise[2], noise[3]) == pytest.approx(0.841, abs=0.04)


def test_spread_and_distance_are_those_of_the_features(load_script):
    noise = torch.randn(2, 5000, 8, generator=torch.Generator().manual_seed(0))
    real, made = [noise[0], 4 * noise[0]], [0.5 * noise[1], 2 * noise[1] + 4.0]
    found = load_script("ablations/made_features").spread_and_distance(real, made)
    assert found["variance_ratio"] == pytest.approx(0.25, rel=0.05)
    # √8 · 4 apart beside a standard deviation of 4 √8 for the second class; nothing for the first.
    assert found["distance_of_means"] == pytest.approx(0.5, abs=0.03)


def test_every_made_feature_has_a_latent_of_its_own(load_script):
    model, _ = new_model(tiny_recipe("cagnet_pa"))
    make_features = load_script("ablations/made_features").make_features
    made = make_features(model.eval(), 3, 7)
    assert made.shape == (7, model.config.feature_size)
    assert len(made.unique(dim=0)) == 7
    assert not model.generator.training


def test_features_are_made_with_the_dropout_that_training_has(load_script):
    model, _ = new_model(tiny_recipe("cagnet_pi", "model.generator_dropout=[0.5, 0.5]"))
    make_features = load_script("ablations/made_features").make_features
    as_trained = make_features(model, 3, 500).var(0).sum()
    for layer in model.generator.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    assert as_trained > 1.2 * make_features(model, 3, 500).var(0).sum()


def test_made_features_of_a_run_are_compared_with_those_of_its_test_images(
    load_script, trained_run, tiny_dataset, tmp_path, monkeypatch, capsys
):
    script, output = load_script("ablations/made_features"), tmp_path / "made.json"
    monkeypatch.setattr(script, "SMALLEST", 2)
    arguments = ["--dataset", str(tiny_dataset), "--split", "train", "--output", str(output)]
    assert script.main(["--runs", str(trained_run), *arguments]) == 0
    report = json.loads(output.read_text())["runs"]["run"]
    scores = json.loads((trained_run / "metrics.json").read_text())
    assert report["hIoU"] == pytest.approx(scores["hIoU"], abs=1e-4)
    assert report["seen"]["classes"] > 1 and 0 <= report["seen"]["probe_accuracy"] <= 1
    capsys.readouterr()
    assert script.main(["--runs", str(tmp_path), *arguments]) == 2
    assert "is no finished run" in capsys.readouterr().err
    assert script.main(["--runs", str(trained_run), str(trained_run), *arguments]) == 2
    assert "two runs of one name" in capsys.readouterr().err


def test_real_features_are_those_of_labelled_cells(load_script, tiny_dataset):
    model, _ = new_model(tiny_recipe("cagnet_pi"))
    cells = model, CaGNetImageProcessor(), open_dataset(str(tiny_dataset), "train"), 8
    features, classes, halves = load_script("ablations/made_features").real_cells(*cells)
    assert len(features) == len(classes) == len(halves) and set(halves.tolist()) == {0, 1}
    assert 0 <= classes.min() and classes.max() < model.config.num_labels  # unseen classes keep their labels here
    assert classes.max() >= len(model.config.seen_ids)


# Image priors


def test_finished_runs_are_scored_with_an_image_prior_and_once_alone(load_script, trained_run, tmp_path, capsys):
    output = tmp_path / "priors.json"
    arguments = ["--runs", str(trained_run), "--output", str(output), "--weights"]
    assert load_script("ablations/image_prior").main([*arguments, "0"]) == 0
    capsys.readouterr()
    assert load_script("ablations/image_prior").main([*arguments, "0", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    rows = json.loads(output.read_text())["scores"]
    metrics = json.loads((trained_run / "metrics.json").read_text())
    plain, prior = (rows[f"run, image prior {weight}"]["0"] for weight in (0, 3))
    scores = {score: round(metrics[score], 5) for score in ("S-mIoU", "U-mIoU", "hIoU")}
    assert plain == {"run": json.loads((trained_run / "run.json").read_text())["run"]} | scores
    assert prior != plain
    other = shutil.copytree(trained_run, tmp_path / "other" / "run")
    (other / "run.json").write_text((other / "run.json").read_text().replace(plain["run"], "another"))
    assert load_script("ablations/image_prior").main(["--runs", str(other), *arguments[2:], "0"]) == 2
    assert f"another run than {other}" in capsys.readouterr().err


def test_a_run_that_is_not_finished_has_no_image_prior(load_script, tmp_path, capsys):
    arguments = ["--runs", str(tmp_path), "--output", str(tmp_path / "priors.json")]
    assert load_script("ablations/image_prior").main(arguments) == 2
    assert f"{tmp_path} is no finished run" in capsys.readouterr().err
