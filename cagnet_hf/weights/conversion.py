"""The original authors' checkpoints and ImageNet ResNets -> networks of this package.

Every tensor of a file has a place here or is known to be of no use; a file with any other is refused.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..data.benchmarks import Benchmark, load_benchmark
from ..model.configuration_cagnet import CaGNetConfig
from ..model.modeling_cagnet import CaGNetForSemanticSegmentation, CaGNetModel
from .layouts import KeyMatch, match_keys

# The benchmarks that checkpoints were published for; the classes of a file are recognised by their numbers.
_PUBLISHED = ("pascal_voc", "pascal_context", "coco_stuff")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` or `.safetensors` file, by name; no code in it is ever run.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or holds anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged or hostile file ends torch.load in errors of every kind
        raise ValueError(
            f"{path}: not a checkpoint of plain tensors: it is damaged, or holds objects or code, which are never "
            "loaded"
        ) from None
    try:
        return _named_tensors(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def convert_state_dict(original: dict[str, Tensor]) -> tuple[CaGNetConfig, dict[str, Tensor]]:
    """A CaGNet or CaGNetv2 checkpoint of the original authors -> configuration and weights of our network.

    Depths, sizes, classes and patches are read off the tensors. The classes get the names of a published benchmark
    when their numbers (seen, unseen) are its numbers. The last output, background, which no label ever had, is
    dropped.

    Args:
        original: The state dict (tensors or arrays), or the checkpoint around it.

    Returns:
        The configuration, and weights that fit `CaGNetForSemanticSegmentation(config)` strictly.

    Raises:
        ValueError: The file holds no such network, a tensor without a place here, or tensors that contradict
            each other.
    """
    weights, match = _renamed(original, "DeepLabV2")
    if not match.has_classes:
        raise ValueError("the file holds a backbone but no classes (no Em_all): it is not a whole CaGNet network")
    embeddings = weights["class_embeddings"]
    classes = _original_classes(_count_seen(embeddings, weights.pop("seen_embeddings", None)), len(embeddings))
    for leaf in ("weight", "bias"):
        name = f"classifier.class_head.{leaf}"
        if _size(weights, name) != len(embeddings) + 1:
            raise ValueError(
                f"{_size(weights, name)} outputs (dis.cls.{leaf}) for {len(embeddings)} classes (Em_all): "
                "need one for each class and a last one, background"
            )
        weights[name] = weights[name][:-1]
    config = CaGNetConfig(
        **_trunk_fields(weights, match),
        embedding_size=embeddings.shape[1],
        context_hidden_size=_size(weights, "cagnet.context.scales.0.weight"),
        classifier_hidden_size=_size(weights, "classifier.trunk.weight"),
        patch_size=3 if "classifier.neighbours.weight" in weights else 1,
        # One hidden layer for each of the original's dropout rates, which no tensor holds.
        generator_hidden_sizes=[
            _size(weights, f"generator.layers.{3 * i}.weight") for i in range(len(CaGNetConfig.generator_dropout))
        ],
        **classes.config_fields(),
    )
    return config, _fitted(weights, _state_dict_of(CaGNetForSemanticSegmentation, config))


def convert_spnet(
    original: dict[str, Tensor], benchmark: Benchmark, class_embeddings: np.ndarray
) -> tuple[CaGNetConfig, dict[str, Tensor]]:
    """An SPNet checkpoint, whose file knows no classes -> configuration and weights of our network.

    It is tested at three scales, as published: `test_scales=(1.0, 0.75, 0.5)`.

    Args:
        original: The state dict, or the checkpoint around it.
        benchmark: Names the classes.
        class_embeddings: Those the network was trained with, `(N, D)` in model order.

    Raises:
        ValueError: As `convert_state_dict`, or the embeddings do not have the size of the features.
    """
    weights, match = _renamed(original, "DeepLabV2")
    if match.has_classes:
        raise ValueError("the file holds its own classes (Em_all): it is a CaGNet network, not an SPNet")
    fields = _trunk_fields(weights, match)
    size = fields.get("feature_size")
    if size != class_embeddings.shape[1]:
        raise ValueError(
            f"class embeddings of {class_embeddings.shape[1]} numbers do not fit a network with "
            + ("no ASPP" if size is None else f"{size} features")
        )
    config = CaGNetConfig(
        **fields,
        embedding_size=size,
        contextual=False,
        classifier="projection",
        generator=None,
        test_scales=(1.0, 0.75, 0.5),
        **benchmark.config_fields(),
    )
    weights["class_embeddings"] = torch.from_numpy(class_embeddings)
    return config, _fitted(weights, _state_dict_of(CaGNetForSemanticSegmentation, config))


def convert_backbone(original: dict[str, Tensor]) -> tuple[CaGNetConfig, dict[str, Tensor]]:
    """The backbone of any known file and, where there is one, its ASPP.

    Args:
        original: A state dict, or the checkpoint around it: CaGNet, SPNet, DeepLabV2, or a ResNet of torchvision or
            transformers with bottleneck blocks.

    Returns:
        The configuration of a `CaGNetModel` without contextual module, and its weights: `backbone.*` and, with an
        ASPP only, `aspp.*`.

    Raises:
        ValueError: The file holds no such network, or a tensor without a place here.
    """
    weights, match = _renamed(original, "DeepLabV2", "torchvision", "transformers")
    trunk = {
        name.removeprefix("cagnet."): tensor
        for name, tensor in weights.items()
        if name.startswith(("cagnet.backbone.", "cagnet.aspp."))
    }
    fields = _trunk_fields(weights, match)
    parts = ("backbone.", "aspp.") if "feature_size" in fields else ("backbone.",)
    config = CaGNetConfig(**fields, contextual=False, generator=None)
    return config, _fitted(trunk, _state_dict_of(CaGNetModel, config, parts))


def _named_tensors(checkpoint) -> dict[str, Tensor]:
    """The state dict, taken out of the checkpoint around it."""
    tensors = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else checkpoint
    if not isinstance(tensors, Mapping):
        raise ValueError(f"a {type(tensors).__name__}, not named tensors")
    named = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, np.ndarray | np.number):
            tensor = torch.as_tensor(tensor)
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"entry {name!r} is no tensor but a {type(tensor).__name__}")
        named[name] = tensor
    return named


def _renamed(original, *layouts: str) -> tuple[dict[str, Tensor], KeyMatch]:
    """The tensors by our names; a layout that is not wanted and names that are not known are refused."""
    tensors = _named_tensors(original)
    match = match_keys(tensors)
    if not match.matched:
        first = next(iter(tensors), None)
        raise ValueError(f"no known network: {len(tensors)} tensors" + (f", the first {first!r}" if first else ""))
    if match.unknown:
        raise ValueError(
            f"{len(match.unknown)} of {len(tensors)} tensors have no place in the {match.layout} layout, for instance "
            f"{match.unknown[0]!r}"
        )
    if match.layout not in layouts:
        raise ValueError(f"a {match.layout} file, where one of {', '.join(layouts)} is wanted")
    return {ours: tensors[name] for name, ours in match.matched.items()}, match


def _tensor(weights: dict[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        raise ValueError(f"the file lacks {name}: it is cut short, or of another architecture")
    return weights[name]


def _size(weights: dict[str, Tensor], name: str) -> int:
    """The length of the first dimension: output channels of a convolution."""
    tensor = _tensor(weights, name)
    if tensor.ndim == 0:
        raise ValueError(f"{name} has the shape (): it is of another architecture")
    return len(tensor)


def _trunk_fields(weights: dict[str, Tensor], match: KeyMatch) -> dict:
    """What the tensors of the backbone and the ASPP say about the configuration."""
    stages = "cagnet.backbone.stages"
    blocks = {tuple(name.split(".")[3:5]) for name in weights if name.startswith(stages)}
    fields = {
        "stride_in_1x1": match.stride_in_1x1,
        "stem_size": _size(weights, "cagnet.backbone.stem.convolution.weight"),
        "depths": [sum(int(stage) == index for stage, _ in blocks) for index in range(4)],
        "hidden_sizes": [_size(weights, f"{stages}.{i}.0.increase.convolution.weight") for i in range(4)],
    }
    if any(name.startswith("cagnet.aspp.") for name in weights):
        fields["feature_size"] = _size(weights, "cagnet.aspp.branches.0.weight")
    return fields


def _count_seen(embeddings: Tensor, seen_table: Tensor | None) -> int:
    """The number of seen classes: Em_vis is the first rows of Em_all, then zeros."""
    if embeddings.ndim != 2 or (seen_table is not None and seen_table.ndim != 2):
        raise ValueError("Em_all and Em_vis are tables: a row of numbers for each class")
    if not embeddings.isfinite().all() or not embeddings.any(dim=1).all():
        raise ValueError("Em_all has a class without an embedding: a row that is zero or not finite")
    if seen_table is None:
        raise ValueError("the file lacks Em_vis.weight, which tells seen classes from unseen ones")
    num_seen = int(seen_table.any(dim=1).sum())
    expected = torch.zeros_like(seen_table)
    if num_seen <= len(embeddings) and seen_table.shape[1] == embeddings.shape[1]:
        expected[:num_seen] = embeddings[:num_seen]
    if num_seen == 0 or not torch.equal(seen_table, expected):
        raise ValueError("Em_vis is not the first rows of Em_all followed by zeros")
    return num_seen


def _original_classes(num_seen: int, num_classes: int) -> Benchmark:
    """The classes of an original checkpoint: those of the benchmark with these numbers, else numbered ones.

    The seen classes that the original tuned on come after the other seen ones: on COCO-Stuff that is not the order of
    `load_benchmark`.
    """
    for benchmark in map(load_benchmark, _PUBLISHED):
        if (len(benchmark.seen_ids), len(benchmark.class_ids)) == (num_seen, num_classes):
            tuning = benchmark.seen_ids_for_tuning
            return replace(benchmark, seen_ids=tuple(i for i in benchmark.seen_ids if i not in tuning) + tuning)
    return Benchmark(
        name="unknown",
        label_names=tuple(f"class {i}" for i in range(num_classes)),
        seen_ids=tuple(range(num_seen)),
        unseen_ids=tuple(range(num_seen, num_classes)),
    )


def _state_dict_of(kind, config, parts=("",)) -> dict[str, Tensor]:
    """Names and shapes of a network, or of the parts of it whose names start so."""
    with torch.device("meta"):
        return {name: tensor for name, tensor in kind(config).state_dict().items() if name.startswith(parts)}


def _fitted(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the expected types, refused when names or shapes differ."""
    fitted = {}
    for name, tensor in expected.items():
        # Files older than PyTorch 0.4.1 do not count batches; frozen statistics never use the number.
        counts = name.endswith("num_batches_tracked") and name not in weights
        fitted[name] = torch.zeros((), dtype=tensor.dtype) if counts else _tensor(weights, name).to(tensor.dtype)
        if fitted[name].shape != tensor.shape:
            raise ValueError(
                f"{name} has the shape {tuple(fitted[name].shape)}, the network of the other tensors "
                f"{tuple(tensor.shape)}"
            )
    surplus = sorted(weights.keys() - expected.keys())
    if surplus:
        raise ValueError(f"{surplus[0]} has no place in the network of the other tensors")
    return fitted
