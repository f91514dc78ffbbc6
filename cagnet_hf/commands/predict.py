"""`cagnet-hf predict`."""

from logging import getLogger
from pathlib import Path

logger = getLogger(__name__)


def predict(
    images: list[str],
    *,
    model: str,
    output: Path,
    gamma: float | None = None,
    min_score: float | None = None,
    batch_size: int = 8,
) -> None:
    """Segment images: label maps, overlays, scores.

    For each image, this writes NAME.png (a palette PNG of the dataset's label ids), NAME_overlay.png (classes over the
    image; unseen classes are hatched and listed apart), NAME_confidence.png (grey: the probability of each pixel's
    label) and NAME.json (classes with area and mean score). An image that cannot be read is reported and left out; the
    exit code is 2 then.

    Args:
        images (IMAGE): Files, folders, patterns or http(s) addresses.
        model: A model folder, a Hub id, or ID@REVISION.
        output: The folder to write to.
        gamma: The calibration, a number from -1 to 1 that is subtracted from the seen classes' probabilities.
            Negative: fewer pixels go to unseen classes (default: the model's own).
        min_score: A pixel whose class is less probable than this number from 0 to 1 is given to no class: the id 255
            in NAME.png, no colour in the overlay, "None of these" in the legend and in NAME.json (default: the
            model's own).
        batch_size: Images to segment at once.

    Examples:
        cagnet-hf predict --model outputs/scenes/model photo.jpg 'more/*.png' --output predictions
    """
    import warnings

    import torch
    from PIL import Image
    from tqdm.auto import tqdm

    from ..apps.prediction import segment
    from ..apps.prediction_files import SUFFIXES, check_outputs, write_prediction
    from ..data.image_inputs import find_images
    from ..data.samples import BrokenFileError, read_image
    from ..weights.folders import load_model

    if batch_size < 1:
        raise ValueError(f"--batch_size {batch_size}: choose 1 or more")
    files = find_images(images)
    check_outputs(files, output)
    network, processor = load_model(model)
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    broken, readable = [], []

    def pictures():
        for file in tqdm(files, desc="segment", disable=len(files) == 1):
            try:
                picture = read_image(file)
            except BrokenFileError as error:
                if len(files) == 1:
                    raise
                logger.warning("left out: %s", error)
                broken.append(file)
            else:
                readable.append(file)
                yield picture

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # read_image refuses what is larger still
    predictions = segment(network, processor, pictures(), gamma=gamma, min_score=min_score, batch_size=batch_size)
    for number, prediction in enumerate(predictions):
        output.mkdir(parents=True, exist_ok=True)
        write_prediction(prediction, readable[number], output)
    if readable:
        logger.info("Wrote %d files to %s", len(SUFFIXES) * len(readable), output)
    else:
        logger.info("Wrote nothing")
    if broken:
        raise ValueError(f"{len(broken)} of {len(files)} images left out, which could not be read (named above)")
