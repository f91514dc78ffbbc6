"""From a folder of photographs and masks to a model of one's own: everything in one call."""

import hashlib
import json
from collections.abc import Sequence
from logging import getLogger
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from ..data.benchmarks import Benchmark, format_class_table
from ..data.builders.own_folder import folder_examples
from ..data.examples import check_examples
from ..data.names import markdown
from ..data.prepared import write_prepared
from ..data.report import format_report
from ..files import holds, made_by, write_text_whole
from ..methods.leaving_out import CHOSEN
from ..methods.options import PassRecipe, Recipe
from ..model.configuration_cagnet import CaGNetConfig
from ..model.modeling_cagnet import CaGNetModel
from ..training.recipe_files import load_recipe
from ..training.run_folder import RunFolder
from ..training.setup import build_processor
from ..vectors.class_embeddings import BUNDLED_TABLE, read_metadata, save_embedding_table
from ..vectors.imagenet_names import warn_of_strangers
from ..vectors.new_classes import embed_names
from .training import Run, train

logger = getLogger(__name__)

NETWORK = "pascal_voc_edge"  # recipes of a network for laptops, whatever the photographs show
DATA, VECTORS, REPORT, RECORD = "data", "class_vectors.safetensors", "report.md", "fit.json"
BATCH = 8
TIMED = 4  # images that are read before the others
WEAK = 0.3  # an IoU below this is called weak


def fit(
    folder: str | Path,
    output: str | Path,
    *,
    method: str = "prototypes",
    unseen: Sequence[str] | None = None,
    ignored: Sequence[str] | None = None,
    encoder: str | None = None,
    test_share: float = 0.2,
) -> Run:
    """Make a model of one's own photographs: check and prepare them, find class vectors, train, score, report.

    Args:
        folder: With `images/`, `masks/` and `classes.yaml` (see `folder_examples`).
        output: The folder to make. It gets `data/`, the prepared dataset; `class_vectors.safetensors`; what a training
            run leaves behind (`model/`, `metrics.json`, `figures/`); and `report.md`.
        method: The row to train. `prototypes` takes minutes.
        unseen: The classes whose labels are hidden in training; as `classes.yaml` says when None.
        ignored: The classes that are neither learnt nor scored; as `classes.yaml` says when `unseen` is None.
        encoder: The text encoder all-MiniLM-L6-v2, a folder or a Hub id, for names that no bundled table holds. An
            installed package (the extra `names`) when None.
        test_share: The share of the photographs to test on where the folder does not say which.

    A `fit` that was killed goes on when it is called again with the same arguments.

    Raises:
        ValueError: The folder's files are wrong, a name has no vector, or `output` holds something else.
    """
    output = Path(output)
    if ignored is not None and unseen is None:
        raise ValueError("ignored: say which classes are unseen, too")
    roles = None if unseen is None else {"unseen": list(unseen), "ignored": list(ignored or ())}
    given = {"folder": str(Path(folder).absolute()), "method": method, "test_share": test_share, "encoder": encoder}
    given |= roles or {}
    name = f"{NETWORK}/{method}"
    keys = [f"benchmark={output / DATA}", f"dataset={output / DATA}", f"class_embeddings={output / VECTORS}"]
    # What holds for other photographs than those that the recipe was tuned on.
    keys += ["stages.fit.tau=null", "model.image_prior=1", "stages.fit.choose=true"] if method == "prototypes" else []
    recipe = load_recipe(name, keys)
    if (output / REPORT).exists() or (output.exists() and not _is_ours(output)):
        raise FileExistsError(f"{output} exists: choose another output")
    examples, benchmark = folder_examples(folder, test_share, roles)
    goes_on = (output / DATA).is_dir()
    given["photographs"] = _fingerprint(folder, examples, benchmark)
    if goes_on:
        _check_same(output, given)
    vectors = embed_names(benchmark.class_names, encoder=encoder)
    num_seen = len(benchmark.seen_ids)
    warn_of_strangers(benchmark.class_names[num_seen:], vectors[num_seen:])
    write_text_whole(output / RECORD, json.dumps({"made_by": made_by("fit")} | given, indent=1) + "\n")
    save_embedding_table(output / VECTORS, benchmark.class_names, vectors, read_metadata(BUNDLED_TABLE))
    work = _Work(recipe, benchmark, examples)
    if not goes_on:
        work.say_cost()
        started = perf_counter()
        reports = write_prepared(examples, output / DATA, benchmark)
        work.decoding = (perf_counter() - started) / work.images
        logger.info("%s", format_report(benchmark, reports))
    work.say_cost(prepared=True)
    run = train(name, output, *keys, "trackers=[]", resume=RunFolder(output).holds_run)
    unused = f"{folder}/val" if (Path(folder) / "val").is_dir() and (Path(folder) / "test").is_dir() else None
    text = report(run, benchmark, output, unused)
    write_text_whole(output / REPORT, text)
    logger.info("%s", text)
    return run


def _is_ours(output: Path) -> bool:
    """Whether a folder is empty, or that of a `fit`."""
    return output.is_dir() and (not any(output.iterdir()) or holds(output / RECORD, made_by("fit")))


def _fingerprint(folder: str | Path, examples: dict[str, list], benchmark: Benchmark) -> str:
    """What tells photographs, masks and classes from others: names, sizes and times of the files, and the table."""
    files = [(split, file) for split, pairs in examples.items() for pair in pairs for file in (pair.image, pair.mask)]
    digest = hashlib.blake2b(format_class_table(benchmark).encode(), digest_size=16)
    for split, file in [*files, ("", Path(folder))]:
        told = isinstance(file, Path) and file.is_file()  # not in an archive, which is told by its own time
        digest.update(f"{split} {file} {(file.stat().st_size, file.stat().st_mtime_ns) if told else ''}".encode())
    return digest.hexdigest()


def _check_same(output: Path, given: dict) -> None:
    """Refuse to go on with what another `fit` left in its folder."""
    try:
        before = json.loads((output / RECORD).read_text(encoding="utf-8"))
    except ValueError:
        before = {}
    other = sorted(key for key in given.keys() | before.keys() - {"made_by"} if given.get(key) != before.get(key))
    if other:
        raise ValueError(f"{output} holds a fit of other {', '.join(other)}: choose another output")


class _Work:
    """How long a fit takes and how much it writes, from a few images.

    Attributes:
        decoding: Seconds to read a pair of image and mask.
    """

    def __init__(self, recipe: Recipe, benchmark: Benchmark, examples: dict[str, list]):
        self.recipe, self.counts = recipe, {split: len(pairs) for split, pairs in examples.items()}
        self.images = sum(self.counts.values())
        every = [pair for pairs in examples.values() for pair in pairs]
        started = perf_counter()
        read = [*check_examples(every[:: 1 + len(every) // TIMED][:TIMED], benchmark.label_space)]
        self.decoding = (perf_counter() - started) / max(1, len(read))
        read = [pair for pair in read if not isinstance(pair, ValueError)]  # refused later, with all others
        self.bytes = np.mean([len(pair.image_bytes) + len(pair.mask_bytes) for pair in read] or [0])
        self.network = CaGNetModel(CaGNetConfig(**benchmark.config_fields(), **recipe.model)).eval()
        self.pixels = build_processor(recipe).prepare(torch.zeros(3, 240, 320, dtype=torch.uint8))

    def say_cost(self, *, prepared: bool = False) -> None:
        """Say what is left to do, timing a batch now: other programs may take part of the machine."""
        network, pixels = (
            part.to(memory_format=torch.channels_last)
            for part in (self.network, self.pixels.expand(BATCH, -1, -1, -1))
        )
        with torch.inference_mode():
            times = []
            for _ in range(2):  # the first call is slower
                started = perf_counter()
                network(pixels)
                times.append(perf_counter() - started)
        a_pass = min(times) / BATCH + self.decoding
        steps = sum(
            self.counts["train"] if isinstance(stage, PassRecipe) else 3 * stage.iterations * stage.batch_size
            for stage in self.recipe.stages.values()
        )
        # Twice: the head of the image classifier, and scores at the size of the photographs.
        seconds = 2 * a_pass * (steps + self.counts["test"]) + (0 if prepared else self.decoding * self.images)
        weights = 4 * sum(tensor.numel() for tensor in self.network.state_dict().values())
        size = 3 * weights + (0 if prepared else self.bytes * self.images)  # in the model and in two checkpoints
        told = f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
        logger.info(
            "%d images to learn from, %d to test on: about %s%s, %.0f MB",
            self.counts["train"],
            self.counts["test"],
            told,
            " from here" if prepared else "",
            1 + size / 1e6,
        )


def report(run: Run, benchmark: Benchmark, output: Path, unused: str | None = None) -> str:
    """A page of plain sentences: what the model can do, where it is weak, and what to try next.

    Args:
        unused: A folder of photographs that nothing was made of.
    """
    metrics = run.metrics
    per_class = {markdown(name): entry for name, entry in metrics["per_class"].items()}
    present = {name: entry for name, entry in per_class.items() if entry["pixels"]}
    lines = [
        f"# A model of {markdown(benchmark.name)}",
        "",
        f"The model knows {len(run.model.config.seen_ids)} classes from labels and "
        f"{len(run.model.config.unseen_ids)} from their names alone. On {metrics['num_images']} photographs that it "
        f"never saw, it gives {_percent(metrics['PA'])} of the labelled pixels the right class.",
        "",
        f"- Classes with labels (seen): mean IoU {_number(metrics['S-mIoU'])}.",
        f"- Classes known by name alone (unseen): mean IoU {_number(metrics['U-mIoU'])}.",
        f"- The harmonic mean of the two (hIoU): {_number(metrics['hIoU'])}.",
        "",
        "IoU is the overlap of predicted and true pixels of a class, divided by their union: 1 is perfect, 0 is never "
        "right.",
        "",
        "| class | known from | IoU | share of its pixels found | most often mistaken for |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, entry in sorted(present.items(), key=lambda item: item[1]["iou"] or 0):
        known = "labels" if entry["seen"] else "its name"
        found, other = _percent(entry["recall"]), markdown(next(iter(entry["given_to"]), "-"))
        lines.append(f"| {name} | {known} | {_number(entry['iou'])} | {found} | {other} |")
    absent = sorted(per_class.keys() - present.keys())
    if absent:
        lines += ["", f"No test photograph shows {', '.join(absent)}: their scores are unknown."]
    if (output / CHOSEN).is_file():
        lines += ["", _told_choice(json.loads((output / CHOSEN).read_text(encoding="utf-8")))]
    if unused:
        lines += ["", f"The photographs in `{unused}` were not used: nothing was chosen by scores on photographs."]
    weak = [name for name, entry in present.items() if (entry["iou"] or 0) < WEAK]
    lines += ["", "## What to try next", ""]
    if weak:
        lines.append(
            f"- Weak classes: {', '.join(weak)}. A class known by name alone gains most from labels: a dozen masks "
            "that show the class, and `seen` in `classes.yaml`. A seen class gains from more photographs."
        )
    lines += [
        f"- Segment photographs: `cagnet-hf predict --model {output / 'model'} photo.jpg --output predictions`.",
        f"- Add a class by its name: `cagnet-hf add_classes --model {output / 'model'} --class zebra --output more`.",
        f"- Look at the model on a page: `cagnet-hf demo --model {output / 'model'}`.",
    ]
    return "\n".join(lines) + "\n"


def _told_choice(facts: dict) -> str:
    """What was chosen by leaving out classes, and why."""
    numbers, scores = facts["chosen"], facts["scores"]
    told = (
        f"image prior {numbers['image_prior']:g}, prior rate of unseen classes {numbers['unseen_rate']:g} and "
        f"calibration {numbers['calibration']:g} (above 0 more pixels go to unseen classes, below 0 fewer)"
    )
    if not scores["chosen"]:
        return f"There are too few classes to choose anything by leaving them out; so {told} stayed."
    if numbers == facts["default"]:
        return f"Each seen class was left out in turn, without the test photographs, and {told} stayed the best."
    before, after = (f"{scores[name]['hIoU']:.3f}" for name in ("default", "chosen"))
    return (
        f"Each seen class was left out in turn, without the test photographs, and so {told} were chosen: on the "
        f"classes left out, they bring hIoU from {before} to {after}."
    )


def _number(value: float | None) -> str:
    return "not in these photographs" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.0f} %"
