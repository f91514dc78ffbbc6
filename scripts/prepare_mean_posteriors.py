"""Write how probable each ImageNet class is, on average, at a pixel of a photograph: what `from_names` divides by.

python scripts/prepare_mean_posteriors.py --model outputs/prototypes/model

The numbers are those that a run of `prototypes` took from its unlabelled pixels; a run for each backbone.
"""

import argparse
import sys
from pathlib import Path

VECTORS = Path(__file__).resolve().parents[1] / "cagnet_hf" / "vectors"
MADE_OF = "unlabelled pixels of Pascal VOC photographs"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="the model of a run of prototypes")
    parser.add_argument(
        "--output",
        type=Path,
        default=VECTORS / "mean_posteriors.safetensors",
        metavar="FILE",
        help="the file to write",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    options = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from cagnet_hf.cli import run

    return run(lambda: write_posteriors(options))


def write_posteriors(options: argparse.Namespace) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save

    from cagnet_hf.files import check_output, whole
    from cagnet_hf.weights.folders import load_model

    check_output(options.output, MADE_OF, inputs=(options.model,))

    model, _ = load_model(options.model)
    mass = model.generator.mean.mass.double().numpy()
    tensors = load_file(options.output) if options.output.is_file() else {}
    tensors[model.config.backbone] = (mass / mass.sum()).astype(np.float32)
    with whole(options.output) as aside:
        aside.write_bytes(save(tensors, {"made_of": MADE_OF, "license": "apache-2.0"}))
    print(f"Wrote {options.output}: {', '.join(sorted(tensors))}")


if __name__ == "__main__":
    sys.exit(main())
