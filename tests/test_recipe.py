"""Recipes: what they read, what they refuse and what they advise, and the schedules they describe."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from tiny import tiny_recipe

from cagnet_hf.apps.comparison import published_results
from cagnet_hf.cli import main
from cagnet_hf.methods import method_of, methods
from cagnet_hf.methods.cagnet import CaGNetStage
from cagnet_hf.methods.options import PARTS, OptimizerRecipe, Options, RecipeError, changed_keys, described_keys
from cagnet_hf.model.configuration_cagnet import CaGNetConfig
from cagnet_hf.model.modeling_cagnet import CaGNetForSemanticSegmentation
from cagnet_hf.training.optimizers import build_optimizers, set_learning_rates
from cagnet_hf.training.recipe_files import load_recipe, recipe_names
from cagnet_hf.training.setup import benchmark_of, build_stage_models

SCHEDULES = json.loads((Path(__file__).parent / "golden" / "schedules.json").read_text())
# The "resume" entries record that the reference counted from another iteration after an interruption.
SCHEDULE_CASES = [case for case in SCHEDULES if case != "alternation" and not case.endswith("resume")]


def stage_of(**fields) -> CaGNetStage:
    return CaGNetStage(**{"iterations": 10, "batch_size": 1, "crop_size": 8} | fields)


@pytest.fixture
def write(tmp_path):
    """`write(name, text)` makes a recipe file."""

    def write_file(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write_file


MINIMAL = "benchmark: scenes\nmethod: cagnet_pi\nstages: {pretrain: {iterations: 1, batch_size: 1, crop_size: 8}}\n"


# Reading


def test_there_are_recipes():
    assert {"scenes/cagnet_pi", "scenes/spnet", "pascal_voc_edge/cagnet_pi"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads(name):
    recipe = load_recipe(name)
    assert recipe.stages
    assert name.endswith(recipe.method)


def test_a_folder_means_its_cagnet_pi():
    assert load_recipe("scenes") == load_recipe("scenes/cagnet_pi")


def test_a_file_is_a_recipe(write):
    assert load_recipe(write("mine.yaml", MINIMAL)).stages["pretrain"].batch_size == 1


def test_a_recipe_survives_its_own_file(write):
    recipe = load_recipe("scenes")
    assert load_recipe(write("copy.yaml", yaml.safe_dump(recipe.model_dump(mode="json")))) == recipe


def test_later_includes_override_earlier_ones_key_by_key(write):
    write("a.yaml", MINIMAL + "model: {feature_size: 8, stem_size: 8}\n")
    write("b.yaml", "model: {feature_size: 16}\n")
    recipe = load_recipe(write("c.yaml", "include: [a.yaml, b.yaml]\nseed: 3\n"))
    assert recipe.model == {"feature_size": 16, "stem_size": 8}
    assert recipe.seed == 3


def test_what_changes_one_of_two_aliases_leaves_the_other(write):
    stage = "{iterations: 1, batch_size: 1, crop_size: 8, weights: {backbone_kl: 1}}"
    write("a.yaml", f"benchmark: scenes\nmethod: m\nstages:\n  one: &s {stage}\n  two: {{<<: *s}}\n")
    path = write("b.yaml", "include: [a.yaml]\nstages: {one: {weights: {backbone_kl: 2}}}\n")
    stages = load_recipe(path, ["stages.one.weights.classifier_real=3"]).stages
    assert (stages["one"].weights.backbone_kl, stages["two"].weights.backbone_kl) == (2, 1)
    assert (stages["one"].weights.classifier_real, stages["two"].weights.classifier_real) == (3, 1)


def test_overrides_are_dotted_keys_with_yaml_values():
    recipe = load_recipe("scenes", ["stages.finetune.iterations=7", "trackers=[]", "model.aspp_dilations=[1, 2]"])
    assert recipe.stages["finetune"].iterations == 7
    assert recipe.trackers == []
    assert recipe.model["aspp_dilations"] == [1, 2]


def test_a_rate_may_be_written_without_a_point():
    # YAML 1.1 reads 1e-4 as text
    assert load_recipe("scenes", ["stages.finetune.classifier.lr=1e-4"]).stages["finetune"].classifier.lr == 1e-4


# Refusals


@pytest.mark.parametrize(
    ("misspelt", "nearest"),
    [
        ("sead=1", "seed"),
        ("stages.pretrain.iteration=5", "stages.pretrain.iterations"),
        ("stages.pretrain.weights.backbone_kll=1", "stages.pretrain.weights.backbone_kl"),
        ("stages.pretrain.network.weight_decai=1", "stages.pretrain.network.weight_decay"),
        ("stages.finetune.lr=1", "stages.finetune.classifier.lr' or 'stages.finetune.generator.lr"),
        ("augmentation.flip=1", "augmentation.flip_probability"),
        ("model.feature_siz=8", "model.feature_size"),
        ("backbon=resnet", "model.backbone"),
        ("image_size=8", "processor.size"),
        ("crop=8", "stages.pretrain.crop_size' or 'stages.finetune.crop_size' or 'processor.crop_size"),
        *(
            (f"{word}=1", " or ".join(f"stages.pretrain.{part}.lr'" for part in PARTS).replace("' or ", "' or '")[:-1])
            for word in ("lr", "learnin_rate", "learning-rate")
        ),
        *(
            (f"{word}=8", "stages.pretrain.batch_size' or 'stages.finetune.batch_size' or 'patches.batch_size")
            for word in ("batchsize", "batch-size", "batch_sise")
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(misspelt, nearest):
    key = misspelt.partition("=")[0]
    with pytest.raises(RecipeError) as refusal:
        load_recipe("scenes", [misspelt])
    assert key in str(refusal.value)
    assert str(refusal.value).endswith(f"; did you mean '{nearest}'?")
    assert "\n" not in str(refusal.value)


def test_a_key_like_no_other_gets_no_suggestion():
    with pytest.raises(RecipeError, match=r"unknown key 'xyz'$"):
        load_recipe("scenes", ["xyz=1"])


def test_an_unknown_part_of_the_network_names_the_known_ones():
    with pytest.raises(RecipeError, match="'selector'"):
        load_recipe("scenes", ["stages.pretrain.network.multipliers.selektor=1"])


def test_a_misspelt_required_key_names_the_nearest_known_one(write):
    with pytest.raises(RecipeError, match="unknown key 'benchmrk'; did you mean 'benchmark'"):
        load_recipe(write("wrong.yaml", MINIMAL.replace("benchmark", "benchmrk")))


@pytest.mark.parametrize(
    "wrong",
    [
        "stages.pretrain.iterations=many",
        "stages.pretrain.iterations=5.5",
        "stages.pretrain.batch_size=0",
        "stages.pretrain.scales=1.0",
        "stages.pretrain.network.lr=-1",
        "stages.pretrain.network.optimizer=adamm",
        "content_loss=mmdd",
        "trackers=tensorboard",
        "stages.pretrain=5",
    ],
)
def test_a_wrong_value_is_refused_with_its_key(wrong):
    with pytest.raises(RecipeError, match=wrong.partition("=")[0]) as refusal:
        load_recipe("scenes", [wrong])
    assert "\n" not in str(refusal.value)


def test_a_missing_key_is_named(write):
    with pytest.raises(RecipeError, match="method"):
        load_recipe(write("wrong.yaml", MINIMAL.replace("method: cagnet_pi\n", "")))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["stages.finetune.real_block=0", "stages.finetune.synthetic_block=0"], "has no step"),
        (["stages.finetune.synthetic_size=null"], "synthetic_size"),
        (["stages.pretrain.scales=[0.5]"], "scales must start with 1.0"),
        (["stages.pretrain.scales=[]"], "scales"),
        (["stages={}"], "stages"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused(overrides, reason):
    with pytest.raises(RecipeError, match=reason):
        load_recipe("scenes", overrides)


def test_an_unknown_recipe_names_the_nearest_or_else_all():
    with pytest.raises(RecipeError, match=r"^no recipe 'scenes/cagnet_p'; did you mean 'scenes/cagnet_pi'\?$"):
        load_recipe("scenes/cagnet_p")
    with pytest.raises(RecipeError, match="scenes/spnet"):
        load_recipe("xyz")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no recipe"):
        load_recipe(str(tmp_path / "absent.yaml"))


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("seed", "'seed' is no override: write key=value"),
        ("=1", "'=1' is no override: write key=value"),
        ("method.name=1", "'method.name=1': 'method' holds a value, not keys"),
        ("seed=[1", "'seed=[1': the value is not YAML"),
    ],
)
def test_a_bad_override_is_quoted(override, reason):
    with pytest.raises(RecipeError) as refusal:
        load_recipe("scenes", [override])
    assert str(refusal.value) == reason


def test_files_that_include_each_other_are_refused(write):
    write("a.yaml", "include: [b.yaml]\n")
    with pytest.raises(RecipeError, match="includes itself"):
        load_recipe(write("b.yaml", "include: [a.yaml]\n"))


def test_a_missing_include_is_named(write):
    with pytest.raises(RecipeError, match=r"absent\.yaml"):
        load_recipe(write("a.yaml", "include: [absent.yaml]\n"))


@pytest.mark.parametrize("text", ["- a\n- b\n", "seed\n", "benchmark: [\n", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(write, text):
    with pytest.raises(RecipeError, match=r"wrong\.yaml"):
        load_recipe(write("wrong.yaml", text))


# Changes


def test_changed_keys_are_dotted():
    old = load_recipe("scenes")
    new = load_recipe("scenes", ["seed=1", "stages.pretrain.network.lr=1", "model.feature_size=8"])
    assert changed_keys(old, new) == ["model.feature_size", "seed", "stages.pretrain.network.lr"]


def test_a_default_written_out_is_no_change():
    assert changed_keys(load_recipe("scenes"), load_recipe("scenes", ["content_loss=mmd", "supervised=false"])) == []


def test_an_optimizer_taken_away_is_a_change():
    old, new = load_recipe("scenes"), load_recipe("scenes", ["stages.finetune.generator=null"])
    assert "stages.finetune.generator.lr" in changed_keys(old, new)


# Schedules


@pytest.mark.parametrize("case", SCHEDULE_CASES)
def test_learning_rates_are_those_of_the_published_schedules(case):
    golden = SCHEDULES[case]
    back, dis = golden["back"], golden["dis"]
    rate = back.get("init_lr", back.get("init_lr_transfer"))
    factors = {"backbone": 1, "context": 5, "aspp_weights": 10, "aspp_biases": 20}
    poly = {"schedule": "poly", "power": back["power"], "update_every": back["lr_decay_iter"]}
    step = {"schedule": "step", "start": dis["start_decay_iter"], "every": dis["step_size"], "factor": dis["gamma"]}
    stage = stage_of(
        iterations=golden["iter_max"],
        network=OptimizerRecipe(optimizer="sgd", lr=rate, multipliers=factors, **poly) if rate else None,
        classifier=OptimizerRecipe(optimizer="adam", lr=golden["lr_dis"], **step),
    )
    groups = [{"params": torch.zeros(1, requires_grad=True), "multiplier": factor} for factor in factors.values()]
    one_group = [{"params": torch.zeros(1, requires_grad=True), "multiplier": 1.0}]
    optimizers = {"network": torch.optim.SGD(groups, 1.0), "classifier": torch.optim.Adam(one_group)}
    if not rate:
        del optimizers["network"]
    assert golden["columns"] == ["iteration", "back_1x", "back_5x", "back_10x", "back_20x", "dis"]
    for iteration, *rates in golden["rows"]:
        if iteration == stage.iterations:  # no iteration of the stage
            continue
        set_learning_rates(optimizers, stage, iteration)
        used = [group["lr"] for optimizer in optimizers.values() for group in optimizer.param_groups]
        assert used == pytest.approx(rates if rate else rates[-1:], rel=1e-12), iteration


@pytest.mark.parametrize("case", ["1_1_step1", "3_2_step1"])
def test_steps_alternate_as_published_real_ones_first(case):
    real, synthetic = (int(part) for part in case.split("_")[:2])
    stage = stage_of(real_block=real, synthetic_block=synthetic, synthetic_size=1)
    kinds = ["step2" if stage.is_synthetic(i) else "step1" for i in range(len(SCHEDULES["alternation"][case]))]
    assert kinds == SCHEDULES["alternation"][case]


def test_every_step_is_real_without_synthetic_blocks():
    assert not any(stage_of().is_synthetic(i) for i in range(10))


def test_warm_up_rises_linearly_to_the_rate():
    recipe = OptimizerRecipe(optimizer="sgd", lr=4.0, warmup=4)
    assert [recipe.lr_at(i, 10) for i in range(6)] == [1, 2, 3, 4, 4, 4]


# The published schedules


PUBLISHED = json.loads((Path(__file__).parent / "golden" / "published_schedules.json").read_text())
FULL = ["pascal_voc", "pascal_context", "coco_stuff"]
TRAIN_IMAGES = {"pascal_voc": 10582, "pascal_context": 4998, "coco_stuff": 118287}


def decay_of(optimizer) -> list:
    assert optimizer.schedule == "step"
    return [optimizer.start, optimizer.every, optimizer.factor]


def assert_network_is_published(network, common=PUBLISHED["common"]["backbone"]):
    assert (network.optimizer, network.weight_decay) == ("sgd", common["weight_decay"])
    assert (network.schedule, network.power) == ("poly", 0.9)
    factors = {"backbone": 1.0, "context": 1.0} | network.multipliers
    published = common["lr_multipliers"]
    assert factors["backbone"] == published["backbone convolutions"]
    assert factors["aspp_weights"] == published["ASPP weights"]
    assert factors["aspp_biases"] == published["ASPP biases"]


@pytest.mark.parametrize("benchmark", FULL)
@pytest.mark.parametrize("method", ["cagnet_pi_st", "cagnet_pa_st"])
def test_cagnet_is_trained_as_published(benchmark, method):
    recipe = load_recipe(f"{benchmark}/{method}")
    assert list(recipe.stages) == ["pretrain", "finetune", "self_train", "finetune_after_self_train"]
    patches = method == "cagnet_pa_st"
    for name, stage in recipe.stages.items():
        values = PUBLISHED[name][benchmark]
        if patches:
            assert (stage.batch_size, stage.crop_size) == (4, 376)
        else:
            assert (stage.batch_size, stage.crop_size) == (values["batch"], values["crop"])
        assert stage.iterations == values["iterations"]
        assert stage.classifier.lr == values["lr_critic"]
        assert stage.generator.lr == values["lr_generator"]
        assert decay_of(stage.classifier) == (values.get("decay") or values["decay_critic"])
        assert decay_of(stage.generator) == (values.get("decay") or values["decay_generator"])
        assert (stage.classifier.optimizer, stage.generator.optimizer) == ("adam", "adam")
        assert stage.classifier.weight_decay == PUBLISHED["common"]["critic_and_classifier"]["weight_decay"]
        assert stage.generator.weight_decay == 0
        assert stage.scales == [1.0, 0.5, 0.75]
        if "lr_backbone" in values:
            assert stage.network.lr == values["lr_backbone"]
            assert stage.network.update_every == PUBLISHED["pretrain"][benchmark]["poly_update_every"]
            assert stage.network.multipliers["context"] == stage.network.multipliers["selector"] == 5
            assert_network_is_published(stage.network)
        else:
            assert stage.network is None
        if "unseen_rate" in values:
            assert stage.unseen_rate == values["unseen_rate"]
            assert stage.weights.synthetic_step == values["synthetic_weight"]
            assert stage.generator_learns_from_synthetic == bool(values["generator_learns_from_synthetic"])
            assert (stage.real_block, stage.synthetic_block) == (100, 100)
            assert stage.synthetic_size == (48 if patches else 47)


@pytest.mark.parametrize("benchmark", FULL)
def test_cagnets_losses_weigh_as_published(benchmark):
    stages = load_recipe(f"{benchmark}/cagnet_pi_st").stages
    published = PUBLISHED["pretrain"]["weights"]
    weights = stages["pretrain"].weights.model_dump()
    assert {key: weights[key] for key in published if key in weights} == {
        key: value for key, value in published.items() if key != "generator_classification"
    }
    for name in ("finetune", "finetune_after_self_train"):
        weights = stages[name].weights
        assert weights.classifier_real == PUBLISHED["finetune"]["weights"]["classifier_real"]
        assert weights.classifier_synthetic == PUBLISHED["finetune"]["weights"]["classifier_synthetic_in_real_step"]
    self_train = PUBLISHED["self_train"][benchmark]
    weights, labels = stages["self_train"].weights, stages["self_train"].pseudo_labels
    assert (labels.rule, labels.top_k) == ("top_k", self_train["top_k"])
    for key in ("classifier_real", "classifier_synthetic", "generator_adversarial"):
        assert getattr(weights, key) == self_train[key]


@pytest.mark.parametrize("benchmark", ["pascal_voc", "coco_stuff"])
def test_spnet_is_trained_as_published(benchmark):
    recipe, values = load_recipe(f"{benchmark}/spnet_c"), PUBLISHED["spnet"][benchmark]
    (stage,) = recipe.stages.values()
    assert (stage.iterations, stage.crop_size) == (values["iterations"], values["crop"])
    assert stage.batch_size == values["batch"] * values.get("accumulate", 1)
    assert stage.network.lr == values["lr_backbone"]
    assert_network_is_published(stage.network)
    assert recipe.model["calibration"] == values["gamma"]
    assert "calibration" not in load_recipe(f"{benchmark}/spnet").model


@pytest.mark.parametrize("benchmark", FULL)
@pytest.mark.parametrize("method", ["spnet", "spnet_c"])
def test_spnet_is_tested_at_three_scales(benchmark, method):
    assert load_recipe(f"{benchmark}/{method}").model["test_scales"] == [1.0, 0.75, 0.5]


@pytest.mark.parametrize("benchmark", FULL)
def test_zs3net_is_trained_as_published(benchmark):
    values = PUBLISHED["zs3net"]
    stage = load_recipe(f"{benchmark}/zs3net_st").stages["finetune"]
    epochs = values.get(f"{benchmark}_epochs", values["epochs"])
    assert stage.iterations == math.ceil(epochs * TRAIN_IMAGES[benchmark] / values["batch"])
    assert stage.batch_size == values["batch"]
    assert (stage.classifier.optimizer, stage.classifier.lr) == ("sgd", values["lr_classifier"])
    assert (stage.classifier.weight_decay, stage.classifier.schedule, stage.classifier.power) == (5e-4, "poly", 0.9)
    assert stage.generator.lr == values["lr_generator"]
    assert stage.moment_matching.unseen_class_weight == values["unseen_class_weight"]
    assert stage.moment_matching.pairs_per_class == values["pairs_per_class"]


# Rows


@pytest.mark.parametrize("benchmark", [*FULL, "pascal_voc_edge", "scenes"])
def test_every_benchmark_has_the_eight_published_rows_and_the_rows_of_this_package(benchmark):
    rows = {name.split("/")[1] for name in recipe_names() if name.startswith(f"{benchmark}/")}
    # Prototypes need a backbone that is a classifier of ImageNet.
    own = {"gaussian", "spnet_st"} | ({"prototypes"} if benchmark == "pascal_voc_edge" else set())
    assert rows == {*published_results()["pascal_voc"], *own}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_describes_a_model_whose_stages_can_be_built(name):
    """On the meta device: nothing is allocated, whatever the size."""
    recipe = load_recipe(name)
    benchmark = benchmark_of(recipe)
    size = {"embedding_size": 24} if recipe.class_embeddings == "attributes" else {}
    for stage_name, stage in recipe.stages.items():
        fields = size | recipe.model_of(stage_name)
        with torch.device("meta"):
            model = CaGNetForSemanticSegmentation(CaGNetConfig(**benchmark.config_fields(), **fields))
            build_optimizers(model, stage)
            method_of(recipe.method, recipe.model).check(stage_name, stage, model)


def test_training_a_part_that_the_model_lacks_is_refused():
    recipe = tiny_recipe("spnet", "stages.pretrain.generator={optimizer: adam, lr: 0.1}")
    with pytest.raises(RecipeError, match=r"stages\.pretrain trains the generator, but this model has none"):
        build_stage_models(recipe, benchmark_of(recipe))


def test_a_stage_that_cannot_take_the_network_on_is_refused():
    recipe = tiny_recipe("gaussian", "stages.pretrain.model.feature_size=8")
    with pytest.raises(RecipeError, match=r"stages\.fit: its model cannot go on with the network: size mismatch for"):
        build_stage_models(recipe, benchmark_of(recipe))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.pretrain.model.clasifier=linear", "unknown key 'stages.pretrain.model.clasifier'; did you mean"),
        ("stages.pretrain.model.classifier_dropout=0", "stages.pretrain.model.classifier_dropout: say in model, too"),
    ],
)
def test_models_of_stages_are_checked(override, message):
    with pytest.raises(RecipeError, match=message):
        tiny_recipe("gaussian", override)


@pytest.mark.parametrize("override", ["stages.pretrain.model.depths=[2, 1, 1, 1]", "model.depths=[2, 1, 1, 1]"])
def test_a_network_of_other_layers_is_refused(override):
    recipe = tiny_recipe("gaussian", "stages.pretrain.model.depths=[1, 1, 1, 1]", override)
    with pytest.raises(RecipeError, match=r"stages\.fit: its model cannot go on .*: only one of them has backbone\."):
        build_stage_models(recipe, benchmark_of(recipe))


def test_parts_start_anew_wherever_the_model_changes_and_only_there():
    recipe = tiny_recipe("cagnet_pi_st", "until=self_train", "stages.finetune.model={classifier_hidden_size: 8}")
    models = build_stage_models(recipe, benchmark_of(recipe))
    assert len({id(model) for model in models.values()}) == 3
    recipe = tiny_recipe("cagnet_pi_st")
    assert len({id(model) for model in build_stage_models(recipe, benchmark_of(recipe)).values()}) == 1


@pytest.mark.parametrize("shorten", ["until=pretrain", "stages.fit=null"])
def test_a_run_of_the_first_stages_leaves_their_model(shorten):
    recipe = load_recipe("scenes/gaussian", [shorten])
    assert recipe.model == load_recipe("scenes/cagnet_pi").model
    assert not recipe.stages["pretrain"].model


def test_the_model_of_the_first_stages_is_that_of_their_last():
    pretrain = load_recipe("scenes/gaussian").first_stages(["pretrain"])
    assert pretrain.model == load_recipe("scenes/cagnet_pi").model
    of_cagnet = load_recipe("scenes/cagnet_pi").first_stages(["pretrain"])
    assert set(changed_keys(pretrain, of_cagnet)) == {"method"}


def test_a_stage_of_null_is_left_out():
    assert list(load_recipe("scenes", ["stages.pretrain=null"]).stages) == ["finetune"]
    with pytest.raises(RecipeError, match="no stage 'finetune' in this run"):
        load_recipe("scenes/gaussian", ["stages.finetune.iterations=1"])


def test_until_drops_the_stages_beyond(write):
    assert list(load_recipe("scenes", ["until=pretrain"]).stages) == ["pretrain"]
    assert list(load_recipe("scenes/cagnet_pi_st", ["until=self_train"]).stages)[-1] == "self_train"
    with pytest.raises(RecipeError, match="until=pretrian is no stage; did you mean 'pretrain'"):
        load_recipe("scenes", ["until=pretrian"])


@pytest.mark.parametrize(
    ("name", "overrides", "hint"),
    [
        ("scenes", ["stages.fintune.iterations=2"], "did you mean 'finetune'?; stages: pretrain, finetune"),
        ("scenes", ["until=pretrain", "stages.finetune.iterations=2"], "stages: pretrain"),
        ("scenes", ["stages.finetune.iterations=2", "until=pretrain"], "stages: pretrain"),
        ("scenes/spnet", ["stages.finetune.iterations=2"], "no stage 'finetune' in this run"),
        ("scenes/cagnet_pi", ["stages.self_train={iterations: 2}"], "no stage 'self_train' in this run"),
    ],
)
def test_a_key_of_a_stage_that_is_not_run_is_refused(name, overrides, hint):
    with pytest.raises(RecipeError) as refusal:
        load_recipe(name, overrides)
    assert hint in str(refusal.value)


# What recipes there are


def test_recipes_are_listed_with_what_they_are_for_and_what_was_measured(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines if line.startswith("  ") and "/" in line.split()[0]) == sorted(
        recipe_names()
    )
    assert any(
        line.startswith("  spnet ") and line.endswith("projected onto the fixed class embeddings.") for line in lines
    )
    (line,) = (line for line in lines if line.startswith("  scenes/spnet "))
    assert line.split()[1:] == ["0.633", "0.318", "0.419", "3"]
    (line,) = (line for line in lines if line.startswith("  scenes/spnet_st"))
    assert line.split()[1:] == []


def test_the_keys_of_a_recipe_are_listed_with_values_and_meanings(capsys):
    assert main(["recipes", "scenes/spnet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    written = {re.split("  +", line)[0]: re.split("  +", line)[-1] for line in lines}
    assert written["stages.pretrain.network.lr=0.002"] == "learning rate; where its schedule starts"
    assert written["model.calibration"].startswith("γ, subtracted from")
    assert written["model.output_stride=4"].startswith("Pixels of the image per cell")
    assert not any(key.startswith(("stages=", "model=", "model.seen_ids", "stages.finetune")) for key in written)
    keys = [key for key in written if "=" in key]
    assert load_recipe("scenes/spnet", keys) == load_recipe("scenes/spnet")


def test_every_key_of_every_method_has_a_meaning():
    plain = {"optimizer", "weight_decay"}  # which are called what they are
    kinds = [Options]
    for kind in kinds:
        assert {key for key, meaning in described_keys(kind, {}) if not meaning} <= plain
        kinds += [kind for kind in kind.__subclasses__() if kind.__module__.startswith("cagnet_hf.")]
    assert len(methods()) < len(kinds)  # every method's options were looked at


@pytest.mark.parametrize("weight", [0, 2])
def test_the_image_prior_of_the_frozen_gaussian_row_can_be_changed(weight):
    recipe = load_recipe("pascal_voc_frozen/gaussian", [f"model.image_prior={weight}"])
    assert recipe.model_of("fit")["image_prior"] == weight and recipe.model_of("pretrain")["image_prior"] == 0
