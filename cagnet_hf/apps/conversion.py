"""Someone else's checkpoint, made a model folder with a card that says where the weights come from."""

from logging import getLogger
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.benchmarks import Benchmark
from ..data.names import printable
from ..files import sha256
from ..hub.cards.converted import UNTRAINED_ASPP, Origin, converted_backbone_card, converted_model_card
from ..model.image_processing_cagnet import CaGNetImageProcessor
from ..model.modeling_cagnet import CaGNetForSemanticSegmentation, CaGNetModel
from ..weights.conversion import convert_backbone, convert_spnet, convert_state_dict, match_keys, read_checkpoint
from ..weights.folders import save_model_folder

logger = getLogger(__name__)


def convert(
    checkpoint: Path,
    output: Path,
    classes: tuple[Benchmark, np.ndarray] | tuple[()] = (),
    *,
    source: str | None = None,
) -> None:
    """Write the model folder of a checkpoint.

    Args:
        checkpoint: A `.pth` or `.safetensors` file.
        output: The folder to write; a folder that is there is replaced.
        classes: The benchmark and the class embeddings `(N, E)` of an SPNet, whose file has neither.
        source: Where the checkpoint came from; its name when None.

    Raises:
        ValueError: The file is damaged, or holds a tensor that has no place in a model of this package.
    """
    tensors = read_checkpoint(checkpoint)
    try:
        match = match_keys(tensors)
        origin = Origin(match.layout, source or checkpoint.name, sha256(checkpoint))
        processor = CaGNetImageProcessor(**match.processor_fields)
        if match.is_trunk and not classes:
            model, has_aspp = _backbone(tensors)
            card = converted_backbone_card(model.config, processor, origin, has_aspp=has_aspp)
            aspp = f"an ASPP of {model.config.feature_size} features" if has_aspp else f"no ASPP, so {UNTRAINED_ASPP}"
            hint = "(for an SPNet give --benchmark and --class_embeddings)"
            summary = f"A backbone of {sum(model.config.depths)} blocks and {aspp}; no classes {hint}"
        else:
            model = _segmenter(tensors, classes)
            card = converted_model_card(model.config, processor, origin)
            seen, unseen = len(model.config.seen_ids), len(model.config.unseen_ids)
            summary = (
                f"{seen} seen and {unseen} unseen classes: {', '.join(map(printable, model.config.id2label.values()))}"
            )
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from None
    model.config.weights_from = origin.source
    save_model_folder(model, processor, output, card)
    skipped = f"{len(match.skipped)} skipped" + (f" ({', '.join(match.skipped)})" if match.skipped else "")
    matched, unknown = len(match.matched), len(match.unknown)
    logger.info("%d tensors: %d matched, %s, %d unknown", len(tensors), matched, skipped, unknown)
    logger.info("%s\nWrote %s", summary, output)


def _segmenter(tensors: dict[str, Tensor], classes: tuple) -> CaGNetForSemanticSegmentation:
    """A CaGNet or, with `classes`, an SPNet."""
    config, weights = convert_spnet(tensors, *classes) if classes else convert_state_dict(tensors)
    with torch.device("meta"):  # its own weights are never made
        model = CaGNetForSemanticSegmentation(config)
    model.load_state_dict(weights, strict=True, assign=True)
    return model


def _backbone(tensors: dict[str, Tensor]) -> tuple[CaGNetModel, bool]:
    """The network of a file with a backbone, and whether the file has an ASPP, too."""
    config, weights = convert_backbone(tensors)
    has_aspp = any(name.startswith("aspp.") for name in weights)
    torch.manual_seed(0)  # so that an ASPP of no file is the same in every conversion
    model = CaGNetModel(config)
    model.load_state_dict(weights, strict=has_aspp)
    return model, has_aspp
