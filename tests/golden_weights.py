"""The paper's network with the golden set's weights, which are functions of the ORIGINAL state-dict keys."""

import json
import re
from pathlib import Path

import numpy as np
import torch
from golden import recipe
from torch import nn

from cagnet_hf import CaGNetConfig, CaGNetForSemanticSegmentation
from cagnet_hf.model.parts_cagnet import PixelClassifier
from cagnet_hf.weights.conversion import match_keys

GOLDEN = Path(__file__).parent / "golden"
SMALL, FULL = (1, 1, 2, 1), (3, 4, 23, 3)  # depths behind the golden tags s* and f*


def our_key(original: str) -> str:
    """Our name of an original tensor, as listed in `keys.json`."""
    return match_keys([original]).matched[original]


def original_shapes(variant: str = "cagnet_voc12", depths=FULL) -> dict[str, list[int]]:
    """Shape of every tensor of an original checkpoint."""
    variants = json.loads((GOLDEN / "keys.json").read_text())
    shapes = variants[variant]
    if "same_as" in shapes:
        shapes = variants[shapes["same_as"]] | shapes["changed"]
    block = re.compile(r".*layer(\d)\.block(\d+)\.")
    return {
        key: shape
        for key, shape in shapes.items()
        if (match := block.match(key)) is None or int(match[2]) <= depths[int(match[1]) - 2]
    }


def golden_shapes() -> dict[str, list[int]]:
    """Shape of every original tensor of the VOC network, the two embedding tables apart."""
    return {key: shape for key, shape in original_shapes().items() if not key.startswith("Em_")}


def golden_network(depths=SMALL) -> CaGNetForSemanticSegmentation:
    """The reference's network: 15 seen classes, 5 unseen ones and its 21st output."""
    return CaGNetForSemanticSegmentation(CaGNetConfig(depths=depths, id2label={i: f"class {i}" for i in range(21)}))


def golden_model(depths=SMALL) -> CaGNetForSemanticSegmentation:
    """The reference's network with its weights, in evaluation mode."""
    with torch.device("meta"):
        model = golden_network(depths)
    return _load(model, class_embeddings=_class_embeddings())


def golden_classifier() -> PixelClassifier:
    """The reference's classifier and critic with their weights, in evaluation mode."""
    with torch.device("meta"):
        classifier = PixelClassifier(CaGNetConfig(id2label={i: f"class {i}" for i in range(21)}))
    return _load(classifier, prefix="classifier.")


def _class_embeddings() -> torch.Tensor:
    """`(21, 600)`: the reference's 20 classes, and zeros for the output that no label ever has."""
    embeddings = recipe.embedding_tables(15, 20)[1]
    return torch.from_numpy(np.concatenate([embeddings, np.zeros_like(embeddings[:1])]))


def _load(module: nn.Module, prefix: str = "", **weights) -> nn.Module:
    original = {our_key(key): key for key in golden_shapes()}
    for name, tensor in module.state_dict().items():
        if name not in weights:
            weights[name] = torch.from_numpy(recipe.fill(original[prefix + name], tensor.shape))
    module.load_state_dict(weights, strict=True, assign=True)
    return module.eval()


# The patch-wise network and SPNet


def golden_patch_model(model: CaGNetForSemanticSegmentation) -> CaGNetForSemanticSegmentation:
    """`model` with the class head that looks at neighbours; all other tensors are those of `model`."""
    config = CaGNetConfig(**model.config.to_dict() | {"patch_size": 3})
    with torch.device("meta"):
        patch_model = CaGNetForSemanticSegmentation(config)
    neighbours = {}
    for name, tensor in patch_model.classifier.neighbours.named_parameters():
        weights = torch.from_numpy(recipe.fill(f"dis.cls_3.{name}", tensor.shape))
        neighbours[f"classifier.neighbours.{name}"] = weights.to(model.dtype)
    patch_model.load_state_dict(model.state_dict() | neighbours, strict=True, assign=True)
    return patch_model.eval()


def our_patch_key(original: str) -> str:
    """`our_key` of the patch-wise network."""
    head = "dis.cls_3."
    return original.replace(head, "classifier.neighbours.") if original.startswith(head) else our_key(original)


def golden_spnet() -> CaGNetForSemanticSegmentation:
    """SPNet on the small backbone: the classes' embeddings on the ASPP map; its original keys start with `scale`."""
    names = {i: f"class {i}" for i in range(20)}
    config = CaGNetConfig(
        depths=SMALL,
        contextual=False,
        classifier="projection",
        generator=None,
        id2label=names,
        unseen_ids=[*range(15, 20)],
    )
    with torch.device("meta"):
        model = CaGNetForSemanticSegmentation(config)
    original = {our_key(key): key.removeprefix("back.") for key in golden_shapes()}
    weights = {
        name: torch.from_numpy(recipe.fill(original[name], tensor.shape))
        for name, tensor in model.cagnet.state_dict(prefix="cagnet.").items()
    }
    weights["class_embeddings"] = torch.from_numpy(recipe.embedding_tables(15, 20)[1])
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


# The PixelCNNs


# Side of a patch, side of a kernel, layers.
PIXELCNNS = {
    "newnew": (3, 7, 8),
    "newnew2": (3, 3, 3),
    "newnew3": (3, 3, 5),
    "newnew_5": (5, 3, 4),
    "newnew_7": (7, 3, 4),
}


def golden_patches(tag: str) -> torch.Tensor:
    """Six patches `(6, k, k)` of 20 classes."""
    side = PIXELCNNS[tag][0]
    return torch.from_numpy(recipe.integers(f"pix:label:{side}", (6, side, side), 20))
