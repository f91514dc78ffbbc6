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
from ..patches.pixel_cnn import PatchPixelCNN, PatchPixelCNNConfig
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


def convert_pixelcnn(
    original: dict[str, Tensor], benchmark: Benchmark, class_embeddings: np.ndarray, patch_size: int | None = None
) -> tuple[PatchPixelCNNConfig, dict[str, Tensor]]:
    """A PixelCNN of CaGNetv2, whose file knows neither classes nor patches -> configuration and weights of ours.

    The released network was conditioned on the whole patch (`condition="patch"`): it scores, it cannot be sampled.

    Args:
        original: The state dict, or the checkpoint around it.
        benchmark: Names the classes; those of the network come in the order of the original's checkpoints.
        class_embeddings: Those the network was trained with, `(N, E)` in model order.
        patch_size: Side of a patch: 3, 5 or 7; by default 3 when the kernels are 7x7.

    Raises:
        ValueError: As `convert_pixelcnn_state_dict`; classes or embeddings do not fit; or the kernels do not tell
            the size of a patch.
    """
    sizes, weights = convert_pixelcnn_state_dict(original)
    classes = _in_original_order(benchmark)
    if sizes["num_classes"] != len(classes.class_ids):
        raise ValueError(
            f"{sizes['num_classes']} classes do not fit benchmark {benchmark.name} with {len(classes.class_ids)}"
        )
    if sizes["embedding_size"] != class_embeddings.shape[1]:
        raise ValueError(
            f"class embeddings of {class_embeddings.shape[1]} numbers do not fit a PixelCNN over embeddings of "
            f"{sizes['embedding_size']}"
        )
    if patch_size is None:
        if sizes["kernel_size"] != 7:
            raise ValueError(
                f"kernels of side {sizes['kernel_size']} do not tell the size of a patch: give patch_size, 3, 5 or 7"
            )
        patch_size = 3
    rows = [benchmark.class_ids.index(stored_id) for stored_id in classes.class_ids]
    weights["class_embeddings"] = torch.from_numpy(class_embeddings[rows])
    fields = classes.config_fields()
    config = PatchPixelCNNConfig(
        **sizes,
        patch_size=patch_size,
        condition="patch",
        id2label=fields["id2label"],
        unseen_ids=fields["unseen_ids"],
    )
    return config, weights


def convert_pixelcnn_state_dict(original: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """A PixelCNN over category patches (CaGNetv2) -> its sizes and weights.

    The patch size is not among the sizes: no tensor depends on it.

    Args:
        original: The state dict, or the checkpoint around it.

    Returns:
        `num_classes`, `embedding_size`, `hidden_size`, `num_layers` and `kernel_size` of `PatchPixelCNNConfig`; and
        the weights of `PatchPixelCNN` (kernels zero where masked), all but `class_embeddings`.

    Raises:
        ValueError: The file holds no such network, or a mask that lets a pixel see itself or later ones.
    """
    weights, _ = _renamed(original, "PixelCNN")
    sizes = {
        "num_classes": _size(weights, "head.weight"),
        "embedding_size": _size(weights, "layers.0.convolution.weight", 1),
        "hidden_size": _size(weights, "layers.0.convolution.weight"),
        "num_layers": sum(name.endswith(".convolution.weight") for name in weights),
        "kernel_size": _size(weights, "layers.0.convolution.weight", 2),
    }
    weights = _fitted(weights, _original_pixelcnn_state_dict(PatchPixelCNNConfig(**sizes)))
    for layer in range(sizes["num_layers"]):
        name = f"layers.{layer}.convolution"
        mask = weights.pop(f"{name}.mask")
        if not torch.equal(mask, _causal_mask(mask.shape, sees_itself=layer > 0).to(mask.dtype)):
            raise ValueError(f"conv{layer + 1}.0.mask is not the causal mask of a PixelCNN")
        weights[f"{name}.weight"] = weights[f"{name}.weight"] * mask
        name = f"layers.{layer}.condition.weight"
        weights[name] = weights[name].t().contiguous()  # (hidden size, E)
    return sizes, weights


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


def _size(weights: dict[str, Tensor], name: str, dim: int = 0) -> int:
    shape = _tensor(weights, name).shape
    if len(shape) <= dim:
        raise ValueError(f"{name} has the shape {tuple(shape)}: it is of another architecture")
    return shape[dim]


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


def _in_original_order(benchmark: Benchmark) -> Benchmark:
    """The benchmark with its seen classes by stored id, but for those the original tuned on, which come last.

    On COCO-Stuff that is not the order of `load_benchmark`.
    """
    tuning = benchmark.seen_ids_for_tuning
    return replace(benchmark, seen_ids=tuple(i for i in benchmark.seen_ids if i not in tuning) + tuning)


def _original_classes(num_seen: int, num_classes: int) -> Benchmark:
    """The classes of an original checkpoint, in its order: the benchmark with these numbers, else numbered ones."""
    for benchmark in map(load_benchmark, _PUBLISHED):
        if (len(benchmark.seen_ids), len(benchmark.class_ids)) == (num_seen, num_classes):
            return _in_original_order(benchmark)
    return Benchmark(
        name="unknown",
        label_names=tuple(f"class {i}" for i in range(num_classes)),
        seen_ids=tuple(range(num_seen)),
        unseen_ids=tuple(range(num_seen, num_classes)),
    )


def _original_pixelcnn_state_dict(config: PatchPixelCNNConfig) -> dict[str, Tensor]:
    """Names and shapes of an original PixelCNN: a mask beside each kernel, the condition's weights `(E, C)`."""
    expected = _state_dict_of(PatchPixelCNN, config, ("layers.", "head."))
    for layer in range(config.num_layers):
        kernel, condition = f"layers.{layer}.convolution", f"layers.{layer}.condition.weight"
        expected[f"{kernel}.mask"] = expected[f"{kernel}.weight"]
        expected[condition] = expected[condition].t()
    return expected


def _causal_mask(shape, sees_itself: bool) -> Tensor:
    """Which taps of a kernel come before its centre in raster order."""
    height, width = shape[-2:]
    taps = torch.arange(height * width).view(height, width)
    centre = taps[height // 2, width // 2]
    return (taps <= centre if sees_itself else taps < centre).expand(shape)


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
