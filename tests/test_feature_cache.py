"""Features of a resting backbone: computed once, kept, found again, and never taken for others."""

import json
import pickle
from contextlib import closing

import numpy as np
import pytest
import torch
from tiny import tiny_recipe
from trained import write_dataset

from cagnet_hf.apps.evaluation import apply_calibration, evaluate
from cagnet_hf.apps.other_scores import other_scores
from cagnet_hf.apps.report import write_report
from cagnet_hf.evaluation.scoring import score
from cagnet_hf.methods.options import PassRecipe
from cagnet_hf.model.image_processing_cagnet import CaGNetImageProcessor
from cagnet_hf.model.maps_cagnet import centre_labels
from cagnet_hf.training.features import FeatureMaps, cached_features, check_feature_cache
from cagnet_hf.training.interruption import Stopped
from cagnet_hf.training.loop import StageRun, Trainer
from cagnet_hf.training.passes import WholeMaps
from cagnet_hf.training.recipe_files import load_recipe

FROZEN = [
    *("trackers=[]", "num_workers=0", "feature_cache={}", "augmentation={scale_range: [1, 1], flip_probability: 0.5}"),
    *("stages.pretrain.scales=[1.0]", "stages.pretrain.iterations=3", "stages.pretrain.batch_size=2"),
    *("stages.finetune.scales=[1.0]", "stages.finetune.iterations=4", "stages.finetune.batch_size=2"),
    "stages.pretrain.network.multipliers.backbone=0",
]


@pytest.fixture
def recipe(tiny_dataset):
    """`recipe(*overrides)`: a tiny CaGNet(pi), or another method, on cached features."""
    return lambda *overrides, method="cagnet_pi": tiny_recipe(method, f"dataset={tiny_dataset}", *FROZEN, *overrides)


@pytest.fixture
def computed(monkeypatch):
    """How many images features were computed of."""
    seen = []
    of = FeatureMaps.of

    def counted(self, samples, *arguments):
        return of(self, (seen.append(sample.id) or (number, sample) for number, sample in samples), *arguments)

    monkeypatch.setattr(FeatureMaps, "of", counted)
    return seen


def cache_of(trainer: Trainer):
    trainer.model = trainer.models[next(iter(trainer.recipe.stages))]
    return trainer.features()[1]


def test_a_record_holds_the_maps_of_the_image_and_of_its_mirror_image(recipe, tmp_path):
    trainer = Trainer(recipe(), tmp_path / "run")
    cache = cache_of(trainer)
    backbone = trainer.model.cagnet.backbone.eval()
    names = [sample.id for sample in trainer.train_set]
    assert sorted(cache.image_ids(range(len(cache)))) == sorted(names)
    for number in range(len(cache)):
        maps, labels = cache[number]
        sample = trainer.train_set[names.index(cache.image_ids([number])[0])]
        pixels = trainer.processor.prepare(sample.image)[None]
        with torch.no_grad():
            expected = torch.cat([backbone(pixels), backbone(pixels.flip(-1))])
        torch.testing.assert_close(maps.float(), expected, rtol=2e-3, atol=2e-3)
        stored = centre_labels(sample.labels, maps.shape[-2:])
        expected = trainer.benchmark.label_space.to_model_order(stored, hide_unseen=True)
        np.testing.assert_array_equal(labels, expected)


def test_a_cache_reaches_another_process_without_its_bytes(recipe, tmp_path):
    """A worker that is not forked gets a pickle of it; eight of them would hold the file eight times."""
    cache = cache_of(Trainer(recipe(), tmp_path / "run"))
    sent = pickle.dumps(cache)
    assert len(sent) < cache.cells.stat().st_size / 10
    for (maps, labels), (others, other_labels) in zip(cache, pickle.loads(sent), strict=True):
        assert torch.equal(maps, others)
        assert torch.equal(labels, other_labels)


def test_examples_are_crops_of_the_maps_mirrored_with_their_labels(recipe, tmp_path):
    trainer = Trainer(recipe("stages.pretrain.crop_size=64"), tmp_path / "run")
    cache = cache_of(trainer)
    run = StageRun(trainer, 0, "pretrain")
    run.model = trainer.model
    batches = run._new_batches(run.stage)
    stride = trainer.model.cagnet.feature_stride
    cells = 64 // stride
    with closing(batches.start(0)) as stream:
        for _ in range(6):
            (batch,) = batches.take(stream, 0)
            assert batch["backbone_features"].shape[2:] == batch["labels"].shape[1:] == (cells, cells)
            for features, labels in zip(batch["backbone_features"], batch["labels"], strict=True):
                assert any(is_crop(features, labels, *cache[number]) for number in range(len(cache)))


def is_crop(features, labels, maps, of_image) -> bool:
    cells = labels.shape[-1]
    for flips, whole in enumerate(maps):
        truth = of_image.flip(-1) if flips else of_image
        for top in range(whole.shape[1] - cells + 1):
            for left in range(whole.shape[2] - cells + 1):
                window = (slice(top, top + cells), slice(left, left + cells))
                if torch.equal(whole[(..., *window)], features):
                    return torch.equal(truth[window].long(), labels)
    return False


def test_every_stage_trains_on_features_that_are_computed_once(recipe, tmp_path, computed, monkeypatch):
    trainer = Trainer(recipe(), tmp_path / "run")
    backbone = trainer.models["pretrain"].cagnet.backbone
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    trainer.run()
    images = len(trainer.train_set) + len(trainer.test_set)
    assert len(computed) == images
    assert [stage["name"] for stage in trainer.state.stages] == ["pretrain", "finetune"]
    after = trainer.model.cagnet.backbone.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    again = Trainer(recipe(f"feature_cache.folder={tmp_path / 'run' / 'features'}", "seed=1"), tmp_path / "other")
    again.models["pretrain"].cagnet.backbone.load_state_dict(before)
    again.run()
    assert len(computed) == images


def test_scores_on_features_are_those_on_images(recipe, tmp_path):
    trainer = Trainer(recipe(), tmp_path / "run")
    scores = trainer.run()
    assert scores == score(trainer.model, trainer.processor, trainer.test_set, progress=False)


def test_other_scores_on_features_are_those_of_the_command_on_images(recipe, tmp_path, tiny_dataset, computed):
    chosen, run = recipe("processor={size: {longest_edge: 80}}"), tmp_path / "run"
    trainer = Trainer(chosen, run)
    trainer.run()
    write_report(trainer)
    computed.clear()
    found = other_scores(chosen, run, run / "features")
    assert len(computed) == len(trainer.test_set)  # warped to a square; those of the protocol full were there
    given = {"benchmark": "scenes"}
    on_images = evaluate(run / "model", tiny_dataset, protocol="paper", **given)
    assert found["paper"] == {key: value for key, value in on_images.items() if key != "with_background"}
    for min_score, scores in found["with_background"].items():
        on_images = evaluate(run / "model", tiny_dataset, min_score=float(min_score), **given)["with_background"]
        assert {"min_score": float(min_score), **scores} == on_images
    assert other_scores(chosen, run, run / "features") == json.loads(json.dumps(found))
    assert len(computed) == len(trainer.test_set)
    apply_calibration(run / "model", 0.9)
    assert other_scores(chosen, run, run / "features")["paper"]["calibration"] == 0.9


STAGES = {
    "zs3net": ("pretrain", "finetune"),
    "gaussian": ("pretrain", "fit"),
    "cagnet_pa": ("pretrain", "finetune"),
    "cagnet_pi_st": ("pretrain", "finetune", "self_train", "finetune_after_self_train"),
    "spnet_st": ("pretrain", "self_train"),
}


@pytest.mark.parametrize("method", STAGES)
def test_every_method_trains_on_features(tmp_path, tiny_dataset, method):
    keys = [f"dataset={tiny_dataset}", *(key for key in FROZEN if not key.startswith("stages."))]
    for stage in STAGES[method]:
        keys += [f"stages.{stage}.{key}" for key in ("iterations=2", "batch_size=2", "scales=[1.0]")]
        keys.append(f"stages.{stage}.augmentation={{scale_range: [1, 1]}}")
        if stage in ("pretrain", "self_train"):
            keys.append(f"stages.{stage}.network.multipliers.backbone=0")
    if method == "cagnet_pa":
        keys += ["stages.finetune.synthetic_size=6", "patches.epochs=1", "patches.bank_size=8"]
    trainer = Trainer(tiny_recipe(method, *keys), tmp_path / "run")
    metrics = trainer.run()
    assert tuple(stage["name"] for stage in trainer.state.stages) == STAGES[method]
    assert metrics["num_images"] == 6


def test_a_resumed_run_has_the_numbers_of_one_that_was_not_interrupted(recipe, tmp_path, one_thread, monkeypatch):
    whole = Trainer(recipe(), tmp_path / "whole")
    whole.run()
    parts = Trainer(recipe("checkpoint_every=1"), tmp_path / "parts")
    look_up = StageRun._look_up

    def stop(self, *arguments):
        self.stop.asked = self.name == "finetune" and self.state.iteration == 2
        return look_up(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(StageRun, "_look_up", stop)
        with pytest.raises(Stopped):
            parts.run()
    parts.folder.leave()
    again = Trainer(recipe("checkpoint_every=1"), tmp_path / "parts", resume=True)
    again.run()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


def test_a_killed_computation_goes_on_to_the_same_bytes(recipe, tmp_path, computed, monkeypatch):
    monkeypatch.setattr("cagnet_hf.training.features.BATCH", 3)
    monkeypatch.setattr("cagnet_hf.training.features.TOGETHER", 4)
    folder = f"feature_cache.folder={tmp_path / 'features'}"
    whole = cache_of(Trainer(recipe(), tmp_path / "whole"))
    computed.clear()
    with monkeypatch.context() as patch:
        trainer = Trainer(recipe(folder), tmp_path / "run")
        of = FeatureMaps.of

        def killed(self, *arguments):
            for number, record in enumerate(of(self, *arguments)):
                if number == 6:
                    raise KeyboardInterrupt
                yield record

        patch.setattr(FeatureMaps, "of", killed)
        with pytest.raises(KeyboardInterrupt):
            cache_of(trainer)
    trainer.folder.leave()
    (index,) = (tmp_path / "features").glob("*/index.jsonl")
    with index.open("a") as file:
        file.write("[1234, [2, 3")  # a line that a kill cut
    with index.with_name("cells.bin").open("ab") as file:
        file.write(b"half a record")
    computed.clear()
    again = cache_of(Trainer(recipe(folder), tmp_path / "again"))
    assert len(computed) == len(whole) - 4  # the first four are whole
    assert again.cells.read_bytes() == whole.cells.read_bytes()
    assert again.index.read_text() == whole.index.read_text()


def folders(path) -> set[str]:
    return {folder.name for folder in path.iterdir()}


def test_other_features_lie_elsewhere(recipe, tmp_path, tmp_path_factory):
    folder = f"feature_cache.folder={tmp_path / 'features'}"
    made = []

    def compute(*overrides, change=lambda trainer: None):
        trainer = Trainer(recipe(folder, *overrides), tmp_path / f"run{len(made)}")
        trainer.models["pretrain"].cagnet.backbone.load_state_dict(weights)
        change(trainer)
        made.append(cache_of(trainer).folder.name)
        return made[-1]

    weights = Trainer(recipe(), tmp_path / "first").models["pretrain"].cagnet.backbone.state_dict()
    first = compute()
    assert compute("seed=3") == first
    assert compute("split=tuning") == first  # stored ids are kept, whatever is hidden from training

    def touch(trainer):
        parameter = next(trainer.models["pretrain"].cagnet.backbone.parameters())
        parameter.data.view(-1)[0] += 1e-3

    others = [
        compute(change=touch),
        compute("processor.size={longest_edge: 64}"),
        compute("augmentation.flip_probability=0"),
        compute(f"dataset={write_dataset(tmp_path_factory.mktemp('other') / 'scenes', train=11)}"),
    ]
    assert len({first, *others}) == 5 and folders(tmp_path / "features") == {first, *others}


@pytest.mark.parametrize("damage", ["a byte", "the end", "no index", "another index"])
def test_damaged_features_are_computed_anew_in_one_line(recipe, tmp_path, computed, damage, caplog):
    folder = f"feature_cache.folder={tmp_path / 'features'}"
    first = cache_of(Trainer(recipe(folder), tmp_path / "run"))
    cells, index = first.cells, first.index
    expected = [first[number] for number in range(len(first))]
    data = bytearray(cells.read_bytes())
    if damage == "a byte":
        data[len(data) // 2] ^= 1
        cells.write_bytes(data)
    elif damage == "the end":
        cells.write_bytes(data[:-10])
    elif damage == "no index":
        index.unlink()
    else:
        index.write_text('{"made_by": 3}\n[["x"]]\n')
    computed.clear()
    caplog.clear()
    again = cache_of(Trainer(recipe(folder), tmp_path / "again"))
    assert len(computed) == len(again) == len(expected)
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (damage != "no index")
    for number, (maps, labels) in enumerate(expected):
        assert torch.equal(again[number][0], maps) and torch.equal(again[number][1], labels)


def test_streamed_images_have_the_same_features(recipe, tmp_path):
    whole = cache_of(Trainer(recipe(), tmp_path / "whole"))
    streamed = cache_of(Trainer(recipe("streaming=true"), tmp_path / "streamed"))
    assert whole.image_ids(range(len(whole))) == streamed.image_ids(range(len(streamed)))
    for number in range(len(whole)):
        assert torch.equal(whole[number][0], streamed[number][0])


def test_a_share_of_the_cells_can_be_kept(recipe, tmp_path):
    keys = ["feature_cache={cells_per_image: 9}", "model.aspp=none", "model.feature_size=16"]
    recipe = recipe(*keys, "stages.pretrain.network=null", method="zs3net")
    trainer = Trainer(recipe, tmp_path / "run")
    cache = cache_of(trainer)
    maps, labels = cache[0]
    assert maps.shape == (1, 16, 1, 9) and labels.shape == (1, 9)
    sample = next(iter(trainer.train_set))
    with torch.no_grad():
        whole = trainer.model.cagnet.backbone.eval()(trainer.processor.prepare(sample.image)[None])[0].flatten(1)
    distances = torch.cdist(maps[0, :, 0].t().float(), whole.t())
    assert distances.amin(1).max() < 1e-2
    assert len(distances.argmin(1).unique()) == 9


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.pretrain.network.multipliers.backbone=1", "trains the backbone, whose features are computed once"),
        ("stages.pretrain.scales=[1.0, 0.5]", "features are computed at one scale: set scales"),
        ("augmentation.scale_range=[0.5, 1.5]", "features are computed at one scale"),
        ("feature_cache.cells_per_image=9", "looks at neighbours of a cell"),
    ],
)
def test_stages_that_need_more_than_features_are_refused(recipe, tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        Trainer(recipe(override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_features_that_the_disk_cannot_hold_are_refused_before_they_are_computed(recipe, tmp_path, monkeypatch):
    trainer = Trainer(recipe(), tmp_path / "run")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(ValueError, match=r"take up to 0.0 GB, but .* has 0.0 GB left: set feature_cache.cells_per"):
        cache_of(trainer)


def test_of_two_computations_in_one_folder_one_waits_for_the_other(recipe, tmp_path, monkeypatch, caplog):
    trainer = Trainer(recipe(), tmp_path / "run")
    answers = iter([False, False, True])
    monkeypatch.setattr("cagnet_hf.training.features.lock_file", lambda file: next(answers))
    monkeypatch.setattr("cagnet_hf.training.features.WAIT_SECONDS", 0.01)
    with caplog.at_level("INFO"):
        assert len(cache_of(trainer)) == len(trainer.train_set)
    assert caplog.text.count("Waiting for another process that is computing") == 1


def test_a_closed_form_passes_over_the_features(recipe, tmp_path, computed):
    """The pass of prototypes needs a whole image classifier; here it is the maps that such a pass sees."""
    trainer = Trainer(recipe(), tmp_path / "run")
    cache = cache_of(trainer)
    computed.clear()
    batches = list(WholeMaps(PassRecipe(batch_size=4), cache, trainer.accelerator).take(None, 0))
    assert sum(len(batch["labels"]) for batch in batches) == len(cache) and not computed
    for maps, labels in cache:
        same = [
            torch.equal(labels.long(), of_batch)
            for batch in batches
            for features, of_batch in zip(batch["backbone_features"], batch["labels"], strict=True)
            if torch.equal(features, maps[0])
        ]
        assert True in same


def test_a_pass_over_images_without_unseen_classes_needs_the_images(tiny_dataset, tmp_path):
    recipe = load_recipe(
        "pascal_voc_frozen/prototypes",
        [f"dataset={tiny_dataset}", "stages.fit.images_without_unseen=true", "trackers=[]"],
    )
    models = dict.fromkeys(recipe.stages)
    with pytest.raises(ValueError, match="images_without_unseen: cells do not tell"):
        check_feature_cache(recipe, models)


def test_a_processor_that_was_saved_finds_the_features_of_one_that_was_not(recipe, tmp_path, computed):
    trainer = Trainer(recipe(), tmp_path / "run")
    cache = cache_of(trainer)
    trainer.processor.save_pretrained(tmp_path / "saved")
    processor = CaGNetImageProcessor.from_pretrained(tmp_path / "saved")
    images = len(computed)
    again = cached_features(
        trainer.recipe, trainer.features_folder, trainer.train_set, trainer.model, processor, trainer.accelerator
    )
    assert again.folder == cache.folder and len(computed) == images


def test_the_index_says_what_the_features_depend_on(recipe, tmp_path):
    cache = cache_of(Trainer(recipe(), tmp_path / "run"))
    lines = cache.index.read_text().splitlines()
    assert json.loads(lines[0])["backbone"]["backbone"] == "resnet"
    assert json.loads(lines[-1]) == {"images": len(cache)}
