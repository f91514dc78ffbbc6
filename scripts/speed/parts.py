"""Lines of the parts around the network: MMD, patch sampling, metric, data loading, prediction."""

import tempfile
from collections.abc import Iterator
from io import BytesIO

import datasets
import evaluate
import numpy as np
import torch
from PIL import Image

from cagnet_hf.apps.prediction import segment
from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data.rows import Rows
from cagnet_hf.data.stream import EndlessBatches, LabelledImages, TrainingBatches, TrainingExamples
from cagnet_hf.data.transforms import TrainingTransform
from cagnet_hf.evaluation import METRIC_PATH
from cagnet_hf.methods.losses import MMD_BANDWIDTHS, classwise_mmd
from cagnet_hf.patches.layouts import SAMPLING_RULES
from cagnet_hf.patches.pixel_cnn import PatchPixelCNN, PatchPixelCNNConfig, RasterNetwork
from cagnet_hf.training.recipe_files import load_recipe
from cagnet_hf.training.setup import build_processor

from .measuring import Line, Setting
from .network import NUM_CLASSES, UNSEEN, Stage, new_model

PHOTOGRAPH = (375, 500)  # rows and columns of a usual one in Pascal-VOC


def mmd_lines(setting: Setting) -> Iterator[Line]:
    """The content loss of a real step with the gradient of the features drawn, which it finds beside the value."""
    width, size, pixels = 256, 600, 8 * 47 * 47 if setting.published else 47 * 47
    for num_classes in (1, 20, 60):
        real, synthetic = (x.t()[None, :, None] for x in torch.rand(2, pixels, size, device=setting.device))
        synthetic.requires_grad_()
        labels = torch.randint(num_classes, (pixels,), device=setting.device)
        points = torch.rand(num_classes, 2 * min(width, pixels), size, device=setting.device)

        def kernels(points=points):
            for some in points.split(8):  # matrices that fit the caches: the faster way, for the bound as well
                squares = some.square().sum(-1)
                distances = squares[:, :, None] + squares[:, None] - 2 * some @ some.mT
                sum(torch.exp(distances / (-2 * bandwidth)) for bandwidth in MMD_BANDWIDTHS)

        def value(synthetic=synthetic, real=real, labels=labels, num_classes=num_classes):
            classwise_mmd(synthetic, real, labels, num_classes, max_pixels=width)

        name = f"MMD of {pixels} pixels, {num_classes} class{'es' * (num_classes > 1)}, with gradient"
        yield Line(name, value, "its products and exponentials", kernels, at_most=1.5)


def patch_line(setting: Setting) -> Line:
    """Sampling category patches: only the new position is computed."""
    torch.manual_seed(0)
    model = PatchPixelCNN(PatchPixelCNNConfig(unseen_ids=list(UNSEEN))).to(setting.device).eval()
    torch.nn.init.normal_(model.class_embeddings, std=0.04)
    network, start, number = RasterNetwork(model), SAMPLING_RULES[3].start, 2048
    first = torch.randint(UNSEEN[0], NUM_CLASSES, (number,), device=setting.device)

    @torch.no_grad()
    def whole_network_per_position():
        patches = first[:, None].repeat(1, 9)
        for some in patches.split(512):
            for position in range(start, 9):
                logits = model(some.unflatten(1, (3, 3))).logits.flatten(2)[:, :, position]
                some[:, position] = torch.multinomial(logits.softmax(1), 1)[:, 0]

    return Line(
        f"{number} patches of 3x3 from the PixelCNN",
        lambda: network.sample(first, start),
        "the whole network once per sampled position",
        whole_network_per_position,
        at_least=20,
    )


class ArrowMetric(evaluate.Metric):
    """The confusion matrix as a metric of `evaluate` usually gathers it: every map goes through an Arrow file."""

    def _info(self):
        label_map = datasets.Sequence(datasets.Sequence(datasets.Value("uint8")))
        features = datasets.Features({"predictions": label_map, "references": label_map})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        pairs = zip(references, predictions, strict=True)
        counts = sum(_count(np.asarray(truth), np.asarray(given)) for truth, given in pairs)
        return {"confusion": counts}


def _count(references: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    cells = references.astype(np.int64) * NUM_CLASSES + predictions
    return np.bincount(cells.ravel(), minlength=NUM_CLASSES**2)


def metric_lines(setting: Setting) -> Iterator[Line]:
    """The metric over a test set as large as Pascal-VOC's (small: a tenth), and beside `evaluate`'s usual way."""
    rng = np.random.default_rng(0)
    predictions = rng.integers(0, NUM_CLASSES, (8, *PHOTOGRAPH))
    references = rng.integers(0, NUM_CLASSES, (8, *PHOTOGRAPH)).astype(np.uint8)
    split = {"seen_ids": range(UNSEEN[0]), "unseen_ids": UNSEEN}
    metric = evaluate.load(METRIC_PATH, num_labels=NUM_CLASSES, **split)

    def score(metric, count):
        for index in range(count):
            prediction, reference = predictions[index % 8], references[index % 8]
            metric.add(prediction=prediction, reference=reference)
        metric.compute()

    count = 1449 if setting.published else 145
    yield Line(
        f"metric of {count} maps of 500x375",
        lambda: score(metric, count),
        "one bincount over the same maps",
        lambda: [_count(references[index % 8], predictions[index % 8]) for index in range(count)],
        at_most=1.3,
    )
    with tempfile.TemporaryDirectory() as cache:
        yield Line(
            "metric of 8 maps of 500x375",
            lambda: score(metric, 8),
            "the same maps through evaluate's Arrow files",
            lambda: score(ArrowMetric(cache_dir=cache), 8),
            at_least=10,
        )


def end_to_end_line(setting: Setting, num_images: int = 32) -> Line:
    """Training with its data loader, beside training on a batch in memory: photographs of noise, JPEG and PNG."""
    stage = Stage(setting, "cagnet_pi", "pretrain")
    rng = np.random.default_rng(0)

    def encoded(array: np.ndarray, kind: str) -> dict:
        image, file = Image.fromarray(array), BytesIO()
        image.resize(PHOTOGRAPH[::-1], Image.Resampling.NEAREST).save(file, kind)
        return {"bytes": file.getvalue(), "path": None}

    benchmark = load_benchmark("pascal_voc")
    ids = np.array(benchmark.class_ids, np.uint8)[: UNSEEN[0]]
    columns = {
        "image": [encoded(rng.integers(0, 256, (47, 63, 3), np.uint8), "JPEG") for _ in range(num_images)],
        "mask": [encoded(rng.choice(ids, (6, 8)), "PNG") for _ in range(num_images)],
        "image_id": [str(index) for index in range(num_images)],
    }
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image(), image_id=datasets.Value("string"))
    rows = Rows(datasets.Dataset.from_dict(columns, features), benchmark.label_space)
    transform = TrainingTransform(build_processor(stage.recipe), stage.stage.crop_size)
    examples = TrainingExamples(LabelledImages(rows, benchmark.label_space, hide_unseen=True), transform, seed=0)
    endless = EndlessBatches(num_images, stage.stage.batch_size, 0)
    batches = TrainingBatches(examples, endless, stage.recipe.num_workers, pin_memory=setting.on_gpu)

    def train():
        batch = next(batches)
        stage.step({key: value.to(setting.device, non_blocking=True) for key, value in batch.items()})

    return Line(
        "training images a second with the data loader",
        train,
        "those with data in memory",
        lambda: stage.step(stage.batch),
        at_least=0.9,
        clock="wall",
    )


def prediction_lines(setting: Setting) -> Iterator[Line]:
    """A photograph of 512 x 512 to its label map on the CPU, image processing included."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8))
    for name, recipe_name in (("EfficientNet-Lite0", "pascal_voc_edge"), ("ResNet-101", "pascal_voc")):
        recipe = load_recipe(recipe_name)
        model = new_model(Setting(), **recipe.model).eval()
        processor = build_processor(recipe)
        if "longest_edge" in processor.size:
            processor.size = {"longest_edge": 512}
        yield Line(
            f"prediction of 512 pixels on the CPU, {name}", lambda m=model, p=processor: list(segment(m, p, [image]))
        )
