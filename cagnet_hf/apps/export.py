"""The segmenter as a graph that needs none of this package's code: `torch.export` and ONNX.

Batch, height and width of the graphs are free. They hold what segments an image; the generator, the critic and the
variance of the latent, which only training needs, stay behind.
"""

import copy
import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..files import made_by, whole
from ..model.image_processing_cagnet import CaGNetImageProcessor
from ..model.modeling_cagnet import CaGNetForSemanticSegmentation

MARK = made_by("export_onnx")
EXAMPLE_SIZE = (2, 3, 64, 80)  # what is traced: no two sides alike, none 1, else they would be taken for constants
CHECKED_SIZES = ((1, 3, 97, 64), (2, 3, 33, 129))
TOLERANCE = 1e-3  # of the largest logit; float32 sums in another order differ by about 1e-6


class InferenceNetwork(nn.Module):
    """`pixel_values` `(B, 3, H, W)` -> logits `(B, N, h, w)` in float32, by the parts of a model that this needs."""

    def __init__(self, model: CaGNetForSemanticSegmentation):
        super().__init__()
        segmenter = copy.deepcopy(model).eval().float().to(memory_format=torch.contiguous_format)
        segmenter.generator = None
        if segmenter.cagnet.context is not None:
            segmenter.cagnet.context.log_variance = None
        if hasattr(segmenter.classifier, "critic_head"):
            segmenter.classifier.critic_head = None
        if segmenter.classifier.learns:
            segmenter.class_embeddings = None
        self.segmenter = segmenter.requires_grad_(False)
        self.eval()

    def forward(self, pixel_values):
        return self.segmenter(pixel_values).logits


def export_program(model: CaGNetForSemanticSegmentation) -> torch.export.ExportedProgram:
    """The graph of `torch.export`, `pixel_values` -> logits, for `torch.export.save` or AOTInductor.

    `program.module()(pixel_values)` runs it. Images must be a few pixels large at least: torch.export takes sides of
    1 for a case of its own. With PyTorch 2.5 and 2.11 the program of a ResNet takes only sides whose half, rounded up,
    is even, such as 512 but not 513; with 2.13 any.
    """
    free = torch.export.Dim.DYNAMIC
    shapes = {"pixel_values": {0: free, 2: free, 3: free}}
    network = InferenceNetwork(model).to(model.device)
    return torch.export.export(network, (torch.zeros(EXAMPLE_SIZE, device=model.device),), dynamic_shapes=shapes)


def export_onnx(model: CaGNetForSemanticSegmentation, processor: CaGNetImageProcessor, path: str | Path) -> float:
    """Write the segmenter as an ONNX file, `pixel_values` -> `logits`, and run it with onnxruntime beside PyTorch.

    The file carries `graph_metadata`; onnxruntime gives it as `session.get_modelmeta().custom_metadata_map`.

    Returns:
        The largest difference between the two, as a share of the largest logit, at sizes that were not traced.

    Raises:
        ValueError: onnx, onnxscript or onnxruntime is not installed.
        RuntimeError: The two differ; nothing is written.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    path = Path(path)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # else it tells that torchvision is missing
    network = InferenceNetwork(model).cpu()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # PyTorch about itself
        program = torch.onnx.export(
            network,
            (torch.zeros(EXAMPLE_SIZE),),
            dynamo=True,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes={"pixel_values": {0: "batch", 2: "height", 3: "width"}},
            verbose=False,
        )
    program.model.metadata_props.update(graph_metadata(model.config, processor))
    with whole(path) as aside:
        program.save(aside)
        difference = _difference(network, aside)
        if difference > TOLERANCE:
            raise RuntimeError(f"{path}: the graph differs from the model by {difference:.1e} of its largest logit")
    return difference


def graph_metadata(config, processor: CaGNetImageProcessor) -> dict[str, str]:
    """What a program must know to prepare images for a graph and to read its logits: keys and JSON values.

    An image is brought to `size` (bilinear, no antialiasing) in `channel_order`, multiplied by `scale`, less `mean`,
    divided by `std`. Logits are resized to the image (bilinear); with a `calibration` γ, γ is subtracted from the
    softmax of every seen class; the argmax indexes `class_names` and `dataset_ids`, the ids of stored masks. A pixel
    whose softmax at the argmax is below `min_score` is given to no class, id 255 of stored masks.
    """
    facts = {
        "channel_order": "BGR" if processor.do_flip_channel_order else "RGB",
        "size": {name: side for name, side in dict(processor.size).items() if side} if processor.do_resize else None,
        "scale": processor.rescale_factor if processor.do_rescale else 1,
        "mean": list(processor.image_mean) if processor.do_normalize else [0, 0, 0],
        "std": list(processor.image_std) if processor.do_normalize else [1, 1, 1],
        "class_names": [config.id2label[i] for i in range(config.num_labels)],
        "seen_ids": list(config.seen_ids),
        "unseen_ids": list(config.unseen_ids),
        "dataset_ids": list(config.dataset_ids),
        "ignored_dataset_ids": list(config.ignored_dataset_ids),
        "ignore_index": config.ignore_index,
        "calibration": config.calibration,
        "min_score": config.min_score,
    }
    facts["made_by"] = MARK
    return {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}


@torch.inference_mode()
def _difference(network: nn.Module, path: Path) -> float:
    """The largest difference of the file's logits from the network's, as a share of the largest logit."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    for size in CHECKED_SIZES:
        pixel_values = torch.randn(size, generator=torch.Generator().manual_seed(0))
        expected = network(pixel_values).numpy()
        (logits,) = session.run(["logits"], {"pixel_values": pixel_values.numpy()})
        if logits.shape != expected.shape:
            raise RuntimeError(f"the graph gives logits of shape {logits.shape}, the model {expected.shape}")
        differences.append(np.abs(logits - expected).max() / np.abs(expected).max())
    return float(max(differences))


def _require(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ValueError(f"ONNX export needs {', '.join(missing)}: pip install 'cagnet-hf[onnx]'")
