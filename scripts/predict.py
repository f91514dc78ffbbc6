"""Segment images: label PNG, overlay with a legend, confidence map and a JSON summary for each.

python scripts/predict.py --model outputs/scenes/model photo.jpg 'more/*.png' --output predictions
"""

import argparse
import json
import sys
from pathlib import Path

# This folder has an evaluate.py, which must not hide the library of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

SUFFIXES = (".png", "_overlay.png", "_confidence.png", ".json")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Segment images. For each, writes NAME.png (palette PNG of the dataset's label ids), "
        "NAME_overlay.png (classes over the image; unseen classes are hatched and listed apart), NAME_confidence.png "
        "(grey: the probability of each pixel's label) and NAME.json (classes with area and mean score). An image "
        "that cannot be read is reported and left out; the exit code is 2 then."
    )
    parser.add_argument("--model", required=True, help="model folder, Hub id, or ID@REVISION")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, patterns, http(s) addresses")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--gamma", type=float, help="calibration: subtract GAMMA from the seen classes' probabilities (model's own)"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="images to segment at once (default: 8)")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from cagnet_hf.cli import run

    return run(lambda: predict(args))


def predict(args: argparse.Namespace) -> None:
    import warnings

    import torch
    from PIL import Image
    from tqdm import tqdm

    from cagnet_hf.apps.prediction import segment
    from cagnet_hf.data.image_inputs import find_images
    from cagnet_hf.data.samples import BrokenFileError, read_image
    from cagnet_hf.weights.folders import load_model

    if args.batch_size < 1:
        raise ValueError(f"--batch_size {args.batch_size}: choose 1 or more")
    files = find_images(args.images)
    check_outputs(files, args.output)
    model, processor = load_model(args.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    broken, readable = [], []

    def images():
        for file in tqdm(files, desc="segment", disable=len(files) == 1):
            try:
                image = read_image(file)
            except BrokenFileError as error:
                if len(files) == 1:
                    raise
                tqdm.write(f"left out: {error}", file=sys.stderr)
                broken.append(file)
            else:
                readable.append(file)
                yield image

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # read_image refuses what is larger still
    predictions = segment(model, processor, images(), gamma=args.gamma, batch_size=args.batch_size)
    for number, prediction in enumerate(predictions):
        args.output.mkdir(parents=True, exist_ok=True)
        write(prediction, readable[number], args.output)
    print(f"Wrote {len(SUFFIXES) * len(readable)} files to {args.output}" if readable else "Wrote nothing")
    if broken:
        raise ValueError(f"{len(broken)} of {len(files)} images left out, which could not be read (named above)")


def check_outputs(files, output: Path) -> None:
    """Refuse two predictions of one name, and one that would replace an image."""
    from collections import Counter

    names = Counter(f"{file.stem}{suffix}" for file in files for suffix in SUFFIXES)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"two predictions would be called {twice!r}: rename an image")
    outputs = {(output / name).resolve() for name in names}
    overwritten = next((file for file in files if isinstance(file, Path) and file.resolve() in outputs), None)
    if overwritten is not None:
        raise ValueError(f"{overwritten} would be overwritten by its prediction: choose another --output")


def write(prediction, file, output: Path) -> None:
    """The four files of an image."""
    from dataclasses import asdict

    from PIL import Image

    from cagnet_hf.apps.pictures import class_palette
    from cagnet_hf.data.label_space import LabelSpace
    from cagnet_hf.files import write_text_whole

    label_map = LabelSpace.of(prediction.config).to_stored_ids(prediction.label_map)
    stored = Image.fromarray(label_map, mode="P")
    stored.putpalette(class_palette(255).tobytes())
    pictures = (stored, prediction.overlay(), prediction.confidence_map())
    for suffix, picture in zip(SUFFIXES, pictures, strict=False):
        picture.save(output / f"{file.stem}{suffix}")
    height, width = label_map.shape
    summary = {"image": str(file), "width": width, "height": height}
    summary["classes"] = [asdict(found) for found in prediction.classes]
    write_text_whole(output / f"{file.stem}.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
