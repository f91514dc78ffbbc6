"""Train a zero-shot segmentation model from a recipe.

accelerate launch scripts/train.py --recipe scenes --output_dir outputs/scenes
"""

import argparse
import sys
from pathlib import Path

# This folder has an evaluate.py, which must not hide the library of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a zero-shot segmentation model from a recipe (scripts/recipes).",
        epilog="Example: accelerate launch scripts/train.py --recipe pascal_voc_edge/cagnet_pi "
        "--output_dir outputs/voc dataset=data/pascal_voc stages.finetune.iterations=300",
    )
    parser.add_argument(
        "--recipe", required=True, help="a name such as scenes or pascal_voc_edge/cagnet_pi, or a file"
    )
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="gets model/, metrics.json, figures/, checkpoints/"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output_dir")
    parser.add_argument(
        "--push_to_hub",
        metavar="ID",
        help="after training, push the model to this repository of the Hub (made before training, if need be)",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="deterministic algorithms only: the same bits from the same command on the same machine",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe keys to change, dotted")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)

    # Imported here, so that --help answers at once.
    from accelerate import Accelerator

    from cagnet_hf.apps.report import write_report
    from cagnet_hf.cli import resuming_command, run, use_every_core
    from cagnet_hf.hub.models import check_own_weights, push_model
    from cagnet_hf.hub.repositories import claim_repository
    from cagnet_hf.training.interruption import Stopped
    from cagnet_hf.training.loop import Trainer
    from cagnet_hf.training.recipe_files import load_recipe

    def train():
        overrides = [*args.overrides, *(["deterministic=true"] if args.deterministic else [])]
        recipe = load_recipe(args.recipe, overrides)
        pushes = args.push_to_hub is not None and Accelerator().is_main_process
        if pushes:  # before hours are spent
            check_own_weights(recipe)
            claim_repository(args.push_to_hub)
        trainer = Trainer(recipe, args.output_dir, resume=args.resume)
        try:
            trainer.run()
            write_report(trainer)
            trainer.accelerator.print(f"Wrote {args.output_dir}")
            if pushes:
                print(f"Pushed {push_model(args.output_dir / 'model', args.push_to_hub).commit_url}")
        except Stopped:
            trainer.accelerator.print(f"Stopped; to go on: {resuming_command(__file__, argv)}")
        trainer.accelerator.state.destroy_process_group()

    use_every_core()
    return run(train)


if __name__ == "__main__":
    sys.exit(main())
