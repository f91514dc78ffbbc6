"""Measure the package's speed, each line against a bound measured in the same run.

python scripts/benchmark.py --output bench.json
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

# This folder has an evaluate.py, which must not hide the library of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]


@dataclass
class Line:
    """Two things to time and how their ratio must stand."""

    name: str
    run: Callable[[], object]
    bound_name: str
    bound: Callable[[], object]
    at_most: float | None = None  # seconds / seconds of the bound
    at_least: float | None = None  # seconds of the bound / seconds


@dataclass
class Result:
    name: str
    bound: str
    seconds: float
    bound_seconds: float
    ratio: float
    lowest: float
    highest: float
    required: str
    met: bool


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Time the package's steps against what the hardware must do for them: medians of paired runs, so "
        "that a noisy machine slows both sides alike."
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--sizes", choices=("small", "full"), default="small", help="small: a shallow network, small crops (default)"
    )
    parser.add_argument("--repeats", type=int, default=7, help="paired runs per line (default: 7)")
    parser.add_argument("--lines", nargs="+", metavar="TEXT", help="only lines whose name contains one of these")
    parser.add_argument("--output", type=Path, help="JSON file to write; a Markdown table goes beside it")
    parser.add_argument("--check", action="store_true", help="exit 1 when a line misses its bound")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    import torch

    from cagnet_hf.files import write_text_whole

    wanted = [line for line in lines(args) if not args.lines or any(text in line.name for text in args.lines)]
    results = []
    for line in wanted:
        results.append(measure(line, args.repeats, args.device))
        print(f"{results[-1].name}: {results[-1].ratio:.2f} ({results[-1].required})", flush=True)
    threads = torch.get_num_threads()
    table = markdown(results, f"{args.device}, {threads} threads, PyTorch {torch.__version__}, sizes {args.sizes}")
    print(table, end="")
    if args.output:
        facts = {"device": args.device, "threads": threads, "torch": torch.__version__, "sizes": args.sizes}
        content = facts | {"repeats": args.repeats, "lines": [asdict(result) for result in results]}
        write_text_whole(args.output, json.dumps(content, indent=1) + "\n")
        write_text_whole(args.output.with_suffix(".md"), table)
    return int(args.check and not all(result.met for result in results))


def measure(line: Line, repeats: int, device: str) -> Result:
    """Median seconds of both sides and of their ratio; the sides take turns."""
    ratios, ours, bounds = [], [], []
    for repeat in range(repeats + 1):
        seconds = [timed(side, device) for side in (line.run, line.bound)]
        if repeat:  # the first round warms up
            ours.append(seconds[0])
            bounds.append(seconds[1])
            ratios.append(seconds[0] / seconds[1] if line.at_most is not None else seconds[1] / seconds[0])
    ratio = statistics.median(ratios)
    met = ratio <= line.at_most if line.at_most is not None else ratio >= line.at_least
    required = f"at most {line.at_most}" if line.at_most is not None else f"at least {line.at_least}"
    return Result(
        line.name,
        line.bound_name,
        statistics.median(ours),
        statistics.median(bounds),
        ratio,
        min(ratios),
        max(ratios),
        required,
        met,
    )


def timed(run: Callable[[], object], device: str) -> float:
    import torch

    started = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def markdown(results: list[Result], title: str) -> str:
    rows = [f"| {title} | bound | s | bound, s | ratio (lowest–highest) | must be | |", "|---" * 7 + "|"]
    for r in results:
        rows.append(
            f"| {r.name} | {r.bound} | {r.seconds:.4f} | {r.bound_seconds:.4f} | "
            f"{r.ratio:.2f} ({r.lowest:.2f}–{r.highest:.2f}) | {r.required} | {'met' if r.met else '**missed**'} |"
        )
    return "\n".join(rows) + "\n"


def lines(args: argparse.Namespace) -> Iterator[Line]:
    """The lines, each with what it needs; one is prepared when the last has been measured."""
    yield from model_lines(args)
    yield mmd_line(args)
    yield patch_line(args)
    yield metric_line(args)
    yield from data_lines(args)


def model_lines(args) -> Iterator[Line]:
    """Steps and evaluation of the paper's network (small: a shallow one)."""
    import torch
    import torch.nn.functional as F

    from cagnet_hf import CaGNetConfig, CaGNetForSemanticSegmentation
    from cagnet_hf.training.optimizers import build_optimizers
    from cagnet_hf.training.recipe import load_recipe
    from cagnet_hf.training.setup import label_map_source
    from cagnet_hf.training.steps import synthetic_step

    small = args.sizes == "small"
    shape = {"depths": (1, 1, 1, 1), "hidden_sizes": (64, 128, 256, 512)} if small else {}
    classes = {"id2label": {i: f"class {i}" for i in range(20)}, "unseen_ids": tuple(range(15, 20))}
    for method in ("cagnet_pi", "cagnet_pa"):
        recipe = load_recipe(f"pascal_voc/{method}")
        stage = recipe.stages["finetune"]
        torch.manual_seed(0)
        model = CaGNetForSemanticSegmentation(CaGNetConfig(**classes, **shape, **recipe.model)).to(args.device)
        torch.nn.init.normal_(model.class_embeddings)
        model.train()
        build_optimizers(model, stage)
        bank = torch.randint(20, (64, 3, 3), device=args.device) if method == "cagnet_pa" else None
        source = label_map_source(recipe, stage, model, bank)
        # Patch-wise the loss looks at the centres: what it depends on is as many pixels as the map has.
        cells = (1, 1, stage.batch_size * stage.synthetic_size**2)
        embeddings = torch.randn(1, 600, *cells[1:], device=args.device)
        latent = torch.randn(1, 600, *cells[1:], device=args.device)
        truth = torch.zeros(cells, dtype=torch.long, device=args.device)
        side = stage.synthetic_size
        centres = truth[..., ::9].view(stage.batch_size, side // 3, side // 3) if bank is not None else None

        def step(model=model, stage=stage, source=source):
            model.zero_grad()
            synthetic_step(model, stage, source).total.backward()

        def bound(
            model=model,
            embeddings=embeddings,
            latent=latent,
            truth=truth,
            centres=centres,
            batch=stage.batch_size,
            side=side,
        ):
            model.zero_grad()
            with torch.no_grad():
                features = model.generator(embeddings, latent)
            if centres is None:
                loss = F.cross_entropy(model.classifier(features), truth)
            else:
                loss = F.cross_entropy(
                    model.classifier.classify_centres(features.view(batch, 600, side, side)), centres
                )
            loss.backward()

        kind = "pixel-wise" if bank is None else "patch-wise"
        yield Line(
            f"synthetic step, {kind}",
            step,
            "generator forward; classifier forward and backward",
            bound,
            at_most=1.15,
        )
        if bank is None:
            image_size = 257 if small else 513
            image = torch.randn(1, 3, image_size, image_size, device=args.device)

            @torch.inference_mode()
            def evaluate(model=model, image=image):
                model.eval()
                model(image).logits.argmax(1)

            @torch.inference_mode()
            def forward(model=model, image=image):
                model.eval()
                model.cagnet(image)

            yield Line(
                "evaluation of one image",
                evaluate,
                "one forward of backbone, ASPP and contextual module",
                forward,
                at_most=1.15,
            )


def mmd_line(args) -> Line:
    """The content loss of a real step: every class of a batch at once."""
    import torch

    from cagnet_hf.losses import MMD_BANDWIDTHS, classwise_mmd

    num_classes, width = 20, 256
    pixels, size = (4000, 128) if args.sizes == "small" else (8 * 47 * 47, 600)
    real, synthetic = torch.rand(2, 1, size, 1, pixels, device=args.device)
    labels = torch.randint(num_classes, (pixels,), device=args.device)
    points = torch.rand(num_classes, 2 * width, size, device=args.device)

    def kernels():
        squares = points.square().sum(-1)
        distances = squares[:, :, None] + squares[:, None] - 2 * points @ points.mT
        return sum(torch.exp(distances / (-2 * bandwidth)) for bandwidth in MMD_BANDWIDTHS)

    return Line(
        "MMD of 20 classes, 256 pixels of each",
        lambda: classwise_mmd(synthetic, real, labels, num_classes, max_pixels=width),
        "its products and exponentials",
        kernels,
        at_most=1.5,
    )


def patch_line(args) -> Line:
    """Sampling category patches: only the new position is computed."""
    import torch

    from cagnet_hf.patches import SAMPLING_RULES
    from cagnet_hf.pixel_cnn import PatchPixelCNN, PatchPixelCNNConfig, RasterNetwork

    torch.manual_seed(0)
    model = PatchPixelCNN(PatchPixelCNNConfig(unseen_ids=list(range(15, 20)))).to(args.device).eval()
    torch.nn.init.normal_(model.class_embeddings, std=0.04)
    network, start, number = RasterNetwork(model), SAMPLING_RULES[3].start, 2048
    first = torch.randint(15, 20, (number,), device=args.device)

    @torch.no_grad()
    def whole_network_per_position():
        patches = first[:, None].repeat(1, 9)
        for some in patches.split(512):
            for position in range(start, 9):
                logits = model(some.unflatten(1, (3, 3))).logits.flatten(2)[:, :, position]
                some[:, position] = torch.multinomial(logits.softmax(1), 1)[:, 0]

    return Line(
        "2048 patches of 3x3 from the PixelCNN",
        lambda: network.sample(first, start),
        "the whole network once per sampled position",
        whole_network_per_position,
        at_least=20,
    )


def metric_line(args) -> Line:
    """The metric over a test set as large as Pascal-VOC's (small: a tenth)."""
    import evaluate
    import numpy as np

    import cagnet_hf

    count = 145 if args.sizes == "small" else 1449
    rng = np.random.default_rng(0)
    predictions = rng.integers(0, 20, (8, 375, 500))
    references = rng.integers(0, 20, (8, 375, 500)).astype(np.uint8)
    metric = evaluate.load(
        cagnet_hf.METRIC_PATH, num_labels=20, seen_ids=list(range(15)), unseen_ids=list(range(15, 20))
    )

    def score():
        for index in range(count):
            metric.add(prediction=predictions[index % 8], reference=references[index % 8])
        metric.compute()

    def count_pairs():
        for index in range(count):
            pairs = references[index % 8].astype(np.int64) * 20 + predictions[index % 8]
            np.bincount(pairs.ravel(), minlength=400)

    return Line(
        f"metric of {count} maps of 500x375", score, "one bincount over the same maps", count_pairs, at_most=1.3
    )


def data_lines(args) -> Iterator[Line]:
    """Preparing photographs, and feeding a training with them, on 2 cores."""
    from datasets import Dataset
    from PIL import Image

    from cagnet_hf.benchmarks import load_benchmark
    from cagnet_hf.data.masks import MaskReader
    from cagnet_hf.data.prepared import write_prepared
    from cagnet_hf.data.rows import decoded

    benchmark, number = load_benchmark("pascal_voc"), 400
    place = tempfile.TemporaryDirectory()  # there as long as a line needs it
    folder = Path(place.name)
    examples = photographs(folder, number)

    def prepare(place=place):
        write_prepared({"train": examples}, folder / "prepared", benchmark, overwrite=True, num_proc=2)

    def decode():
        for example in examples:
            for path in (example.image, example.mask):
                with Image.open(path) as image:
                    image.load()

    yield Line(f"preparation of {number} photographs", prepare, "decoding them in one thread", decode, at_most=1.25)
    if args.device == "cpu":
        prepare()
        files = str(folder / "prepared/data/*.parquet")
        rows = Dataset.from_parquet(files, cache_dir=str(folder / "cache"), keep_in_memory=True)
        yield loader_line(decoded(rows, MaskReader(benchmark)), benchmark)


def loader_line(rows, benchmark) -> Line:
    """Loading (start of its workers included) and training of as many images, crops of 224."""
    import torch

    from cagnet_hf.data.stream import EndlessBatches, LabelledImages, TrainingExamples, training_batches
    from cagnet_hf.data.transforms import TrainingTransform
    from cagnet_hf.training.optimizers import build_optimizers
    from cagnet_hf.training.recipe import load_recipe
    from cagnet_hf.training.setup import build_model, build_processor
    from cagnet_hf.training.steps import updates

    recipe, number = load_recipe("pascal_voc_edge/cagnet_pi", ["backbone_weights=null"]), 4
    stage = recipe.stages["pretrain"]
    model = build_model(recipe, benchmark).to(memory_format=torch.channels_last).train()
    optimizers = build_optimizers(model, stage)
    transform = TrainingTransform(build_processor(recipe), stage.crop_size, **recipe.augmentation.model_dump())
    examples = TrainingExamples(LabelledImages(rows, benchmark.label_map, hide_unseen=True), transform, seed=0)

    def load(num_workers=2):
        batches = EndlessBatches(len(rows), stage.batch_size, seed=0)
        return list(itertools.islice(training_batches(examples, batches, num_workers, pin_memory=False), number))

    batch = load(0)[0]

    def train():
        for _ in range(number):
            for result in updates(model, batch, recipe, stage, None):
                for optimizer in optimizers.values():
                    optimizer.zero_grad()
                result.total.backward()
                for part in result.learners:
                    optimizers[part].step()

    return Line(
        f"loader, {number * stage.batch_size} images by 2 workers",
        load,
        "training of EfficientNet-Lite0 on as many",
        train,
        at_least=4,
    )


def photographs(folder: Path, number: int) -> list:
    """Images of 320 x 240 as smooth and as noisy as photographs, and palette masks of a few blobs each."""
    import numpy as np
    from PIL import Image

    from cagnet_hf.data.examples import Example
    from cagnet_hf.data.masks import pascal_palette

    rng, size, examples = np.random.default_rng(0), (320, 240), []
    for index in range(number):
        colours, ids = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), rng.choice([0, 0, 0, 8, 12, 15], (6, 8))
        image = np.asarray(Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC))
        image = (image + rng.normal(0, 6, (240, 320, 1))).clip(0, 255).astype(np.uint8)
        mask = Image.fromarray(ids.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        mask.putpalette(pascal_palette().tobytes())
        paths = [folder / f"{index}.{suffix}" for suffix in ("jpg", "png")]
        Image.fromarray(image).save(paths[0], quality=90)
        mask.save(paths[1])
        examples.append(Example(str(index), *paths))
    return examples


if __name__ == "__main__":
    sys.exit(main())
