"""What the choices in prototypes are worth: temperatures, the image prior, smoothing, posteriors at test time.

python scripts/ablations/prototypes.py --run outputs/tuning --output prototypes_tuning.json

The run is a finished one of `prototypes`; its model holds all statistics, so that nothing is trained here. To choose,
take a run with `split=tuning`, whose unseen classes are held-out seen ones.
"""

import argparse
import json
import sys
from pathlib import Path

TEMPERATURES = (0.03, 0.05, 0.08, 0.1, 0.12, 0.15, None)  # None: an average over several
IMAGE_PRIORS = (0, 0.5, 1, 1.5, 2, 3)
SMOOTHED = (3, 5)  # sides in cells
POSTERIOR_WEIGHTS = (0.25, 0.5, 1)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Score variants of a finished run of prototypes on its test images, protocol full: other "
        "temperatures and image priors, logits smoothed over neighbouring cells, and the posteriors of the image "
        "classifier joined with the Bayes rule.",
    )
    parser.add_argument("--run", type=Path, required=True, help="the folder of the run")
    parser.add_argument("--tau", type=float, default=0.1, help="temperature of the variants that do not vary it")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from cagnet_hf.cli import run
    from cagnet_hf.files import check_output, made_by, write_text_whole

    mark = made_by("prototypes")

    def compare():
        check_output(args.output, mark)
        scores = score_variants(args.run, args.tau)
        told = {"made_by": mark, "run": args.run.name, "tau": args.tau, "variants": scores}
        write_text_whole(args.output, json.dumps(told, indent=1) + "\n")
        for name, found in scores.items():
            print(f"{name:40s}", "  ".join(f"{key} {found[key]:.4f}" for key in ("S-mIoU", "U-mIoU", "hIoU")))

    return run(compare)


def score_variants(folder: Path, tau: float) -> dict[str, dict]:
    """S-mIoU, U-mIoU, hIoU, PA and the IoU of the unseen classes, by variant."""
    import torch
    import torch.nn.functional as F
    from accelerate import Accelerator

    from cagnet_hf.evaluation.scoring import scored_batches
    from cagnet_hf.evaluation.zero_shot_segmentation.confusion_matrix import ConfusionMatrix
    from cagnet_hf.model.maps_cagnet import with_image_prior
    from cagnet_hf.model.modeling_cagnet import CaGNetSegmenterOutput
    from cagnet_hf.training.run_folder import MODEL, RECIPE, read_recipe
    from cagnet_hf.training.setup import dataset_of
    from cagnet_hf.weights.classifier_heads import load_image_classifier_head
    from cagnet_hf.weights.folders import load_model

    recipe = read_recipe(folder / RECIPE)
    stage = next(iter(recipe.stages.values()))
    model, processor = load_model(folder / MODEL)
    generator, table = model.generator, model.class_embeddings
    model.config.image_prior = 0
    head, _ = load_image_classifier_head(model.config.backbone, stage.head)
    mass = generator.mean.mass / generator.mean.mass.sum()
    odds = torch.zeros(model.config.num_labels)
    odds[list(model.config.unseen_ids)] = torch.tensor(1 + stage.unseen_rate).log()

    def rule(temperature):
        options = {"shrinkage": stage.shrinkage, "covariance_scale": stage.covariance_scale}
        with torch.no_grad():
            generator.fit(table, temperature=temperature, **options)
            weights, biases = generator.bayes_rule(table, odds)
        return weights.float()[:, :, None, None], biases.float()

    def named(features):
        """Posteriors of the image classifier joined by the names, each divided by its mean."""
        weights = generator.mean.names(table, 0.05)
        joined = F.conv2d(head(features).softmax(1), (weights / (weights @ mass)[:, None])[:, :, None, None])
        return joined.clamp_min(1e-6).log()

    rules = {temperature: rule(temperature) for temperature in (*TEMPERATURES, tau)}

    def variants(features):
        for temperature in TEMPERATURES:
            logits = F.conv2d(features, *rules[temperature])
            for weight in IMAGE_PRIORS if temperature in (tau, None) else (0, 1):
                yield f"tau {temperature or 'averaged'}, image prior {weight}", with_image_prior(logits, weight)
        logits, names = F.conv2d(features, *rules[tau]), named(features)
        for side in SMOOTHED:
            smooth = F.avg_pool2d(logits, side, 1, side // 2, count_include_pad=False)
            yield f"smoothed over {side} x {side} cells", smooth
        for weight in POSTERIOR_WEIGHTS:
            yield f"posteriors at test time, weight {weight}", logits + weight * names
            yield f"posteriors, weight {weight}, image prior 2", with_image_prior(logits + weight * names, 2)

    matrices: dict[str, ConfusionMatrix] = {}
    network = model.cagnet
    # Features in place of logits.
    model.forward = lambda pixels, **options: CaGNetSegmenterOutput(logits=network(pixels, return_dict=True).features)
    rows = dataset_of(recipe, recipe.test_split)
    for outputs, references in scored_batches(model, processor, rows, accelerator=Accelerator()):
        sizes = [labels.shape for labels in references]
        for name, logits in variants(outputs.logits):
            maps = processor.post_process_semantic_segmentation(CaGNetSegmenterOutput(logits=logits), sizes)
            matrices.setdefault(name, ConfusionMatrix.of(model.config)).add(maps, references)
    return {name: _told(matrix.scores()) for name, matrix in matrices.items()}


def _told(scores: dict) -> dict:
    unseen = {name: round(entry["iou"] or 0, 4) for name, entry in scores["per_class"].items() if not entry["seen"]}
    return {key: round(scores[key] or 0, 4) for key in ("S-mIoU", "U-mIoU", "hIoU", "PA")} | {"unseen": unseen}


if __name__ == "__main__":
    sys.exit(main())
