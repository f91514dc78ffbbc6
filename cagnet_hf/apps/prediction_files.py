"""The files of a prediction: label PNG, overlay, confidence map, JSON summary."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from ..data.image_inputs import RemoteFile
from ..data.label_space import LabelSpace
from ..files import check_output, made_by, real_path, write_text_whole
from .pictures import class_palette, save_picture
from .prediction import Prediction

SUFFIXES = (".png", "_overlay.png", "_confidence.png", ".json")


MARK = made_by("predict")


def check_outputs(files: Sequence[Path | RemoteFile], output: Path) -> None:
    """Refuse two predictions of one name, and a prediction that would replace a file that is none."""
    names = Counter(f"{file.stem}{suffix}" for file in files for suffix in SUFFIXES)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"two predictions would be called {twice!r}: rename an image")
    outputs = {real_path(path) for path in (output.iterdir() if output.is_dir() else ()) if path.name in names}
    overwritten = next((file for file in files if isinstance(file, Path) and real_path(file) in outputs), None)
    if overwritten is not None:
        raise ValueError(f"{overwritten} would be overwritten by its prediction: choose another --output")
    for name in names:
        check_output(output / name, MARK)


def write_prediction(prediction: Prediction, file: Path | RemoteFile, output: Path) -> None:
    """Write the four files of an image into a folder; the label PNG holds stored ids."""
    label_map = LabelSpace.of(prediction.config).to_stored_ids(prediction.label_map)
    stored = Image.fromarray(label_map, mode="P")
    stored.putpalette(class_palette(255).tobytes())
    for suffix, picture in zip(SUFFIXES, (stored, prediction.overlay(), prediction.confidence_map()), strict=False):
        save_picture(picture, output / f"{file.stem}{suffix}", MARK)
    height, width = label_map.shape
    name = os.fsencode(str(file)).decode("utf-8", "replace")  # a name on a disk may be no text
    summary = {"made_by": MARK, "image": name, "width": width, "height": height}
    summary["classes"] = [asdict(found) for found in prediction.classes]
    write_text_whole(output / f"{file.stem}.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
