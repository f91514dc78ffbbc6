"""Segment images: a label PNG and an overlay with a legend for each.

python scripts/predict.py --model outputs/scenes/model photo.jpg --output predictions
"""

import argparse
import sys
from pathlib import Path

# This folder has an evaluate.py, which must not hide the library of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Segment images. For each, writes NAME.png (palette PNG of the dataset's label ids) and "
        "NAME_overlay.png (classes over the image; unseen classes are hatched and listed apart)."
    )
    parser.add_argument("--model", required=True, help="model folder or Hub id")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from PIL import Image, ImageOps
    from tqdm import tqdm

    from cagnet_hf.benchmarks import LabelMap
    from cagnet_hf.cli import run
    from cagnet_hf.data.examples import read_image
    from cagnet_hf.prediction import load_model, segment
    from cagnet_hf.visualization import class_palette, overlay_with_legend

    def segment():
        names = [name for path in args.images for name in (path.stem, f"{path.stem}_overlay")]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two predictions would be called {twice!r}.png: rename an image")
        outputs = {(args.output / f"{name}.png").resolve() for name in names}
        overwritten = next((path for path in args.images if path.resolve() in outputs), None)
        if overwritten is not None:
            raise ValueError(f"{overwritten} would be overwritten by its prediction: choose another --output")
        model, processor = load_model(args.model)
        config = model.config
        to_stored_ids = LabelMap.of(config).to_stored_ids
        palette = class_palette(255)
        class_names = [config.id2label[i] for i in range(config.num_labels)]
        args.output.mkdir(parents=True, exist_ok=True)
        with tqdm(args.images, desc="segment", disable=len(args.images) == 1) as bar:
            for path in bar:
                image = ImageOps.exif_transpose(read_image(path)).convert("RGB")
                prediction = predict(model, processor, image)
                stored = Image.fromarray(to_stored_ids(prediction), mode="P")
                stored.putpalette(palette.tobytes())
                stored.save(args.output / f"{path.stem}.png")
                picture = overlay_with_legend(image, prediction, class_names, config.seen_ids, config.unseen_ids)
                picture.save(args.output / f"{path.stem}_overlay.png")
        print(f"Wrote {2 * len(args.images)} files to {args.output}")

    return run(segment)


if __name__ == "__main__":
    sys.exit(main())
