"""The heads of image classifiers, to be applied at every cell of a feature map, and the names that they know."""

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from ..files import check_weight_files
from ..model.prototypes_cagnet import DenseHead
from .backbones import PACKAGES, read_package

_BATCH_NORM_EPSILON = 1e-3  # of an EfficientNet-Lite


def load_image_classifier_head(backbone: str, source: str) -> tuple[DenseHead, tuple[str, ...] | None]:
    """The head of a classifier of images, and the names of its classes; None where these are ImageNet's.

    Args:
        backbone: The backbone that the head sits on, by its name in `BACKBONES`.
        source: `"package"` for an EfficientNet-Lite of ImageNet (see `backbones.PACKAGES`), else an image classifier
            of transformers, a folder or an id on the Hub, whose last linear layer scores the mean of a feature map.

    Raises:
        ValueError: The package is not installed, the classifier's head is of another kind, or the weights are no
            safetensors files.
        OSError: There is no such classifier.
    """
    if backbone in PACKAGES and source == "package":
        return _efficientnet_lite_head(read_package(backbone)[1]), None
    if backbone != "auto":
        raise ValueError(f"backbone={backbone!r}: the head of its image classifier is not known from {source!r}")
    return _transformers_head(source)


def _efficientnet_lite_head(tensors: dict[str, Tensor]) -> DenseHead:
    """Convolution, batch normalisation folded into it, ReLU6, linear layer."""
    gain = tensors["_bn1.weight"] / (tensors["_bn1.running_var"] + _BATCH_NORM_EPSILON).sqrt()
    weight = tensors["_conv_head.weight"] * gain[:, None, None, None]
    bias = tensors["_bn1.bias"] - tensors["_bn1.running_mean"] * gain
    return _head(tensors["_fc.weight"], tensors["_fc.bias"], weight, bias)


def _transformers_head(source: str) -> tuple[DenseHead, tuple[str, ...]]:
    check_weight_files(source)
    classifier = AutoModelForImageClassification.from_pretrained(source, use_safetensors=True, trust_remote_code=False)
    layers = [module for module in classifier.classifier.modules() if not list(module.children())]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    others = [layer for layer in layers if not isinstance(layer, nn.Linear | nn.Flatten | nn.Dropout | nn.Identity)]
    if len(linear) != 1 or others:
        kind = classifier.config.model_type
        raise ValueError(f"{source}: the head of a {kind!r} classifier is no single linear layer over a feature map")
    names = tuple(classifier.config.id2label[i] for i in range(linear[0].out_features))
    bias = linear[0].bias if linear[0].bias is not None else torch.zeros(linear[0].out_features)
    return _head(linear[0].weight.detach(), bias.detach()), names


def _head(weight: Tensor, bias: Tensor, hidden_weight: Tensor | None = None, hidden_bias: Tensor | None = None):
    """The head of these tensors; linear layers become 1x1 convolutions."""
    hidden = 0 if hidden_weight is None else len(hidden_weight)
    head = DenseHead(hidden_weight.shape[1] if hidden else weight.shape[1], hidden, len(weight))
    tensors = {"output.weight": weight[:, :, None, None], "output.bias": bias}
    if hidden:
        tensors |= {"hidden.weight": hidden_weight, "hidden.bias": hidden_bias}
    head.load_state_dict(tensors)
    return head.requires_grad_(False).eval()
