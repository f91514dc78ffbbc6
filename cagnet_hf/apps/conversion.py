"""Someone else's checkpoint, made a model folder with a card that says where the weights come from."""

from logging import getLogger
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.benchmarks import load_benchmark
from ..data.names import printable
from ..files import sha256
from ..hub.cards.converted import UNTRAINED_ASPP, Origin, converted_backbone_card, converted_model_card
from ..model.image_processing_cagnet import CaGNetImageProcessor
from ..model.modeling_cagnet import CaGNetForSemanticSegmentation, CaGNetModel
from ..vectors.class_embeddings import load_class_embeddings
from ..weights.conversion import convert_backbone, convert_spnet, convert_state_dict, match_keys, read_checkpoint
from ..weights.folders import save_model_folder

logger = getLogger(__name__)


def convert(
    checkpoint: Path,
    output: Path,
    *,
    source: str | None = None,
    benchmark: str | None = None,
    class_embeddings: str | None = None,
) -> None:
    """Write the model folder of a checkpoint.

    Args:
        checkpoint: A `.pth` or `.safetensors` file.
        output: The folder to write; a folder that is there is replaced.
        source: Where the checkpoint came from; its name when None.
        benchmark: The benchmark of an SPNet.
        class_embeddings: The class embeddings that the SPNet was trained with.

    Raises:
        ValueError: The file is damaged, or holds a tensor that has no place in a model of this package.
    """
    classes = ()
    if benchmark is not None:
        table = load_benchmark(benchmark)
        classes = (table, load_class_embeddings(class_embeddings, table))
    tensors = read_checkpoint(checkpoint)
    try:
        match = match_keys(tensors)
        origin = Origin(match.layout, source or checkpoint.name, sha256(checkpoint))
        processor = CaGNetImageProcessor(**match.processor_fields)
        if match.is_trunk and not classes:
            model, card, summary = _backbone(tensors, processor, origin)
        else:
            model, card, summary = _segmenter(tensors, classes, processor, origin)
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from None
    model.config.weights_from = origin.source
    save_model_folder(model, processor, output, card)
    skipped = f"{len(match.skipped)} skipped" + (f" ({', '.join(match.skipped)})" if match.skipped else "")
    matched, unknown = len(match.matched), len(match.unknown)
    logger.info("%d tensors: %d matched, %s, %d unknown", len(tensors), matched, skipped, unknown)
    logger.info("%s\nWrote %s", summary, output)


def _segmenter(
    tensors: dict[str, Tensor], classes: tuple, processor: CaGNetImageProcessor, origin: Origin
) -> tuple[nn.Module, str, str]:
    """(model, card, one line about it) of a CaGNet or, with `classes`, of an SPNet."""
    config, weights = convert_spnet(tensors, *classes) if classes else convert_state_dict(tensors)
    names = ", ".join(map(printable, config.id2label.values()))
    summary = f"{len(config.seen_ids)} seen and {len(config.unseen_ids)} unseen classes: {names}"
    model = _with_weights(CaGNetForSemanticSegmentation, config, weights)
    return model, converted_model_card(config, processor, origin), summary


def _backbone(
    tensors: dict[str, Tensor], processor: CaGNetImageProcessor, origin: Origin
) -> tuple[nn.Module, str, str]:
    """(model, card, one line about it) of a file with a backbone and perhaps an ASPP, which are all it needs."""
    config, weights = convert_backbone(tensors)
    has_aspp = any(name.startswith("aspp.") for name in weights)
    torch.manual_seed(0)  # so that an ASPP of no file is the same in every conversion
    model = CaGNetModel(config)
    model.load_state_dict(weights, strict=has_aspp)
    aspp = f"an ASPP of {config.feature_size} features" if has_aspp else f"no ASPP, so {UNTRAINED_ASPP}"
    hint = "(for an SPNet give --benchmark and --class_embeddings)"
    summary = f"A backbone of {sum(config.depths)} blocks and {aspp}; no classes {hint}"
    return model, converted_backbone_card(config, processor, origin, has_aspp=has_aspp), summary


def _with_weights(kind: type[nn.Module], config, weights: dict[str, Tensor]) -> nn.Module:
    """The network with these weights, all of them; its own are never made."""
    with torch.device("meta"):
        model = kind(config)
    model.load_state_dict(weights, strict=True, assign=True)
    return model
