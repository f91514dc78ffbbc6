"""Publish a trained or converted model on the Hugging Face Hub.

python scripts/push_to_hub.py --model outputs/scenes/model --repo_id owner/cagnet-scenes
"""

import argparse
import sys
from pathlib import Path

# This folder has an evaluate.py, which must not hide the library of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Push a model folder to the Hub as one commit: weights, code, image processor, model card. For a "
        "model that scripts/train.py wrote, the card is made from its metrics.json, and metrics, recipe and figures "
        "are pushed, too. The token is that of `hf auth login`, or HF_TOKEN.",
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="the model folder: OUT/model")
    parser.add_argument("--repo_id", required=True, metavar="ID", help="owner/name, or name for a model of your own")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument(
        "--license",
        metavar="ID",
        help="licence of the weights, such as apache-2.0; a model made from a checkpoint of others needs it",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from cagnet_hf.cli import run
    from cagnet_hf.hub.models import push_model

    def push():
        commit = push_model(args.model, args.repo_id, private=args.private, license=args.license)
        print(f"Pushed {commit.commit_url}")

    return run(push)


if __name__ == "__main__":
    sys.exit(main())
