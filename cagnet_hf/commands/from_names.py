"""`cagnet-hf from_names`."""

from logging import getLogger
from pathlib import Path

logger = getLogger(__name__)


def from_names(
    names: list[str] = (),
    *,
    class_: list[str] = (),
    benchmark: str | None = None,
    backbone: str = "efficientnet_lite0",
    encoder: str | None = None,
    output: Path,
) -> None:
    """Make a model from the names of its classes alone.

    No image, no label and no training is needed. The ImageNet classifier of the backbone is applied at every pixel,
    and the names say which of its 1,000 classes belong together. Every pixel is given to one of the classes.

    Args:
        names (NAME): The classes.
        class_ (NAME): A class; may be repeated.
        benchmark: Take the classes of a benchmark, with its ids, so that the model can be scored on it.
        backbone: efficientnet_lite0 or efficientnet_lite2.
        encoder (DIR_OR_ID): Where the text encoder all-MiniLM-L6-v2 lies, for names that no bundled table holds
            (default: the package of the extra names, where it is installed).
        output: The folder to write the model to.

    Examples:
        cagnet-hf from_names dog sofa train --output outputs/names
        cagnet-hf from_names --class "traffic light" --class bus --class dog --output outputs/street
    """
    from ..apps.names import from_names as build
    from ..data.benchmarks import load_benchmark
    from ..files import MODEL_FOLDER, check_output
    from ..hub.cards.named import named_model_card
    from ..weights.folders import save_model_folder

    if output.exists():
        raise FileExistsError(f"--output {output} exists; choose another")
    check_output(output, MODEL_FOLDER)
    wanted = [*names, *class_]
    if bool(wanted) == (benchmark is not None):
        raise ValueError("give the names of the classes, or --benchmark")
    classes = None if benchmark is None else load_benchmark(benchmark)
    model, processor = build(wanted, backbone=backbone, benchmark=classes, encoder=encoder)
    save_model_folder(model, processor, output, named_model_card(model.config))
    logger.info("Wrote %s: %s", output, ", ".join(model.config.id2label.values()))
