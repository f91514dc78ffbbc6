"""The parts of ZS3Net give the reference's numbers."""

import json

import evaluate
import numpy as np
import pytest
import torch
from golden import recipe as golden
from golden_weights import GOLDEN

from cagnet_hf import CaGNetConfig
from cagnet_hf.evaluation import METRIC_PATH
from cagnet_hf.methods.losses import moment_matching_loss, multi_scale_cross_entropy
from cagnet_hf.methods.options import OptimizerRecipe
from cagnet_hf.model.parts_cagnet import MomentMatchingGenerator

VALUES = json.loads((GOLDEN / "zs3.json").read_text())
ARRAYS = np.load(GOLDEN / "zs3.npz")
PRECISIONS = {torch.float32: {"rel": 1e-5}, torch.float64: {"rel": 1e-9}}


# Generator


def golden_generator(name: str) -> MomentMatchingGenerator:
    """The reference's generator as 1x1 convolutions; only the part that makes features."""
    hidden_sizes = [] if name == "linear" else [256]
    config = CaGNetConfig(
        id2label={0: "a"},
        contextual=False,
        classifier="linear",
        generator="moment_matching",
        feature_size=256,
        embedding_size=300,
        generator_hidden_sizes=hidden_sizes,
        generator_dropout=[0.5] * len(hidden_sizes),
    )
    generator = MomentMatchingGenerator(config)
    originals = {"layers.0": "model"} if name == "linear" else {"layers.0": "model.0", "layers.3": "model.3"}
    weights = {}
    for layer, original in originals.items():
        for leaf in ("weight", "bias"):
            key = f"{original}.{leaf}"
            linear = torch.from_numpy(golden.fill(f"zs3.{name}.{key}", VALUES["net_keys"][name][key]))
            weights[f"{layer}.{leaf}"] = linear[..., None, None] if leaf == "weight" else linear
    generator.load_state_dict(weights, strict=True)
    return generator.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", ["linear", "hidden256", "semantic"])
def test_generated_features_are_the_reference_s(name):
    embeddings = torch.from_numpy(golden.noise("gmmn:e", (16, 300)))
    noise = torch.from_numpy(golden.features("gmmn:z", (16, 300)))
    pixels = (values.t()[None, :, None] for values in (embeddings, noise))  # (1, 300, 1, 16)
    features = golden_generator(name)(*pixels)[0, :, 0].t()
    np.testing.assert_allclose(features, ARRAYS[f"net/{name}/out0"], rtol=1e-4, atol=1e-5)


# Moment matching


def golden_features(case: str, dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Synthetic and real features, `(M, 256)` and `(N, 256)`."""
    m, n = (int(part) for part in case.split("_")[:2])
    scale = np.float32(0.1 if case.endswith("tenth") else 1)
    synthetic, real = golden.features(f"gmmn:a:{m}", (m, 256)), golden.features(f"gmmn:b:{n}", (n, 256))
    return torch.from_numpy(synthetic * scale).to(dtype), torch.from_numpy(real * scale).to(dtype)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=["float32", "float64"])
@pytest.mark.parametrize("case", ["128_128", "128_128_tenth", "1_1"])
def test_moment_matching_loss_is_the_reference_s(case, dtype):
    synthetic, real = golden_features(case, dtype)
    loss = moment_matching_loss(synthetic.requires_grad_(), real)
    (gradient,) = torch.autograd.grad(loss, synthetic)
    # The sets of "tenth" are near each other: their kernels cancel to a thousandth.
    tolerance = {"rel": 1e-3} if case.endswith("tenth") and dtype == torch.float32 else PRECISIONS[dtype]
    assert loss.item() == pytest.approx(VALUES["gmmn_loss"]["f64"][case]["value"], **tolerance)
    assert gradient.norm().item() == pytest.approx(VALUES["gmmn_loss"]["f64"][case]["grad_l2"], **tolerance)
    if not case.endswith("tenth"):
        rtol, atol = (1e-4, 1e-7) if dtype == torch.float32 else (1e-9, 1e-12)
        right, error = golden.check_probe(ARRAYS, f"grad/{case}", gradient.numpy(), rtol, atol)
        assert right, error


def test_sets_of_unequal_size_are_told_apart_where_the_reference_mixes_them():
    """With M synthetic and N real features it takes the first N of all as one set, whichever they are."""
    synthetic, real = golden_features("64_32", torch.float64)
    everything = torch.cat([synthetic.requires_grad_(), real])
    mixed = moment_matching_loss(everything[:32], everything[32:])
    swapped = moment_matching_loss(everything[32:], everything[:32])  # only the first set learns
    (gradient,) = torch.autograd.grad(mixed + swapped, synthetic)
    right, error = golden.check_probe(ARRAYS, "grad/64_32", gradient.numpy(), rtol=1e-9, atol=1e-12)
    assert right, error
    assert mixed.item() == pytest.approx(VALUES["gmmn_loss"]["f64"]["64_32"]["value"], rel=1e-9)
    assert moment_matching_loss(synthetic, real).item() != pytest.approx(mixed.item(), rel=1e-3)


def test_moment_matching_is_symmetric_and_does_not_count_repetitions():
    a, b = golden_features("64_32", torch.float64)
    loss = moment_matching_loss(a, b).item()
    assert moment_matching_loss(b, a).item() == pytest.approx(loss)
    assert moment_matching_loss(a, torch.cat([b, b])).item() == pytest.approx(loss)


def test_wider_kernels_are_those_of_features_nearer_each_other():
    a, b = golden_features("64_32", torch.float64)
    loss = moment_matching_loss(a, b).item()
    assert moment_matching_loss(10 * a, 10 * b, bandwidth_scale=100).item() == pytest.approx(loss)
    assert moment_matching_loss(10 * a, 10 * b).item() != pytest.approx(loss, rel=1e-2)


def test_moment_matching_of_equal_sets_has_a_finite_gradient():
    synthetic, real = (
        golden_features("128_128", torch.float32)[0].requires_grad_(),
        golden_features("128_128", torch.float32)[0],
    )
    moment_matching_loss(synthetic, real).backward()
    assert synthetic.grad.isfinite().all()


def test_autocast_leaves_moment_matching_in_single_precision():
    synthetic, real = golden_features("128_128_tenth", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = moment_matching_loss(synthetic, real)
    assert loss.item() == pytest.approx(VALUES["gmmn_loss"]["f64"]["128_128_tenth"]["value"], rel=1e-3)


# Classification


@pytest.mark.parametrize("dtype", PRECISIONS, ids=["float32", "float64"])
def test_cross_entropy_is_the_reference_s_not_divided_by_the_batch(dtype):
    logits = 4 * torch.from_numpy(golden.uniform("zs3:logit", (3, 21, 7, 9))).to(dtype)
    labels = torch.from_numpy(golden.labels("zs3:ce", 3, 7, 9, 21, cell=2))
    loss = multi_scale_cross_entropy([logits], [labels]).item()
    assert loss / 3 == pytest.approx(VALUES["seg_loss"]["f64"]["ce"], **PRECISIONS[dtype])


# Scores


def golden_maps(case: str) -> tuple[np.ndarray, np.ndarray]:
    """(predictions, references), four maps each."""
    inputs, shape = VALUES["evaluator"][case], (4, 19, 23)

    def draw(suffix, high):
        return golden.integers(f"zmetric:{case}:{suffix}", shape, high)

    truth = np.asarray(inputs["gt_classes"])[draw("t", len(inputs["gt_classes"]))]
    prediction = np.asarray(inputs["pred_classes"])[draw("p", len(inputs["pred_classes"]))]
    return np.where((draw("k", inputs["keep"]) > 0) & (truth != 255), truth, prediction), truth


@pytest.mark.parametrize("case", VALUES["evaluator"])
def test_scores_are_those_of_the_reference_s_evaluator(case):
    """A class that neither truth nor prediction has counts as zero there; ours leaves it out of the means."""
    unseen = [10, 14]
    seen = [class_id for class_id in range(21) if class_id not in unseen]
    metric = evaluate.load(METRIC_PATH, num_labels=21, seen_ids=seen, unseen_ids=unseen)
    predictions, references = golden_maps(case)
    scores, expected = metric.compute(predictions=predictions, references=references), VALUES["evaluator"][case]
    for measure, name in (("iou", "Mean_IoU"), ("recall", "Pixel_Accuracy_Class")):
        values = [None if value == "nan" else pytest.approx(value, rel=1e-12) for value in expected[name][1]]
        assert [entry[measure] for entry in scores["per_class"].values()] == values

    def reference_mean(name, index, group):
        present = [class_id for class_id in group if class_id in expected["gt_classes"]]
        return pytest.approx(expected[name][index] * len(group) / len(present), rel=1e-12)

    assert scores["PA"] == pytest.approx(expected["Pixel_Accuracy"][0], rel=1e-12)
    assert scores["U-PA"] == pytest.approx(expected["Pixel_Accuracy"][2], rel=1e-12)
    assert scores["MA"] == reference_mean("Pixel_Accuracy_Class", 0, range(21))
    assert scores["U-MA"] == reference_mean("Pixel_Accuracy_Class", 3, unseen)
    assert scores["mIoU"] == reference_mean("Mean_IoU", 0, range(21))
    assert scores["S-mIoU"] == reference_mean("Mean_IoU", 2, seen)
    assert scores["U-mIoU"] == reference_mean("Mean_IoU", 3, unseen)


# Schedules


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("poly", {"schedule": "poly", "power": 0.9}),
        ("step", {"schedule": "step", "start": 200, "every": 200, "factor": 0.1}),
    ],
)
def test_learning_rates_are_those_of_the_reference_s_schedulers(name, schedule):
    recipe, epochs, iterations_per_epoch = OptimizerRecipe(optimizer="sgd", lr=0.007, **schedule), 50, 10
    for epoch, iteration, rate, tenfold in VALUES["lr"][name]:
        used = recipe.lr_at(epoch * iterations_per_epoch + iteration, epochs * iterations_per_epoch)
        assert [used, 10 * used] == pytest.approx([rate, tenfold], rel=1e-12)
