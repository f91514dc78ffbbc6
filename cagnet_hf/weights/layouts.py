"""The names of tensors in checkpoint files -> their names in this package's networks, as tables."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

_NORM = "(weight|bias|running_mean|running_var|num_batches_tracked)"
_BOTH = "(weight|bias)"
_NAMES = {
    "conv": "convolution",
    "bn": "normalization",
    # DeepLabV2
    "reduce": "reduce",
    "conv3x3": "spatial",
    "increase": "increase",
    "proj": "shortcut",
    # torchvision: a block's three convolutions and the one beside them
    "conv1": "reduce.convolution",
    "bn1": "reduce.normalization",
    "conv2": "spatial.convolution",
    "bn2": "spatial.normalization",
    "conv3": "increase.convolution",
    "bn3": "increase.normalization",
    "downsample.0": "shortcut.convolution",
    "downsample.1": "shortcut.normalization",
    # transformers
    "layer.0": "reduce",
    "layer.1": "spatial",
    "layer.2": "increase",
    "shortcut": "shortcut",
}
_TRUNK = "cagnet.backbone"
_IMAGENET = {
    "do_flip_channel_order": False,
    "do_rescale": True,
    "image_mean": IMAGENET_DEFAULT_MEAN,
    "image_std": IMAGENET_DEFAULT_STD,
}


class _Layout(NamedTuple):
    """How a family of files calls its tensors: patterns of whole names, and ours made from their groups."""

    prefix: str
    rules: dict[str, Callable[..., str]]
    useless: str = "(?!)"  # matches nothing
    stride_in_1x1: bool = False
    processor_fields: dict[str, Any] = {}


_LAYOUTS = {
    "DeepLabV2": _Layout(
        prefix=r"(?:module\.)?(?:back\.)?(?:scale\.)?",
        rules={
            rf"layer1\.conv1\.(conv|bn)\.{_NORM}": lambda kind, leaf: f"{_TRUNK}.stem.{_NAMES[kind]}.{leaf}",
            rf"layer([2-5])\.block(\d+)\.(reduce|conv3x3|increase|proj)\.(conv|bn)\.{_NORM}": (
                lambda stage, block, part, kind, leaf: (
                    f"{_TRUNK}.stages.{int(stage) - 2}.{int(block) - 1}.{_NAMES[part]}.{_NAMES[kind]}.{leaf}"
                )
            ),
            rf"aspp\.stages\.c(\d)\.{_BOTH}": "cagnet.aspp.branches.{}.{}".format,
            r"contextual([123])\.conv\.weight": lambda scale: f"cagnet.context.scales.{int(scale) - 1}.weight",
            r"fc_1\.conv\.weight": lambda: "cagnet.context.selector.weight",
            r"contextualpool\.conv\.weight": lambda: "cagnet.context.merge.weight",
            r"contextuallocalmu\.conv\.weight": lambda: "cagnet.context.mean.weight",
            r"contextuallocalsigma\.conv\.weight": lambda: "cagnet.context.log_variance.weight",
            rf"dis\.fc\.conv\.{_BOTH}": "classifier.trunk.{}".format,
            rf"dis\.cls_3\.{_BOTH}": "classifier.neighbours.{}".format,
            rf"dis\.cls\.{_BOTH}": "classifier.class_head.{}".format,
            rf"dis\.pred\.{_BOTH}": "classifier.critic_head.{}".format,
            # Ours counts the activation and the dropout after each convolution, too.
            rf"gen\.mlp\.(\d)(?:\.conv)?\.{_BOTH}": lambda layer, leaf: f"generator.layers.{3 * int(layer)}.{leaf}",
            r"Em_all\.weight": lambda: "class_embeddings",
            r"Em_vis\.weight": lambda: "seen_embeddings",
        },
        stride_in_1x1=True,
    ),
    "torchvision": _Layout(
        prefix=r"(?:module\.)?",
        rules={
            r"conv1\.weight": lambda: f"{_TRUNK}.stem.convolution.weight",
            rf"bn1\.{_NORM}": f"{_TRUNK}.stem.normalization.{{}}".format,
            rf"layer([1-4])\.(\d+)\.((?:conv|bn)[123]|downsample\.[01])\.{_NORM}": (
                lambda stage, block, part, leaf: f"{_TRUNK}.stages.{int(stage) - 1}.{block}.{_NAMES[part]}.{leaf}"
            ),
        },
        useless=r"fc\.(weight|bias)",
        processor_fields=_IMAGENET,
    ),
    "transformers": _Layout(
        prefix=r"(?:resnet\.)?",
        rules={
            rf"embedder\.embedder\.(convolution|normalization)\.{_NORM}": f"{_TRUNK}.stem.{{}}.{{}}".format,
            rf"encoder\.stages\.(\d)\.layers\.(\d+)\.(layer\.[012]|shortcut)\.(convolution|normalization)\.{_NORM}": (
                lambda stage, block, part, kind, leaf: f"{_TRUNK}.stages.{stage}.{block}.{_NAMES[part]}.{kind}.{leaf}"
            ),
        },
        useless=r"classifier\.1\.(weight|bias)",
        processor_fields=_IMAGENET,
    ),
}


@dataclass(frozen=True)
class KeyMatch:
    """What becomes of the tensors of a file, by their names.

    Attributes:
        layout: `"DeepLabV2"` (CaGNet, SPNet and their initialisation), `"torchvision"` or `"transformers"` (ImageNet
            ResNets); the one that knows most of the names.
        matched: Names in the file -> names here.
        skipped: Known, but of no use here: the head for the ImageNet classes.
        unknown: All others.
        stride_in_1x1: Whether the file's bottleneck blocks have their stride in the first 1x1 convolution.
        processor_fields: What `CaGNetImageProcessor` needs beyond its defaults, which are DeepLabV2's input.
    """

    layout: str
    matched: dict[str, str]
    skipped: tuple[str, ...]
    unknown: tuple[str, ...]
    stride_in_1x1: bool
    processor_fields: dict[str, Any]

    @property
    def has_classes(self) -> bool:
        """Whether the file holds a whole CaGNet network, its classes included."""
        return "class_embeddings" in self.matched.values()

    @property
    def is_trunk(self) -> bool:
        """Whether the file holds a backbone, perhaps an ASPP, and nothing beyond them."""
        return all(ours.startswith(("cagnet.backbone.", "cagnet.aspp.")) for ours in self.matched.values())


def match_keys(names: Iterable[str]) -> KeyMatch:
    """Find the place of every tensor of a file.

    Raises:
        ValueError: Two tensors have the same place.
    """
    names = list(names)
    found = (_match_layout(layout, names) for layout in _LAYOUTS)
    best = max(found, key=lambda match: len(match.matched))
    sources = {}
    for name, ours in best.matched.items():
        if ours in sources:
            raise ValueError(f"{sources[ours]} and {name} are the same tensor: the file holds two networks")
        sources[ours] = name
    return best


def _match_layout(layout: str, names: list[str]) -> KeyMatch:
    prefix, rules, useless, stride_in_1x1, processor_fields = _LAYOUTS[layout]
    matched, skipped, unknown = {}, [], []
    for name in names:
        found = (
            make(*match.groups())
            for pattern, make in rules.items()
            if (match := re.fullmatch(prefix + pattern, name)) is not None
        )
        ours = next(found, None)
        if ours is not None:
            matched[name] = ours
        else:
            (skipped if re.fullmatch(prefix + useless, name) else unknown).append(name)
    return KeyMatch(layout, matched, tuple(skipped), tuple(unknown), stride_in_1x1, processor_fields)
