"""Methods: found by name or by their parts, refused before training where they cannot run, and added from outside."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from pydantic import Field
from tiny import BACKBONE, NUM_CLASSES, NUM_SEEN, iterate, new_model, noise_batch, tiny_recipe

from cagnet_hf import methods
from cagnet_hf.apps.comparison import recipes_of
from cagnet_hf.methods import method_of, register, title_of
from cagnet_hf.methods.base import Method, RealStep
from cagnet_hf.methods.options import Recipe, RecipeError, StageRecipe, changed_keys
from cagnet_hf.training.loop import Trainer
from cagnet_hf.training.recipe_files import load_recipe, parse_recipe, recipe_names
from cagnet_hf.training.run_folder import read_recipe, recipe_text
from cagnet_hf.training.setup import benchmark_of, build_stage_models

FIRST_EDITION = sorted((Path(__file__).parent / "first_edition" / "recipes").glob("*.yaml"))


# The registry


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_names_a_method_whose_parts_its_model_has(name):
    recipe = load_recipe(name)
    method = method_of(recipe.method, recipe.model)
    assert recipe.method.removesuffix("_st") in method.titles
    assert {field: recipe.model.get(field) for field in method.parts} == method.parts


@pytest.mark.parametrize(
    ("row", "title"),
    [
        ("spnet_c", "SPNet-c"),
        ("spnet_st", "SPNet+ST"),
        ("cagnet_pa_st", "CaGNet(pa)+ST"),
        ("gaussian", "Gaussian generator"),
        ("my_experiment", "my_experiment"),
        ("my_experiment_st", "my_experiment_st"),
    ],
)
def test_rows_have_the_titles_of_the_tables(row, title):
    assert title_of(row) == title


@pytest.mark.parametrize("name", ["spnet", "zs3net", "cagnet_pi", "gaussian"])
def test_a_recipe_of_another_name_has_the_method_of_its_parts(name):
    recipe = load_recipe(f"scenes/{name}")
    assert method_of("my_experiment", recipe.model) is method_of(name, {})


def test_a_model_without_a_generator_learns_from_labels_alone():
    assert method_of("plain", {"generator": None, "classifier": "linear"}) is Method


def test_every_method_says_where_it_was_published():
    assert all(method.paper and method.titles for method in methods.methods() if method is not Method)


# Options of a method


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("spnet", "content_loss=l1"),
        ("spnet", "stages.pretrain.synthetic_block=5"),
        ("zs3net", "stages.finetune.weights.backbone_kl=1"),
        ("cagnet_pi", "stages.finetune.moment_matching={}"),
    ],
)
def test_an_option_of_another_method_is_refused_by_its_place(name, override):
    with pytest.raises(RecipeError) as refusal:
        load_recipe(f"scenes/{name}", [override])
    key = override.partition("=")[0]
    assert str(refusal.value) == f"scenes/{name}: {key} is an option of another method than this recipe's"


def test_rows_that_are_compared_take_the_options_that_they_know():
    rows = {name: [name] for name in ("spnet", "cagnet_pi")}
    recipes = recipes_of("scenes", rows, ["mmd_pixels_per_class=32", "seed=3"])
    assert recipes["cagnet_pi"].mmd_pixels_per_class == 32
    assert {recipe.seed for recipe in recipes.values()} == {3}
    with pytest.raises(RecipeError, match="is an option of no method among the rows spnet"):
        recipes_of("scenes", {"spnet": ["spnet"]}, ["mmd_pixels_per_class=32"])


@pytest.mark.parametrize("path", FIRST_EDITION, ids=lambda path: path.stem)
def test_recipes_of_the_first_edition_mean_what_they_meant(path):
    """Every method had all options then; those of other methods are at their defaults."""
    added = {"feature_cache": None, "background": "ignored", "objective": "released"}  # by the second edition
    added_to_stage = {"anchor": None}
    written, recipe = added | yaml.safe_load(path.read_text()), read_recipe(path)
    again = recipe.model_dump(mode="json")
    assert {key: written[key] for key in again if key != "stages"} == {k: v for k, v in again.items() if k != "stages"}
    for name, stage in again["stages"].items():
        weights = stage.pop("weights")
        given = added_to_stage | written["stages"][name]
        assert {key: given[key] for key in stage} == stage
        assert {key: written["stages"][name]["weights"][key] for key in weights} == weights
    assert changed_keys(recipe, parse_recipe(yaml.safe_load(recipe_text(recipe)), "again")) == []


# What cannot run is refused before training


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("spnet", ["stages.pretrain.network=null"], "stages.pretrain trains nothing"),
        (
            "spnet",
            ["stages.pretrain.reinitialize=[classifier]"],
            "reinitialize: the classifier, but this model has none",
        ),
        (
            "zs3net",
            ["stages.finetune.generator=null"],
            r"stages\.finetune\.generator: joint steps .* need an optimizer",
        ),
        ("zs3net", ["stages.finetune.classifier=null"], r"stages\.finetune\.classifier: joint steps"),
        (
            "zs3net",
            ["stages.finetune.network={optimizer: sgd, lr: 0.1}"],
            r"stages\.finetune\.network: the network rests in joint steps \(moment_matching\)",
        ),
        (
            "gaussian",
            ["stages.fit.classifier={optimizer: sgd, lr: 0.1}"],
            "stages.fit: fitting a Gaussian generator takes no optimizer, but classifier has one",
        ),
        ("cagnet_pi", ["stages.finetune.classifier=null"], r"synthetic_block: synthetic steps teach a classifier"),
        ("cagnet_pi_st", ["stages.self_train.pseudo_labels.top_k=17"], "top_k: 17 of 16 classes"),
    ],
)
def test_stages_that_cannot_train_are_refused(name, overrides, message):
    recipe = tiny_recipe(name, *overrides)
    with pytest.raises(RecipeError, match=message):
        build_stage_models(recipe, benchmark_of(recipe))


@pytest.mark.parametrize("name", ["spnet_st", "zs3net_st", "cagnet_pi_st", "cagnet_pa_st"])
def test_every_row_trains_itself(name):
    """The self-training of a projection once crashed: its logits had the seen columns, its labels unseen classes."""
    recipe = tiny_recipe(name)
    stage = recipe.stages["self_train"]
    model, _ = new_model(recipe, "self_train")
    model.class_embeddings.copy_(torch.randn(NUM_CLASSES, model.config.embedding_size))
    batch = noise_batch() | {"padding": torch.zeros(2, 32, 32, dtype=torch.bool)}
    batch["labels"][:] = 255
    certain = {"rule": "top_k", "top_k": NUM_CLASSES} if name != "zs3net_st" else {"rule": "confidence", "share": 1.0}
    stage = stage.model_copy(update={"pseudo_labels": type(stage.pseudo_labels)(**certain)})
    terms, tape = iterate(model, batch, recipe, stage)
    assert tape.learners
    assert all(value.isfinite() for value in terms.values())


# A method from outside of the package


class MarginStage(StageRecipe):
    margin: float = Field(0.1, gt=0)


class MarginRecipe(Recipe):
    stages: dict[str, MarginStage] = Field(min_length=1)


class Margin(Method):
    """Cross-entropy, and a margin between the scores of the seen and of the unseen classes."""

    titles = {"margin": "Margin"}
    paper = "none: a test of this package"
    parts = {"generator": None, "classifier": "linear"}
    recipe_class = MarginRecipe

    def add_terms(self, step: RealStep) -> None:
        logits = self.model.classify(step.output.features).movedim(1, -1)[step.labelled]
        gap = logits[:, :NUM_SEEN].amax(1) - logits[:, NUM_SEEN:].amax(1)
        step.add("margin", 1.0, F.relu(self.stage.margin - gap).mean())


RECIPE = """
benchmark: scenes
method: margin
class_embeddings: attributes
processor: {size: {height: 96, width: 96}}
model: {contextual: false, classifier: linear, generator: null, output_stride: 4, depths: [1, 1, 1, 1],
        feature_size: 16, aspp: depthwise, aspp_dilations: [1, 3], freeze_batch_norm: false}
stages:
  pretrain:
    iterations: 2
    batch_size: 2
    crop_size: 32
    margin: 0.5
    network: {optimizer: adamw, lr: 0.001}
    classifier: {optimizer: adamw, lr: 0.001}
trackers: []
num_workers: 0
log_every: 1
"""


@pytest.fixture
def margin(monkeypatch):
    monkeypatch.setattr(methods, "_METHODS", [*methods._METHODS])
    return register(Margin)


def test_a_method_from_outside_trains_saves_and_has_its_own_options(margin, tmp_path, tiny_dataset):
    (tmp_path / "margin.yaml").write_text(RECIPE)
    recipe = load_recipe(str(tmp_path / "margin.yaml"), [*BACKBONE, f"dataset={tiny_dataset}"])
    assert recipe.stages["pretrain"].margin == 0.5
    assert title_of("margin_st") == "Margin+ST"
    trainer = Trainer(recipe, tmp_path / "run")
    assert trainer.run()["num_images"] == 6
    assert {"loss/margin", "loss/classification"} <= trainer.state.history[-1].keys()
    assert len(trainer.state.history) == 2
    with pytest.raises(RecipeError, match=r"did you mean 'stages\.pretrain\.margin'"):
        load_recipe(str(tmp_path / "margin.yaml"), ["stages.pretrain.margni=1"])


def test_two_methods_of_one_row_are_refused(margin):
    class Other(Method):
        titles = {"margin": "Another"}

    with pytest.raises(ValueError, match="Other: another method has the row 'margin'"):
        register(Other)
    register(Margin)  # a cell of a notebook that is run again
    assert methods.methods().count(Margin) == 1


def test_what_is_done_to_the_odds_of_classes_stays_with_the_caller():
    recipe = tiny_recipe("cagnet_pi")
    method = Method(recipe, recipe.stages["finetune"], new_model(recipe, "finetune")[0])
    expected = method.class_odds().tolist()
    method.class_odds().mul_(2)
    assert method.class_odds().tolist() == expected
    assert expected[0] == 1 < expected[-1]


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_run_goes_on_whoever_prepares_its_batches(before):
    """So do runs whose recipe was written when the number of workers was always one."""
    assert changed_keys(tiny_recipe("zs3net", f"num_workers={before}"), tiny_recipe("zs3net")) == []
