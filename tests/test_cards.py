"""What a card of a trained model says, beyond the scores that `test_hub` reads back."""

import json
import re

import pytest
from conftest import REPOSITORY
from huggingface_hub import ModelCard
from tiny import tiny_recipe

from cagnet_hf.hub.cards.trained import model_card
from cagnet_hf.hub.models import check_own_weights, published_recipe
from cagnet_hf.training.setup import benchmark_of, build_model
from cagnet_hf.vectors.class_embeddings import vector_sources

METRICS = json.loads((REPOSITORY / "model_cards" / "scenes" / "cagnet_pi_seed10.json").read_text())


@pytest.fixture
def card():
    """`card(*recipe keys, **options)` of a CaGNet on `scenes`."""

    def make(*keys, **options) -> ModelCard:
        return ModelCard(model_card(published_recipe(tiny_recipe("cagnet_pi", *keys)), METRICS, **options))

    return make


def test_the_upper_bound_is_not_called_zero_shot(card):
    text = card("supervised=true", "until=pretrain").text
    assert "not a zero-shot model" in text
    assert "learned from their vectors alone" not in text


def test_scores_of_held_out_seen_classes_say_so(card):
    made = card("split=tuning")
    assert "held out and play the unseen ones" in made.text
    assert {result.dataset_name for result in made.data.eval_results} == {"scenes, held-out seen classes"}


def test_a_class_that_no_test_pixel_has_is_told_to_be_absent():
    names = list(METRICS["per_class"])
    absent = {name: {"iou": 0.0, "recall": None, "pixels": 0} for name in names[-1:]}
    classes = {name: scores | absent.get(name, {}) for name, scores in METRICS["per_class"].items()}
    text = model_card(published_recipe(tiny_recipe("cagnet_pi")), METRICS | {"per_class": classes})
    assert f"| {names[-1]} | **unseen** | not in this dataset | – | 0 |" in text
    assert f"The weakest is {names[-1]}" not in text


def test_a_dataset_of_the_hub_is_linked(card):
    made = card("dataset=owner/photos", "test_split=val")
    assert made.data.datasets == ["owner/photos"]
    assert {(r.dataset_type, r.dataset_split) for r in made.data.eval_results} == {("owner/photos", "val")}


def test_a_dataset_on_disk_is_named_beside_its_benchmark(card):
    made = card("dataset=/private/place/subset")
    assert made.data.datasets is None
    assert {result.dataset_name for result in made.data.eval_results} == {"scenes (subset)"}
    assert "private" not in str(made)


@pytest.mark.parametrize(("method", "keys"), [("spnet", {"xian2019spnet"}), ("zs3net", {"bucher2019zs3net"})])
def test_the_papers_of_a_method_are_cited(method, keys):
    text = model_card(published_recipe(tiny_recipe(method)), METRICS)
    cited = set(re.findall(r"^@\w+\{(\w+),$", text, re.MULTILINE))
    assert cited == keys | {"gu2020cagnet", "gu2020pixel"}


def test_metrics_without_stages_make_a_card(card):
    plain = {key: value for key, value in METRICS.items() if key not in ("stages", "seconds")}
    text = model_card(published_recipe(tiny_recipe("cagnet_pi")), plain)
    assert "after stage" not in text
    assert "s of training" not in text


def test_the_scores_of_another_calibration_are_not_announced(card):
    assert len(card(saved_calibration=0.0).data.eval_results) == 8
    made = card(saved_calibration=0.6)
    assert made.data.eval_results is None
    assert "saved with γ = 0.6" in made.text


def test_the_licence_of_class_vectors_is_that_of_their_table():
    (bundled,) = vector_sources("bundled")
    assert (bundled.made_of, bundled.license) == ("sentence-transformers/all-MiniLM-L6-v2", "apache-2.0")
    assert [source.name for source in vector_sources("/absent/a.npy,b.npy")] == ["a.npy", "b.npy"]


def test_a_model_that_starts_from_others_weights_keeps_saying_so(tmp_path):
    first = tiny_recipe("spnet")
    build_model(first, benchmark_of(first)).save_pretrained(tmp_path / "first")
    recipe = tiny_recipe("spnet", f"backbone_weights={tmp_path / 'first'}")
    assert build_model(recipe, benchmark_of(recipe)).config.weights_from == "first"
    with pytest.raises(ValueError, match="--license"):
        check_own_weights(recipe)
