"""Patch layouts of a PixelCNN that never saw the pixel it predicts, and of one that was shown it, as in the release.

python scripts/ablations/patch_layouts.py --recipe scenes/cagnet_pa --output patch_layouts.json seed=10
"""

import argparse
import json
import sys
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Fit the PixelCNN of a patch-wise recipe twice: conditioned on the first class of a patch, and on "
        "every pixel's own class, the one to predict included. Write the nats per held-out pixel, also those of the "
        "second network when it is shown the first class alone, which is all there is when patches are drawn.",
    )
    parser.add_argument("--recipe", required=True, help="a patch-wise recipe, such as scenes/cagnet_pa")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe keys to change")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from cagnet_hf.cli import run
    from cagnet_hf.files import check_output, made_by, write_text_whole
    from cagnet_hf.training.recipe_files import load_recipe

    mark = made_by("patch_layouts")

    def compare():
        check_output(args.output, mark)
        report = compare_layouts(load_recipe(args.recipe, args.overrides))
        told = {"made_by": mark, "recipe": args.recipe, "overrides": args.overrides} | report
        write_text_whole(args.output, json.dumps(told, indent=1) + "\n")
        print(json.dumps(report, indent=1))

    return run(compare)


def compare_layouts(recipe) -> dict:
    """Likelihoods and drawn patches of both networks, by what they are conditioned on."""
    from cagnet_hf.methods.cagnet import patch_fit, pixel_cnn_config
    from cagnet_hf.patches.bank import fit_pixel_cnn, held_out_nats, make_patch_bank
    from cagnet_hf.patches.layouts import collect_patches, fill_ignored
    from cagnet_hf.training.setup import LabelMapsAtFeatureStride, benchmark_of, build_model, dataset_of

    benchmark = benchmark_of(recipe)
    model = build_model(recipe, benchmark)
    if model.config.patch_size == 1:
        raise ValueError(f"{recipe.method} works pixel by pixel; give a patch-wise recipe, such as scenes/cagnet_pa")
    fit = patch_fit(recipe)
    dataset = dataset_of(recipe, recipe.train_split)
    label_maps = LabelMapsAtFeatureStride(dataset, benchmark.label_space, recipe, model.cagnet)
    patches = collect_patches(label_maps, model.config.patch_size, fit.max_patches)
    inputs, labels = fill_ignored(patches)
    held_out = slice(-fit.num_held_out(len(patches)), None)
    report = {"patches": len(patches), "several_classes": _several_classes(inputs)}
    for condition in ("first", "patch"):
        config = pixel_cnn_config(model.config, condition=condition)
        network, found = fit_pixel_cnn(patches, config, model.class_embeddings, fit, progress=True)
        report["unigram_nats"] = found["unigram_nats"]
        network.config.condition = "first"
        bank, accepted = make_patch_bank(network, fit.bank_size, fit.seed, progress=True)
        report[condition] = {
            "held_out_nats": min(found["held_out_nats"]),
            "held_out_nats_given_the_first_class": held_out_nats(network, inputs[held_out], labels[held_out]),
            "drawn": {"accepted": accepted, "several_classes": _several_classes(bank)},
        }
    return report


def _several_classes(patches) -> float:
    """The share of patches `(M, k, k)` that hold more than one class."""
    flat = patches.flatten(1)
    return (flat != flat[:, :1]).any(dim=1).float().mean().item()


if __name__ == "__main__":
    sys.exit(main())
