"""What is timed: every line with its bound. A line is prepared when the line before has been measured."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from cagnet_hf.apps.prediction import segment
from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data.rows import Rows
from cagnet_hf.data.stream import EndlessBatches, LabelledImages, TrainingBatches, TrainingExamples
from cagnet_hf.data.transforms import TrainingTransform
from cagnet_hf.evaluation.zero_shot_segmentation.confusion_matrix import ConfusionMatrix
from cagnet_hf.methods.losses import MMD_BANDWIDTHS, classwise_mmd
from cagnet_hf.model.maps_cagnet import mean_cross_entropy
from cagnet_hf.training.batches import FeatureBatches, workers
from cagnet_hf.training.features import FeatureCache
from cagnet_hf.training.peak_memory import forget_peak_memory, peak_memory
from cagnet_hf.training.recipe_files import load_recipe
from cagnet_hf.training.setup import build_processor

from .measuring import Line, Setting
from .stage import NUM_CLASSES, UNSEEN, Stage, new_model

SCRIPTS = Path(__file__).resolve().parents[1]
PHOTOGRAPH = (375, 500)  # rows and columns of a usual photograph of Pascal-VOC


def lines(setting: Setting) -> Iterator[Line]:
    """Every line, in the order of the table."""
    yield from network_lines(setting, "cagnet_pi")
    yield from network_lines(setting, "cagnet_pa")
    yield from mmd_lines(setting)
    yield metric_line(setting)
    yield data_loader_line(setting)
    yield cached_features_line(setting)
    yield from prediction_lines()
    yield from process_lines()


def network_lines(setting: Setting, method: str) -> Iterator[Line]:
    """Steps and evaluation; of the patch-wise method only those that differ from the pixel-wise one's."""
    kind = {"cagnet_pi": "pixel-wise", "cagnet_pa": "patch-wise"}[method]
    pretrain = Stage(setting, method, "pretrain")
    count, model = pretrain.stage.batch_size, pretrain.model
    shape = f"crop {pretrain.stage.crop_size}, batch {count}"
    if kind == "pixel-wise":
        bound = ("network forward and backward at three scales", pretrain.network_alone)
        yield Line(f"real step, pre-training, {shape}", pretrain.real_step, *bound, at_most=1.2)
        yield Line("pre-training, images a second", pretrain.real_step, value=lambda s: count / s, unit="images/s")
        yield memory_line(setting, pretrain.real_step)
    finetune = Stage(setting, method, "finetune", model)
    if kind == "pixel-wise":
        bound = ("network forward; generator, critic, classifier forward and backward", finetune.parts_alone)
        yield Line(f"real step, fine-tuning, {shape}", finetune.real_step, *bound, at_most=1.15)
    name = f"synthetic step, {kind}, batch {count} of {finetune.stage.synthetic_size} squared"
    bound = ("generator forward; classifier forward and backward", finetune.generator_and_classifier())
    yield Line(name, finetune.synthetic_step, *bound, at_most=1.15)

    size = 513 if setting.published else 257
    image = torch.randn(1, 3, size, size).to(setting.device, memory_format=torch.channels_last)
    model.eval()

    @torch.inference_mode()
    def evaluation():
        with setting.autocast():
            model(image).logits.argmax(1).cpu()

    @torch.inference_mode()
    def forward():
        with setting.autocast():
            model.cagnet(image)

    name = f"evaluation of one image of {size}, {kind}"
    yield Line(name, evaluation, "one forward of the network", forward, at_most=1.15)


def memory_line(setting: Setting, step) -> Line:
    """The most memory that was in use in the step."""
    device = torch.device(setting.device)

    def measured():
        forget_peak_memory(device)
        step()

    return Line("pre-training, peak memory", measured, value=lambda _seconds: peak_memory(device), unit="MiB")


def mmd_lines(setting: Setting) -> Iterator[Line]:
    """The content loss of a real step, with its gradient for the generated features."""
    width, size, pixels = 256, 600, 8 * 47 * 47 if setting.published else 47 * 47
    for num_classes in (1, 20, 60):
        real, synthetic = (x.t()[None, :, None] for x in torch.rand(2, pixels, size, device=setting.device))
        synthetic.requires_grad_()
        labels = torch.randint(num_classes, (pixels,), device=setting.device)
        points = torch.rand(num_classes, 2 * min(width, pixels), size, device=setting.device)

        def loss(synthetic=synthetic, real=real, labels=labels, num_classes=num_classes):
            classwise_mmd(synthetic, real, labels, num_classes, max_pixels=width)

        def kernels(points=points):
            for some in points.split(8):  # matrices that fit the caches: the faster way, for the bound as well
                squares = some.square().sum(-1)
                distances = squares[:, :, None] + squares[:, None] - 2 * some @ some.mT
                sum(torch.exp(distances / (-2 * bandwidth)) for bandwidth in MMD_BANDWIDTHS)

        name = f"MMD of {pixels} pixels, {num_classes} class{'es' * (num_classes > 1)}, with gradient"
        yield Line(name, loss, "its products and exponentials", kernels, at_most=1.5)


def metric_line(setting: Setting) -> Line:
    """The metric over a test set as large as that of Pascal-VOC (small: a tenth)."""
    rng, count = np.random.default_rng(0), 1449 if setting.published else 145
    predictions, references = rng.integers(0, NUM_CLASSES, (2, 8, *PHOTOGRAPH))
    references = references.astype(np.uint8)
    metric = ConfusionMatrix(NUM_CLASSES, range(UNSEEN[0]), UNSEEN)

    def score():
        for index in range(count):
            metric.add([predictions[index % 8]], [references[index % 8]])
        metric.scores()
        metric.reset()

    def bincounts():
        for index in range(count):
            cells = references[index % 8].astype(np.int64) * NUM_CLASSES + predictions[index % 8]
            np.bincount(cells.ravel(), minlength=NUM_CLASSES**2)

    return Line(f"metric of {count} maps of 500x375", score, "one bincount over the same maps", bincounts, at_most=1.3)


def data_loader_line(setting: Setting, num_images: int = 32) -> Line:
    """Training from JPEG and PNG files of noise, beside training on a batch in memory."""
    stage, rng = Stage(setting, "cagnet_pi", "pretrain"), np.random.default_rng(0)
    benchmark = load_benchmark("pascal_voc")
    seen = np.array(benchmark.class_ids, np.uint8)[: UNSEEN[0]]

    def encoded(array: np.ndarray, kind: str) -> dict:
        file = BytesIO()
        Image.fromarray(array).resize(PHOTOGRAPH[::-1], Image.Resampling.NEAREST).save(file, kind)
        return {"bytes": file.getvalue(), "path": None}

    columns = {
        "image": [encoded(rng.integers(0, 256, (47, 63, 3), np.uint8), "JPEG") for _ in range(num_images)],
        "mask": [encoded(rng.choice(seen, (6, 8)), "PNG") for _ in range(num_images)],
        "image_id": [str(index) for index in range(num_images)],
    }
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image(), image_id=datasets.Value("string"))
    rows = Rows(datasets.Dataset.from_dict(columns, features), benchmark.label_space)
    transform = TrainingTransform(build_processor(stage.recipe), stage.stage.crop_size)
    examples = TrainingExamples(LabelledImages(rows, benchmark.label_space, hide_unseen=True), transform, seed=0)
    endless = EndlessBatches(num_images, stage.stage.batch_size, 0)
    num_workers = workers(stage.recipe, stage.learner.accelerator)
    batches = TrainingBatches(examples, endless, num_workers, pin_memory=setting.on_gpu)

    def train():
        batch = next(batches)
        stage.step({key: value.to(setting.device, non_blocking=True) for key, value in batch.items()})

    name, bound = "training images a second with the data loader", ("those with data in memory", stage.real_step)
    return Line(name, train, *bound, at_least=0.9, clock="wall")


def cached_features_line(setting: Setting, num_images: int = 32) -> Line:
    """Pre-training on features that were computed once, read from their file."""
    rng, recipe = np.random.default_rng(0), load_recipe("pascal_voc_frozen/zs3net")
    stage = Stage(setting, "zs3net", "pretrain", recipe=recipe)
    labels, channels, side = load_benchmark("pascal_voc").label_space, stage.model.cagnet.backbone.num_channels, 20
    folder = tempfile.TemporaryDirectory()
    cache = FeatureCache(Path(folder.name), channels, labels, hide_unseen=True)
    ids = rng.choice(np.array(labels.class_ids)[: UNSEEN[0]], (num_images, side, side))
    maps = rng.standard_normal((num_images, 2, side, side, channels), dtype=np.float32)
    cache.fill(cache.open({}), ((i, str(i), maps[i], ids[i]) for i in range(num_images)))
    options = {"stride": stage.model.cagnet.feature_stride, "ignore_index": stage.model.config.ignore_index}
    batches = FeatureBatches(recipe, stage.stage, 0, cache, cache, stage.learner.accelerator, **options)
    stream = batches.start(0)
    (at_hand,) = batches.take(stream, 0)

    def train(_folder=folder):  # the folder lives as long as the line
        stage.step(*batches.take(stream, 0))

    def head():
        stage.model.zero_grad()
        with setting.autocast():
            logits = stage.model.classify(stage.model.cagnet(backbone_features=at_hand["backbone_features"]).features)
            loss = mean_cross_entropy(logits, at_hand["labels"], ignore_index=stage.model.config.ignore_index)
        loss.backward()

    bound = "forward and backward of pyramid and classifier", head
    return Line("training step on cached features", train, *bound, at_most=1.3)


def prediction_lines() -> Iterator[Line]:
    """A photograph of 512 x 512 to its label map on the CPU, image processing included."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8))
    for name, recipe_name in (("EfficientNet-Lite0", "pascal_voc_edge"), ("ResNet-101", "pascal_voc")):
        recipe = load_recipe(recipe_name)
        model, processor = new_model(Setting(), **recipe.model).eval(), build_processor(recipe)
        if "longest_edge" in processor.size:
            processor.size = {"longest_edge": 512}
        yield Line(
            f"prediction of 512 pixels on the CPU, {name}",
            lambda model=model, processor=processor: list(segment(model, processor, [image])),
        )


def process_lines() -> Iterator[Line]:
    """Start-up, and training in several processes."""
    needed = "PreTrainedModel, AutoModel, AutoModelForSemanticSegmentation, AutoImageProcessor"
    bound = ("import of what it needs of transformers", lambda: _python("-c", f"from transformers import {needed}"))
    yield Line("import cagnet_hf", lambda: _python("-c", "import cagnet_hf"), *bound, at_most=1.1, clock="wall")

    def two_beside_one(_seconds: float) -> float:
        return 2 * _training_seconds(1) / _training_seconds(2)

    name = "images a second of two processes of one thread, beside one"
    yield Line(name, lambda: None, value=two_beside_one, unit="×", at_least=1.6)


def _training_seconds(processes: int, iterations: int = 40) -> float:
    """What `iterations` of pre-training on `scenes` take with so many CPU processes of one thread each."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    with tempfile.TemporaryDirectory() as folder:
        keys = ["until=pretrain", f"stages.pretrain.iterations={iterations}", "num_workers=0", "trackers=[]"]
        train = [str(SCRIPTS / "train.py"), "--recipe", "scenes", "--output_dir", f"{folder}/run", *keys]
        _python(*launcher, *train)
        return json.loads(Path(folder, "run", "metrics.json").read_text())["stages"][0]["seconds"]


def _python(*arguments: str) -> None:
    path = os.pathsep.join([str(SCRIPTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": path}
    command = [sys.executable, *arguments]
    finished = subprocess.run(command, env=os.environ | one_thread, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {finished.stderr.strip()[-500:]}")
