"""An honest answer for pixels of no class: a least probability for the label of a pixel, background as a seen class,
and scores in which background counts as a class."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_modeling import build
from transformers import pipeline

from cagnet_hf.apps.evaluation import evaluate
from cagnet_hf.apps.none_of_these import apply_min_score, choose_min_score
from cagnet_hf.apps.prediction import segment
from cagnet_hf.apps.prediction_files import write_prediction
from cagnet_hf.data.benchmarks import load_benchmark, parse_class_table
from cagnet_hf.data.label_space import LabelSpace
from cagnet_hf.data.sources import open_dataset
from cagnet_hf.evaluation.none_of_these import MIN_SCORES, best_min_score, min_score_curve
from cagnet_hf.evaluation.scoring import score
from cagnet_hf.evaluation.zero_shot_segmentation.confusion_matrix import ConfusionMatrix
from cagnet_hf.methods.options import RecipeError
from cagnet_hf.model.configuration_cagnet import NONE_OF_THESE, CaGNetConfig, unlabelled_id
from cagnet_hf.model.image_processing_cagnet import CaGNetImageProcessor
from cagnet_hf.training.recipe_files import load_recipe
from cagnet_hf.training.setup import benchmark_of, class_embeddings_of

PROCESSOR = CaGNetImageProcessor(size=48)
SCENES = load_benchmark("scenes")
BACKGROUND = len(SCENES.class_ids)  # of a label map, where background is counted


def output_of(probabilities, **fields):
    """What a model says of one image whose pixels have these probabilities `(N, h, w)`."""
    fields = {"calibration": None, "min_score": None} | fields
    return SimpleNamespace(logits=torch.tensor(probabilities).log()[None], **fields)


# The label of a pixel


@pytest.mark.parametrize(("min_score", "labels"), [(0, [0, 1]), (0.6, [0, 1]), (0.65, [0, 255]), (0.95, [255, 255])])
def test_a_pixel_whose_label_is_less_probable_is_given_to_no_class(min_score, labels):
    output = output_of([[[0.9, 0.375]], [[0.1, 0.625]]])
    (label_map,) = PROCESSOR.post_process_semantic_segmentation(output, min_score=min_score)
    assert label_map.tolist() == [labels]


def test_the_probability_is_that_of_the_label_after_calibration():
    """γ gives the pixel to class 1, whose probability counts as the softmax has it."""
    output = output_of([[[0.7]], [[0.3]]], calibration=torch.tensor([[0.5, 0.0]]))
    labels = [
        PROCESSOR.post_process_semantic_segmentation(output, min_score=min_score)[0].item()
        for min_score in (0.25, 0.35)
    ]
    assert labels == [1, 255]


def test_the_model_s_own_number_holds_where_none_is_given():
    outputs = build(min_score=0.99)(torch.randn(1, 3, 24, 32))
    assert (PROCESSOR.post_process_semantic_segmentation(outputs)[0] == 255).all()
    assert (PROCESSOR.post_process_semantic_segmentation(outputs, min_score=0)[0] < 5).all()
    (result,) = PROCESSOR.post_process_semantic_segmentation(outputs, return_segmentation_scores=True)
    assert (result["segmentation"] == 255).all()


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan")])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(ValueError, match=r"min_score.*choose a number from 0 to 1"):
        CaGNetConfig(min_score=wrong)
    with pytest.raises(ValueError, match=r"min_score.*choose a number from 0 to 1"):
        next(segment(build(), PROCESSOR, [Image.new("RGB", (9, 9))], min_score=wrong))


@pytest.mark.parametrize(("classes", "unlabelled"), [(20, 255), (255, 255), (256, 256), (300, 300)])
def test_no_class_has_the_id_of_pixels_of_no_class(classes, unlabelled):
    config = CaGNetConfig(id2label={i: f"class {i}" for i in range(classes)}, ignore_index=-100)
    assert unlabelled_id(classes) == unlabelled
    assert config.id2label[unlabelled] == NONE_OF_THESE
    with pytest.raises(KeyError):
        config.id2label[unlabelled + 1]
    assert json.loads(config.to_json_string())["id2label"].keys() == {str(i) for i in range(classes)}


def test_a_pipeline_names_the_pixels_of_no_class():
    segmenter = pipeline("image-segmentation", model=build(min_score=0.99), image_processor=PROCESSOR)
    (segment_found,) = segmenter(Image.new("RGB", (24, 16), "red"))
    assert segment_found["label"] == NONE_OF_THESE
    assert segment_found["mask"].getextrema() == (255, 255)


def test_a_prediction_tells_the_pixels_of_no_class_in_all_its_files(tmp_path):
    model, image = build(dataset_ids=[3, 4, 5, 6, 7]), Image.new("RGB", (64, 48), "red")
    random = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    image = Image.fromarray(random)
    (plain,) = segment(model, PROCESSOR, [image])
    bound = float(np.median(plain.scores))
    (prediction,) = segment(model, PROCESSOR, [image], min_score=bound)
    rejected = plain.scores < bound
    assert 0 < rejected.mean() < 1
    np.testing.assert_array_equal(prediction.label_map, np.where(rejected, 255, plain.label_map))
    np.testing.assert_array_equal(prediction.scores, plain.scores)

    write_prediction(prediction, tmp_path / "image.png", tmp_path)
    stored = np.asarray(Image.open(tmp_path / "image.png"))
    np.testing.assert_array_equal(stored, np.where(rejected, 255, plain.label_map + 3))
    classes = {entry["name"]: entry for entry in json.loads((tmp_path / "image.json").read_text())["classes"]}
    none = classes[NONE_OF_THESE]
    assert (none["dataset_id"], none["seen"]) == (255, None)
    assert none["area"] == pytest.approx(rejected.mean())
    assert none["score"] == pytest.approx(plain.scores[rejected].mean(), abs=1e-6)
    assert sum(entry["area"] for entry in classes.values()) == pytest.approx(1)


def test_pictures_leave_pixels_of_no_class_and_of_background_as_they_are():
    model = build(id2label=dict(enumerate(["cat", "Background", "dog", "train", "sofa"])))
    (prediction,) = segment(model, PROCESSOR, [Image.new("RGB", (64, 48), "red")])
    prediction.label_map[:] = 0
    prediction.label_map[:, 20:40], prediction.label_map[:, 40:] = 1, 255
    painted = prediction.painted((64, 48))
    assert (painted[:, :20] == 0).all() and (painted[:, 20:] == 255).all()
    shown = np.asarray(prediction.overlay())  # four times as large, in a margin of 8 pixels
    assert (shown[8:200, 100:260] == (255, 0, 0)).all()
    assert not (shown[8:200, 8:80] == (255, 0, 0)).all(-1).any()


# Scores with background


@pytest.fixture(scope="module")
def model():
    """A model of random weights, whose scores are sharpened, for the classes of the synthetic benchmark."""
    model = build(**SCENES.config_fields())
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.mul_(6)
    return model


@pytest.fixture(scope="module")
def rows(tiny_dataset):
    return open_dataset(str(tiny_dataset), "test")


@pytest.fixture(scope="module")
def counted(model, rows):
    """(truth, label, probability) of every pixel that is scored, truth with background."""
    labels = LabelSpace((*SCENES.class_ids, 0), len(SCENES.seen_ids))
    columns = []
    for sample in rows:
        truth = labels.to_model_order(sample.labels)
        (prediction,) = segment(model, PROCESSOR, [Image.fromarray(sample.image.permute(1, 2, 0).numpy())])
        kept = truth != 255
        columns.append((truth[kept], prediction.label_map[kept], prediction.scores[kept]))
    return [np.concatenate(column) for column in zip(*columns, strict=True)]


def scores_by_hand(truth, labels, config):
    seen = [*config.seen_ids, BACKGROUND]
    names = [*config.id2label.values(), "background"]
    matrix = ConfusionMatrix(len(names), seen, config.unseen_ids, dict(enumerate(names)))
    matrix.add(truth[None], labels[None])
    return matrix.scores()


def test_evaluate_gives_the_scores_with_background_beside_the_usual_ones(model, rows, counted, tiny_dataset):
    truth, labels, probabilities = counted
    bound = float(np.quantile(probabilities, 0.4))
    options = {"processor": PROCESSOR, "benchmark": "scenes"}
    metrics = evaluate(model, tiny_dataset, min_score=bound, **options)
    expected = scores_by_hand(truth, np.where(probabilities < bound, BACKGROUND, labels), model.config)
    found = metrics.pop("with_background")
    for key in ("S-mIoU", "U-mIoU", "hIoU", "mIoU", "PA"):
        assert found[key] == pytest.approx(expected[key])
    assert found["background_IoU"] == pytest.approx(expected["per_class"]["background"]["iou"])
    assert found["background_unlabelled"] == pytest.approx((probabilities < bound)[truth == BACKGROUND].mean())
    assert found["min_score"] == bound
    assert metrics == score(model, PROCESSOR, rows, progress=False)
    assert model.config.min_score == 0


def test_without_a_bound_no_background_is_left_unlabelled(model, tiny_dataset):
    found = evaluate(model, tiny_dataset, processor=PROCESSOR, benchmark="scenes")["with_background"]
    assert (found["background_IoU"], found["background_unlabelled"], found["min_score"]) == (0, 0, 0)


def test_the_usual_scores_do_without_the_model_s_bound(model, rows):
    expected = score(model, PROCESSOR, rows, progress=False)
    model.config.min_score = 0.9
    assert score(model, PROCESSOR, rows, progress=False) == expected
    model.config.min_score = 0.0


def test_a_dataset_whose_background_is_no_class_has_no_such_scores(model, tiny_dataset):
    assert "with_background" not in evaluate(model, tiny_dataset, processor=PROCESSOR)


def test_where_background_is_a_seen_class_it_gets_the_pixels_of_no_class(tiny_dataset):
    fields = SCENES.with_background_seen().config_fields()
    model = build(**fields)
    metrics = evaluate(model, tiny_dataset, processor=PROCESSOR, benchmark="scenes")
    found = metrics["with_background"]
    assert {key: metrics[key] for key in ("S-mIoU", "U-mIoU", "hIoU", "PA")} == {
        key: found[key] for key in ("S-mIoU", "U-mIoU", "hIoU", "PA")
    }
    assert found["background_IoU"] == metrics["per_class"]["background"]["iou"]
    found = evaluate(model, tiny_dataset, processor=PROCESSOR, benchmark="scenes", min_score=1)["with_background"]
    assert found["background_unlabelled"] == 1


# Choosing the bound


def test_the_curve_never_counts_a_pixel_of_an_unseen_class(model, rows, counted):
    truth, labels, probabilities = counted
    kept = (truth == BACKGROUND) | (truth < len(model.config.seen_ids))
    assert not kept.all()
    curve = min_score_curve(model, PROCESSOR, rows, SCENES, progress=False)
    assert list(curve) == list(MIN_SCORES)
    for bound in (0.0, 0.3, 0.75):
        answers = np.where(probabilities < np.float32(bound), BACKGROUND, labels)
        expected = scores_by_hand(truth[kept], answers[kept], model.config)
        assert curve[bound]["S-mIoU"] == pytest.approx(expected["S-mIoU"])
        assert curve[bound]["hIoU"] == 0


def test_hiou_decides_where_there_is_one_and_else_s_miou_and_of_equals_the_smallest():
    def entry(hiou, seen):
        return {"hIoU": hiou, "S-mIoU": seen}

    assert best_min_score({0.5: entry(0.2, 0.9), 0.1: entry(0.3, 0.4), 0.2: entry(0.3, 0.4)}) == 0.1
    assert best_min_score({0.0: entry(0.0, None), 0.3: entry(0.0, 0.4), 0.2: entry(0.0, 0.4)}) == 0.2


def test_without_background_there_is_nothing_to_choose_by(model, rows):
    table = "classes: [{id: 1, name: a}, {id: 2, name: b}]\nseen: [a]\nunseen: [b]"
    with pytest.raises(ValueError, match="sea has no class called background"):
        min_score_curve(model, PROCESSOR, rows, parse_class_table(table, "sea.yaml", "sea"))


def test_the_choice_is_written_into_the_model_folder(model, tiny_dataset, tmp_path):
    model.save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    chosen, curve = choose_min_score(str(tmp_path), str(tiny_dataset), benchmark="scenes")
    assert curve[chosen]["S-mIoU"] == max(scores["S-mIoU"] for scores in curve.values())
    apply_min_score(tmp_path, chosen)
    assert CaGNetConfig.from_pretrained(tmp_path).min_score == chosen


# Background as a seen class


def test_background_may_be_the_last_of_the_seen_classes():
    recipe = load_recipe("pascal_voc_edge/prototypes", ["background=seen"])
    benchmark = benchmark_of(recipe)
    assert (benchmark.seen_ids, benchmark.ignored_ids) == ((*range(1, 16), 0), ())
    assert class_embeddings_of(recipe, benchmark).shape == (21, 384)
    tuning = benchmark_of(load_recipe("pascal_voc_edge/prototypes", ["background=seen", "split=tuning"]))
    assert tuning.class_names[12] == "background"
    assert class_embeddings_of(load_recipe("scenes", ["background=seen"]), SCENES.with_background_seen()).any(1).all()


def test_a_table_that_says_so_has_background_seen_already():
    table = "classes: [{id: 0, name: Background}, {id: 1, name: a}, {id: 2, name: b}]\nseen: [0, a]\nunseen: [b]"
    benchmark = parse_class_table(table, "sea.yaml", "sea")
    assert benchmark.background_id == 0
    assert benchmark.with_background_seen().seen_ids == (1, 0)


def test_a_benchmark_without_background_cannot_have_it_seen():
    with pytest.raises(ValueError, match="coco_stuff has no class called background"):
        benchmark_of(load_recipe("coco_stuff/spnet", ["background=seen"]))
    with pytest.raises(RecipeError, match="background"):
        load_recipe("pascal_voc/spnet", ["background=unseen"])
