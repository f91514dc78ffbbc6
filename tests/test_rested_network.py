"""The study of contexts and schedules on cells of a rested network."""

import json
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import REPOSITORY
from tiny import tiny_recipe

from cagnet_hf.apps.report import write_report
from cagnet_hf.training.loop import Trainer
from cagnet_hf.training.recipe_files import parse_recipe

FROZEN = [
    *("trackers=[]", "num_workers=0", "feature_cache={}", "augmentation={scale_range: [1, 1], flip_probability: 0.5}"),
    *("stages.pretrain.scales=[1.0]", "stages.pretrain.iterations=3", "stages.pretrain.batch_size=2"),
    *("stages.finetune.scales=[1.0]", "stages.finetune.iterations=4", "stages.finetune.batch_size=2"),
    "stages.pretrain.network.multipliers.backbone=0",
]


@pytest.fixture
def script(load_script, monkeypatch):
    """The command, and what it is made of, which lies beside it."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts" / "ablations"))
    command = load_script("ablations/rested_network")
    cells, network, variants = (import_module(f"rested.{name}") for name in ("cells", "network", "variants"))
    parts = {"Cells": cells, "Latents": cells, "surroundings": cells, "Rested": network}
    parts |= {"Context": variants, "Schedule": variants}
    return SimpleNamespace(main=command.main, **{name: getattr(module, name) for name, module in parts.items()})


@pytest.fixture(scope="module")
def pretrained(tiny_dataset, tmp_path_factory):
    """(folder of a finished pre-training, file of the recipe whose last stages follow)."""
    place = tmp_path_factory.mktemp("rested")
    tree = tiny_recipe("cagnet_pi", f"dataset={tiny_dataset}", *FROZEN).model_dump(mode="json")
    pretrain, finetune = (tree["stages"][name] for name in ("pretrain", "finetune"))
    fit = pretrain | {"network": None}
    recipe = parse_recipe(
        tree | {"stages": {"pretrain": pretrain, "fit_generator": fit, "finetune": finetune}}, "tiny"
    )
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    trainer = Trainer(recipe.first_stages(["pretrain"]), place / "run")
    trainer.run()
    write_report(trainer)
    trainer.folder.leave()
    return place / "run", place / "recipe.yaml"


def test_the_surroundings_of_a_cell_are_the_cells_of_other_labels(script):
    labels = torch.tensor([[0, 0, 7], [255, 7, 7]])
    features = torch.arange(12.0).view(2, 3, 2)
    found = script.surroundings(features, labels)
    for row in range(2):
        for column in range(3):
            others = features[labels != labels[row, column]]
            torch.testing.assert_close(found[row, column], others.mean(0))
    assert not script.surroundings(features, torch.zeros_like(labels)).any()


@pytest.fixture
def latents(script, pretrained):
    """`latents(**options)` of the tiny network's cells, with means that tell the class and a deviation of 2."""
    rested = script.Rested(pretrained[0], str(pretrained[1]))
    cells = rested.cells
    mean = cells.classes[:, None] + torch.randn(cells.features.shape, generator=torch.Generator().manual_seed(0))

    def made(**options):
        found = script.Latents(mean, torch.full_like(mean, 2.0), cells, script.Context("learnt", **options))
        found.regress(rested.model.class_embeddings)
        return found

    return made


def test_standardised_latents_have_one_mean_and_variance_in_every_class(latents):
    plain, standardised = latents(), latents(standardised=True)
    for number in standardised.cells.classes.unique():
        mean, deviation = (
            values[standardised.cells.classes == number] for values in (standardised.mean, standardised.deviation)
        )
        torch.testing.assert_close(mean.mean(0), torch.zeros(mean.shape[1]), atol=1e-5, rtol=0)
        variance = (mean.square() + deviation.square()).mean(0)
        torch.testing.assert_close(variance, torch.ones(mean.shape[1]), atol=1e-4, rtol=0)
    assert plain.leak() > standardised.leak()
    assert plain.description()["nats_per_channel"] > standardised.description()["nats_per_channel"]


def test_a_bank_draws_latents_of_cells_and_a_class_its_own_mean(latents):
    classes = torch.full((4000,), 11)
    bank, of_class, normal = (latents(synthetic=kind).draw_for(classes) for kind in ("bank", "of_class", "normal"))
    expected = latents()
    torch.testing.assert_close(bank.mean(), expected.mean.mean(), atol=0.1, rtol=0)
    torch.testing.assert_close(normal.mean(), torch.tensor(0.0), atol=0.02, rtol=0)
    seen = expected.mean[expected.cells.classes == 11].mean()
    assert abs(of_class.mean() - seen) < abs(expected.mean.mean() - seen)


def test_a_normal_latent_is_no_nats_away_and_tells_nothing_of_the_image(script, latents):
    learnt = latents()
    zeros = torch.zeros_like(learnt.mean)
    found = script.Latents(zeros, zeros + 1, learnt.cells, script.Context()).description()
    assert found["nats_per_channel"] == found["variance_from_image"] == 0
    # ½ (μ² + σ² − 1) − log σ with σ = 2
    nats = 0.5 * (learnt.mean.square() + 3) - torch.log(torch.tensor(2.0))
    assert learnt.description()["nats_per_channel"] == pytest.approx(nats.mean().item(), rel=1e-5)


def test_what_a_variant_ends_in_does_not_depend_on_what_was_measured_before(script, pretrained):
    folder, recipe = pretrained
    bank = script.Context("learnt", kl=0.1, content="l2", synthetic="bank")
    alone, after = (script.Rested(folder, str(recipe)) for _ in range(2))
    after.scores_of(script.Context("learnt", kl=0.1, content="l2"))
    after.scores_of(script.Schedule(image_prior=1))
    assert alone.scores_of(bank) == after.scores_of(bank)
    schedule = script.Schedule(block=1, image_prior=2)
    assert script.Rested(folder, str(recipe)).scores_of(schedule) == after.scores_of(schedule)


def test_the_generator_starts_anew(script, pretrained):
    rested = script.Rested(pretrained[0], str(pretrained[1]))
    torch.manual_seed(0)
    rested._start()
    first = rested.model.generator.layers[0].weight.clone()
    assert not torch.equal(first, rested.start["generator.layers.0.weight"])
    torch.manual_seed(0)
    rested._start()
    assert torch.equal(first, rested.model.generator.layers[0].weight)


def test_the_best_offset_is_chosen_on_the_other_half(script, pretrained):
    rested = script.Rested(pretrained[0], str(pretrained[1]))
    scores = rested.scores()
    with torch.no_grad():  # unseen classes win too little: the head is one that only an offset mends
        rested.model.classifier.class_head.bias[list(rested.model.config.unseen_ids)] -= 3
    lowered = rested.scores()
    assert lowered["best_offset"] == pytest.approx(scores["best_offset"] + 3, abs=1.5)
    assert lowered["hIoU_at_best_offset"] >= lowered["hIoU"]


@pytest.mark.parametrize(
    ("study", "variants"),
    [
        ("contexts", ["noise", "surroundings, standardised, L2, bank", "learnt, of class"]),
        ("schedules", ["blocks of 50", "blocks of 50, image prior 2", "together, weight 4", "blocks of 50, averaged"]),
    ],
)
def test_a_study_has_a_line_for_every_variant_and_run_and_keeps_what_was_measured(
    study, variants, script, pretrained, tmp_path, capsys
):
    folder, recipe = pretrained
    output = tmp_path / "study.json"
    arguments = ["--study", study, "--runs", str(folder), "--recipe", str(recipe), "--output", str(output)]
    assert script.main([*arguments, "--variants", *variants[:-1]]) == 0
    first = json.loads(output.read_text())["variants"]
    capsys.readouterr()
    assert script.main([*arguments, "--variants", *variants]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    found = json.loads(output.read_text())["variants"]
    assert (
        script.main([*arguments[:1], *{"contexts": ["schedules"], "schedules": ["contexts"]}[study], *arguments[2:]])
        == 2
    )
    assert "has study" in capsys.readouterr().err
    assert sorted(found) == sorted(variants) and all(list(seeds) == ["0"] for seeds in found.values())
    assert first == {name: found[name] for name in variants[:-1]}
    for name in variants:
        scores = found[name]["0"]
        assert {"hIoU", "S-mIoU", "U-mIoU"} <= scores.keys()
        if study == "contexts":
            assert 0 <= scores["class_from_latent"] <= 1 and 0 <= scores["variance_from_image"] <= 1


def test_the_cells_are_those_that_the_network_sees(script, pretrained):
    rested = script.Rested(pretrained[0], str(pretrained[1]))
    assert len(rested.cells.maps) == 12 and len(rested.test.maps) == 6
    assert int(rested.cells.classes.max()) < 12 <= int(rested.test.classes.max())  # unseen ones are hidden in training
    assert rested.cells.features.shape == (sum(place.sum() for place in rested.cells.places), 16)


def test_what_cannot_be_studied_is_refused_in_one_line(script, pretrained, trained_run, tmp_path, capsys):
    arguments = ["--study", "contexts", "--output", str(tmp_path / "study.json")]
    runs = ["--runs", str(pretrained[0])]
    assert script.main([*arguments, *runs, "--variants", "noize"]) == 2
    assert "contexts has no 'noize'; did you mean 'noise'?" in capsys.readouterr().err
    assert script.main([*arguments, *runs, "--recipe", "scenes/cagnet_pi"]) == 2
    assert "scenes/cagnet_pi has no stage fit_generator" in capsys.readouterr().err
    assert script.main([*arguments, *runs, str(pretrained[0])]) == 2
    assert "both have seed 0" in capsys.readouterr().err
    assert script.main([*arguments, "--runs", str(tmp_path)]) == 2
    assert f"{tmp_path} is no finished run" in capsys.readouterr().err
    assert script.main([*arguments, "--runs", str(trained_run)]) == 2
    assert "was trained without feature_cache" in capsys.readouterr().err
