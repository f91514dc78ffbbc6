"""What the contextual latent of a trained CaGNet says about the image, and what the scores lose without it.

python scripts/ablations/context_latent.py --model outputs/scenes/model --dataset scenes:0 --output context_latent.json
"""

import argparse
import json
import sys
from contextlib import contextmanager
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Measure the latent of the contextual module on the images of a test set: its divergence from the "
        "standard normal (nats per channel; 0 where it is noise whatever the image shows), the share of its variance "
        "that the image and the place in it decide, and the scores with its mean and with zeros in its place.",
    )
    parser.add_argument("--model", required=True, help="model folder, Hub id, or ID@REVISION")
    parser.add_argument("--dataset", required=True, help="prepared folder, Hub id, or scenes:SEED")
    parser.add_argument("--split", default="test", help="split of the dataset (default: test)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from cagnet_hf.cli import run
    from cagnet_hf.data.sources import open_with_classes
    from cagnet_hf.evaluation.scoring import check_classes
    from cagnet_hf.files import check_output, made_by, write_text_whole
    from cagnet_hf.weights.folders import load_model

    mark = made_by("context_latent")

    def measure():
        check_output(args.output, mark)
        dataset, classes = open_with_classes(args.dataset, args.split)
        model, processor = load_model(args.model)
        check_classes(model.config, classes, args.dataset)
        if model.cagnet.context is None:
            raise ValueError(f"{args.model} has no contextual module: give a model of a CaGNet row")
        report = json.dumps({"made_by": mark} | describe_latent(model, processor, dataset), indent=1)
        write_text_whole(args.output, report + "\n")
        print(report)

    return run(measure)


def describe_latent(model, processor, dataset) -> dict:
    """Divergence and variance of the latent over the cells of all feature maps; scores with the latent and without."""
    import torch
    from accelerate import PartialState

    from cagnet_hf.evaluation.scoring import score

    if PartialState().num_processes > 1:
        raise ValueError("every process would see a part of the images: run this with one")
    model.to(PartialState().device)

    def scores() -> dict:
        metrics = score(model, processor, dataset)
        return {column: metrics[column] for column in ("S-mIoU", "U-mIoU", "hIoU")}

    with watch_latent(model.cagnet.context) as statistics:
        with_context = scores()
    model.cagnet.context.mean.register_forward_hook(lambda convolution, inputs, mean: torch.zeros_like(mean))
    return statistics() | {"with_context": with_context, "without_context": scores()}


@contextmanager
def watch_latent(context):
    """Gather statistics of the latent while a model in evaluation mode runs; the value returns them."""
    import torch

    totals = {"cells": 0, "per_channel": 0.0}

    def gather(convolution, inputs, mean):
        log_variance = context.log_variance_of(*inputs)  # evaluation has no use for it
        mean, log_variance = (values.detach().cpu().double() for values in (mean, log_variance))
        square, variance = mean.square(), log_variance.exp()
        divergence = (square + variance - 1 - log_variance) / 2  # from the standard normal
        totals["cells"] += mean[:, 0].numel()
        totals["per_channel"] += torch.stack([divergence, variance, mean, square]).sum((1, 3, 4))  # (4, D)

    def statistics() -> dict[str, float]:
        divergence, variance, mean, square = totals["per_channel"] / totals["cells"]
        of_image = (square - mean.square()).sum()
        return {
            "divergence_nats_per_channel": divergence.mean().item(),
            "variance_from_image": (of_image / (of_image + variance.sum())).item(),
        }

    handle = context.mean.register_forward_hook(gather)
    try:
        yield statistics
    finally:
        handle.remove()


if __name__ == "__main__":
    sys.exit(main())
