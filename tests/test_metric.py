"""The metric: the reference's scores, streaming, refusals. Label maps of a few pixels spell the rules out."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from golden import recipe

from cagnet_hf.evaluation import METRIC_PATH

GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics.json").read_text())
# The remaining entries record how the reference fails on a prediction outside the label set.
GOLDEN_CASES = sorted(GOLDEN["_inputs"])
REFERENCE_KEYS = {
    "hIoU": "Mean IoU Harmonic",
    "mIoU": "Mean IoU",
    "PA": "Overall Acc",
    "MA": "Mean Acc",
    "S-mIoU": "Mean IoU Seen",
    "U-mIoU": "Mean IoU Unseen",
    "U-PA": "Overall Acc Unseen",
    "U-MA": "Mean Acc Unseen",
}


def load_metric(num_seen=15, num_unseen=5, **options):
    seen_ids, unseen_ids = range(num_seen), range(num_seen, num_seen + num_unseen)
    return evaluate.load(
        METRIC_PATH, num_labels=num_seen + num_unseen, seen_ids=seen_ids, unseen_ids=unseen_ids, **options
    )


def golden_maps(case):
    """Six maps `(6, 33, 41)` of prediction and truth, made as the golden set describes."""
    inputs, shape = GOLDEN["_inputs"][case], (6, 33, 41)

    def draw(suffix, high):
        return recipe.integers(f"metric:{case}:{suffix}", shape, high)

    truth = np.asarray(inputs["gt"])[draw("t", len(inputs["gt"]))]
    prediction = np.asarray(inputs["pred"])[draw("p", len(inputs["pred"]))]
    correct = (draw("k", inputs["acc"]) > 0) & (truth != 255) & np.isin(truth, inputs["pred"])
    return np.where(correct, truth, prediction), truth


def reference_value(value):
    return None if value == "nan" else pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_scores_are_those_of_the_reference(case):
    prediction, truth = golden_maps(case)
    scores = load_metric().compute(predictions=prediction, references=truth)
    for key, reference_key in REFERENCE_KEYS.items():
        assert scores[key] == reference_value(GOLDEN[case]["gzsl"][reference_key]), key


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_class_ious_are_those_of_the_reference(case):
    prediction, truth = golden_maps(case)
    scores = load_metric().compute(predictions=prediction, references=truth)
    ious = [entry["iou"] for entry in scores["per_class"].values()]
    assert ious == [reference_value(value) for value in GOLDEN[case]["iou"]]


def test_per_class_names_the_class_its_split_and_its_pixels():
    metric = load_metric(1, 1, id2label={"0": "cat", "1": "sofa"})
    scores = metric.compute(predictions=[[[0, 0, 1]]], references=[[[0, 1, 1]]])
    assert scores["per_class"] == {
        "cat": {"iou": 0.5, "recall": 1.0, "seen": True, "pixels": 1, "given_to": {}},
        "sofa": {"iou": 0.5, "recall": 0.5, "seen": False, "pixels": 2, "given_to": {"cat": 0.5}},
    }


def test_what_a_class_was_given_to_is_said_largest_first_without_traces():
    metric = load_metric(3, 0, id2label={0: "cat", 1: "sofa", 2: "dog"})
    prediction = np.array([[0] * 700 + [1] * 96 + [2] * 200 + [0] * 4])
    truth = np.array([[0] * 996 + [1] * 4])
    scores = metric.compute(predictions=prediction, references=truth)["per_class"]
    assert list(scores["cat"]["given_to"].items()) == [("dog", 0.2008), ("sofa", 0.0964)]
    assert scores["sofa"]["given_to"] == {"cat": 1.0}
    prediction[0, 700:895] = 0
    truth[0, :] = 0
    scores = metric.compute(predictions=prediction, references=truth)["per_class"]
    assert list(scores["cat"]["given_to"]) == ["dog"]  # a sofa of one pixel in a thousand is left out


def test_a_class_absent_from_truth_and_prediction_leaves_the_means():
    scores = load_metric(2, 1).compute(predictions=[[[0, 2]]], references=[[[0, 2]]])
    assert scores["per_class"]["1"] == {
        "iou": None,
        "recall": None,
        "seen": True,
        "pixels": 0,
        "given_to": {},
    }
    assert scores["mIoU"] == scores["MA"] == scores["S-mIoU"] == 1.0


def test_a_class_predicted_but_never_true_has_iou_zero_and_no_recall():
    scores = load_metric(2, 1).compute(predictions=[[[0, 1]]], references=[[[0, 0]]])
    assert (scores["per_class"]["1"]["iou"], scores["per_class"]["1"]["recall"]) == (0.0, None)
    assert scores["S-mIoU"] == 0.25
    assert scores["MA"] == 0.5


def test_nothing_counted_gives_no_mean():
    scores = load_metric().compute()
    assert all(scores[key] is None for key in REFERENCE_KEYS if key != "hIoU")


def test_ignored_pixels_do_not_count():
    metric = load_metric(1, 1)
    metric.add(prediction=[[0, 1, 0]], reference=[[0, 255, 255]])
    assert metric.confusion_matrix.tolist() == [[1, 0], [0, 0]]


def test_rows_are_the_truth():
    metric = load_metric(1, 1)
    metric.add(prediction=[[1, 1]], reference=[[0, 0]])
    assert metric.confusion_matrix.tolist() == [[0, 2], [0, 0]]


def test_streaming_equals_one_shot():
    prediction, truth = golden_maps("all")
    streamed = load_metric()
    for start in range(0, 6, 2):
        streamed.add_batch(predictions=prediction[start : start + 2], references=truth[start : start + 2])
    assert streamed.compute() == load_metric().compute(predictions=prediction, references=truth)


@pytest.mark.parametrize(
    "convert",
    [list, np.uint8, np.ndarray.tolist, torch.from_numpy, lambda maps: list(torch.from_numpy(maps))],
    ids=["list of arrays", "uint8", "nested lists", "tensor", "list of tensors"],
)
def test_containers_are_equal(convert):
    prediction, truth = golden_maps("all")
    metric, converted = load_metric(), load_metric()
    metric.add_batch(predictions=prediction, references=truth)
    converted.add_batch(predictions=convert(prediction), references=convert(truth))
    assert (converted.confusion_matrix == metric.confusion_matrix).all()


def test_maps_of_different_sizes_are_counted():
    metric = load_metric(1, 1)
    sizes = [(3, 4), (2, 5)]
    maps = [np.zeros(size, np.uint8) for size in sizes]
    metric.add_batch(predictions=maps, references=maps)
    assert metric.confusion_matrix.tolist() == [[22, 0], [0, 0]]


def test_merging_two_halves_equals_the_whole():
    prediction, truth = golden_maps("all")
    whole, half, other = load_metric(), load_metric(), load_metric()
    whole.add_batch(predictions=prediction, references=truth)
    half.add_batch(predictions=prediction[:3], references=truth[:3])
    other.add_batch(predictions=prediction[3:], references=truth[3:])
    half.merge(torch.from_numpy(other.confusion_matrix))
    assert half.compute() == whole.compute()


def test_computing_starts_afresh():
    metric = load_metric(1, 1)
    metric.compute(predictions=[[[0]]], references=[[[0]]])
    assert metric.confusion_matrix.sum() == 0


def test_scores_are_json():
    prediction, truth = golden_maps("absent_both")
    scores = load_metric().compute(predictions=prediction, references=truth)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


@pytest.mark.parametrize("value", [20, -1, 255])
def test_a_prediction_outside_the_label_set_is_refused_before_counting(value):
    metric = load_metric()
    good = np.zeros((2, 2), np.int64)
    bad = np.array([[0, 0], [0, value]])
    with pytest.raises(ValueError, match=f"prediction holds {value}"):
        metric.add_batch(predictions=[good, bad], references=[good, good])
    assert metric.confusion_matrix.sum() == 0


def test_a_prediction_outside_the_label_set_is_refused_at_an_ignored_pixel():
    with pytest.raises(ValueError, match="prediction holds 20"):
        load_metric().add(prediction=[[20]], reference=[[255]])


@pytest.mark.parametrize("value", [20, -1, 254])
def test_a_reference_outside_the_label_set_is_refused(value):
    with pytest.raises(ValueError, match=f"reference holds {value}"):
        load_metric().add(prediction=[[0]], reference=[[value]])


def test_maps_of_unequal_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 3\), but reference of shape \(3, 2\)"):
        load_metric().add(prediction=np.zeros((2, 3), int), reference=np.zeros((3, 2), int))


def test_unequal_numbers_of_maps_are_refused():
    with pytest.raises(ValueError, match="1 predictions but 2 references"):
        load_metric().add_batch(predictions=[[[0]]], references=[[[0]], [[0]]])


def test_logits_are_refused():
    with pytest.raises(TypeError, match="argmax"):
        load_metric().add(prediction=np.zeros((2, 2)), reference=np.zeros((2, 2), int))


@pytest.mark.parametrize(
    "wrong",
    [
        {"seen_ids": [0, 1], "unseen_ids": [1, 2]},
        {"seen_ids": [0], "unseen_ids": [2]},
        {"seen_ids": [0, 1], "unseen_ids": [2], "id2label": {0: "cat", 1: "cat"}},
        {"seen_ids": [0, 1], "unseen_ids": [2], "ignore_index": 2},
    ],
    ids=["overlap", "gap", "names", "ignore"],
)
def test_a_label_set_that_contradicts_itself_is_refused(wrong):
    with pytest.raises(ValueError):
        evaluate.load(METRIC_PATH, num_labels=3, **wrong)


# As `mean_iou` is used: loaded without a label set


def test_a_metric_without_a_label_set_is_told_it_with_the_maps():
    prediction, truth = golden_maps("all")
    metric = evaluate.load(METRIC_PATH)
    given = {"predictions": prediction, "references": truth, "num_labels": 20, "ignore_index": 255}
    scores = metric.compute(**given, unseen_ids=range(15, 20), id2label={0: "cat"})
    expected = load_metric(id2label={0: "cat"}).compute(predictions=prediction, references=truth)
    assert scores == expected
    assert metric.compute(**given, seen_ids=range(15))["hIoU"] == expected["hIoU"]


def mean_iou(predictions, references, num_labels: int, ignore_index: int) -> tuple[float, float, float, list, list]:
    """Mean IoU, mean accuracy, overall accuracy, IoU and accuracy by class, as `mean_iou` defines them."""
    prediction, truth = (
        np.concatenate([m.ravel() for m in predictions]),
        np.concatenate([m.ravel() for m in references]),
    )
    prediction, truth = prediction[truth != ignore_index], truth[truth != ignore_index]
    both = np.array([((prediction == i) & (truth == i)).sum() for i in range(num_labels)])
    either = np.array([((prediction == i) | (truth == i)).sum() for i in range(num_labels)])
    true = np.array([(truth == i).sum() for i in range(num_labels)])
    with np.errstate(invalid="ignore"):
        iou, accuracy = both / either, both / true
    return np.nanmean(iou), np.nanmean(accuracy), both.sum() / true.sum(), list(iou), list(accuracy)


@pytest.mark.parametrize("ignore_index", [255, 6, -1])
def test_scores_are_those_of_mean_iou(ignore_index):
    """Of seven classes, class 5 is predicted but never true, and class 6 is neither."""
    rng = np.random.default_rng(0)
    predictions, references = ([rng.integers(0, high, (7, 9)) for _ in range(3)] for high in (6, 5))
    for reference in references:
        reference[0] = ignore_index
    num_labels = 6 if ignore_index == 6 else 7
    given = {"num_labels": num_labels, "ignore_index": ignore_index, "reduce_labels": False, "nan_to_num": None}
    scores = evaluate.load(METRIC_PATH).compute(predictions=predictions, references=references, **given)
    *means, iou, accuracy = mean_iou(predictions, references, num_labels, ignore_index)
    assert [scores["mIoU"], scores["MA"], scores["PA"]] == pytest.approx(means, rel=1e-12)
    of_classes = [(entry["iou"], entry["recall"]) for entry in scores["per_class"].values()]
    assert of_classes == [
        tuple(None if np.isnan(value) else pytest.approx(value, rel=1e-12) for value in pair)
        for pair in zip(iou, accuracy, strict=True)
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seen_ids": [0, 1.5]}, r"^seen_ids: \[0, 1.5\] is no list of whole numbers$"),
        ({"unseen_ids": ["1"]}, r"^unseen_ids: \['1'\] is no list"),
        ({"unseen_ids": 1}, "^unseen_ids: 1 is no list"),
        ({"ignore_index": None}, r"^ignore_index: \[None\] is no"),
        ({"num_labels": 2.0}, r"^num_labels: \[2.0\] is no"),
        ({"num_labels": 0}, "^num_labels 0: a metric has at least one class$"),
        ({"reduce_labels": True}, "^reduce_labels: no option of this metric, which takes num_labels, id2label"),
    ],
)
def test_a_wrong_option_is_named(wrong, message):
    given = {"predictions": [[[0, 1]]], "references": [[[0, 1]]], "num_labels": 2}
    with pytest.raises(ValueError, match=message):
        evaluate.load(METRIC_PATH).compute(**given | wrong)


def test_every_class_is_seen_where_none_is_named():
    prediction, truth = golden_maps("all")
    scores = evaluate.load(METRIC_PATH).compute(predictions=prediction, references=truth, num_labels=20)
    expected = load_metric().compute(predictions=prediction, references=truth)
    assert (scores["mIoU"], scores["S-mIoU"]) == (expected["mIoU"], expected["mIoU"])
    assert (scores["U-mIoU"], scores["U-PA"], scores["U-MA"], scores["hIoU"]) == (None, None, None, 0.0)


def test_what_was_added_stays_where_other_maps_are_scored():
    metric = load_metric(1, 1)
    metric.add(prediction=[[0, 1]], reference=[[0, 0]])
    assert metric.compute(predictions=[[[2]]], references=[[[2]]], num_labels=3)["mIoU"] == 1.0
    assert metric.confusion_matrix.sum() == 2


def test_a_metric_without_a_label_set_says_what_is_missing():
    metric = evaluate.load(METRIC_PATH)
    with pytest.raises(ValueError, match="loaded without num_labels"):
        metric.add(prediction=[[0]], reference=[[0]])
    with pytest.raises(ValueError, match=r"^ignore_index without num_labels: give the number of classes, too$"):
        metric.compute(predictions=[[[0]]], references=[[[0]]], ignore_index=0)
    with pytest.raises(ValueError, match="needs both predictions and references"):
        metric.compute(num_labels=2)


@pytest.mark.parametrize("ignore_index", [-100, 1000])
def test_any_value_may_mark_ignored_pixels(ignore_index):
    metric = load_metric(1, 1, ignore_index=ignore_index)
    metric.add(prediction=np.array([[0, 1]], np.uint8), reference=np.array([[0, ignore_index]]))
    metric.add(prediction=np.array([[0]], np.uint8), reference=np.array([[1]], np.uint8))
    assert metric.confusion_matrix.tolist() == [[1, 0], [1, 0]]


def test_masked_pixels_are_ignored():
    prediction = np.ma.array([[0, 1, 7]], mask=[[False, False, True]])
    reference = np.ma.array([[0, 9, 1]], mask=[[False, True, False]])
    metric = load_metric(1, 1)
    metric.add(prediction=prediction, reference=reference)
    metric.add_batch(predictions=prediction[None], references=reference[None])
    metric.add_batch(predictions=[list(prediction)], references=[list(reference)])
    assert metric.confusion_matrix.tolist() == [[3, 0], [0, 0]]


def test_ids_that_are_no_integers_are_refused():
    with pytest.raises(TypeError, match="reference of type float64"):
        load_metric().add(prediction=np.zeros((2, 2), int), reference=np.zeros((2, 2)))


ELSEWHERE = """
import sys, evaluate
metric = evaluate.load(sys.argv[1], num_labels=2, seen_ids=[0], unseen_ids=[1])
metric.add_batch(predictions=[[[0, 1]]], references=[[[0, 1]]])
assert metric.compute()["hIoU"] == 1.0
assert "harmonic mean" in metric.description and "predictions: Integer label maps" in metric.inputs_description
assert not [name for name in sys.modules if name.partition(".")[0] == "cagnet_hf"]
"""


def test_a_copied_folder_is_loaded_offline_by_a_process_of_its_own(tmp_path):
    copy = shutil.copytree(METRIC_PATH, tmp_path / "zero_shot_segmentation")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    finished = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(copy)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
