"""What an image prior is worth to finished runs: `model.image_prior` acts where a model is scored. (In self-training a
model looks at images, too; runs with self-training are scored here with a prior that this stage did not know.)

python scripts/ablations/image_prior.py --runs outputs/frozen/seed_0/cagnet_pi outputs/frozen/seed_1/cagnet_pi \
    --output image_prior.json
"""

import argparse
import json
import sys
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Score finished runs on the test images of their recipe with several weights of the image prior: "
        "how much the classes that an image shows as a whole count at each of its pixels (0: not at all).",
    )
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of finished runs")
    parser.add_argument("--weights", type=float, nargs="+", default=[0, 1, 2], help="weights to try (default: 0 1 2)")
    parser.add_argument(
        "--output", type=Path, required=True, help="JSON file; what stands in it is not measured again"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from cagnet_hf.cli import run
    from cagnet_hf.files import check_output, made_by, write_text_whole

    mark = made_by("image_prior")

    def measure():
        check_output(args.output, mark)
        missing = [folder for folder in args.runs if not (folder / "metrics.json").is_file()]
        if missing:
            raise FileNotFoundError(f"{missing[0]} is no finished run: metrics.json is not there")
        found = json.loads(args.output.read_text("utf-8"))["scores"] if args.output.exists() else {}
        for folder in args.runs:
            for name, seed, scores in scored(folder, args.weights, found):
                found.setdefault(name, {})[seed] = scores
                print(folder, name, json.dumps(scores), flush=True)
                lines = ",\n".join(f"  {json.dumps(row)}: {json.dumps(seeds)}" for row, seeds in found.items())
                write_text_whole(
                    args.output, f'{{\n "made_by": {json.dumps(mark)},\n "scores": {{\n{lines}\n }}\n}}\n'
                )

    return run(measure)


def scored(folder: Path, weights, found: dict):
    """(row and weight, seed, scores) of a run with every weight that has not been measured."""
    from accelerate import Accelerator

    from cagnet_hf.evaluation.scoring import score
    from cagnet_hf.training.features import FEATURES, cached_features
    from cagnet_hf.training.recipe_files import load_recipe
    from cagnet_hf.training.setup import dataset_of
    from cagnet_hf.weights.folders import load_model

    recipe, accelerator = load_recipe(str(folder / "recipe.yaml")), Accelerator()
    names = {weight: f"{folder.name}, image prior {weight:g}" for weight in weights}
    run = json.loads((folder / "run.json").read_text("utf-8"))["run"]
    measured = {weight: found.get(names[weight], {}).get(str(recipe.seed)) for weight in weights}
    if any(scores and scores["run"] != run for scores in measured.values()):
        raise ValueError(f"--output has another run than {folder} of the same name and seed: choose another file")
    left = [weight for weight in weights if not measured[weight]]
    if not left:
        return
    model, processor = load_model(str(folder / "model"))
    model.to(accelerator.device)
    images, cache = dataset_of(recipe, recipe.test_split), None
    if recipe.feature_cache is not None and len(model.config.test_scales) == 1:
        places = [folder / FEATURES, folder.parents[1] / FEATURES]  # of a run of its own, or of a comparison
        place = next((place for place in places if place.is_dir()), places[0])
        cache = cached_features(recipe, place, images, model, processor, accelerator, scored=True)
    for weight in left:
        model.config.image_prior = weight
        maps = None if cache is None else cache.in_order()
        scores = score(model, processor, images, accelerator=accelerator, maps=maps)
        columns = {column: round(scores[column], 5) for column in ("S-mIoU", "U-mIoU", "hIoU")}
        yield names[weight], str(recipe.seed), {"run": run} | columns


if __name__ == "__main__":
    sys.exit(main())
