"""Segment images with a trained model."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig

from .image_processing_cagnet import CaGNetImageProcessor
from .modeling_cagnet import CaGNetForSemanticSegmentation


def load_model(model_path: str):
    """(model in evaluation mode, image processor) from a folder or Hub id; this package's own code runs it."""
    _check_folder(Path(model_path))
    config = AutoConfig.from_pretrained(model_path)
    if config.model_type != "cagnet":
        raise ValueError(f"{model_path} is a {config.model_type!r} model, not a CaGNet one")
    try:
        model, report = CaGNetForSemanticSegmentation.from_pretrained(
            model_path, config=config, use_safetensors=True, output_loading_info=True
        )
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{model_path}: its weights do not fit its config.json or are damaged ({error})") from None
    if report["missing_keys"]:
        raise ValueError(f"{model_path}: its weights lack {', '.join(sorted(report['missing_keys'])[:3])}")
    processor = CaGNetImageProcessor.from_pretrained(model_path)
    return model.eval().to(memory_format=torch.channels_last), processor


def _check_folder(path: Path) -> None:
    """Refuse what is meant as a folder and holds no model; a Hub id is `name` or `owner/name`."""
    if path.is_dir() and not (path / "config.json").is_file():
        inside = path / "model"
        hint = f"; did you mean {inside}?" if (inside / "config.json").is_file() else ""
        raise ValueError(f"{path}: no model in this folder (config.json){hint}")
    if not path.is_dir() and (path.is_absolute() or len(path.parts) > 2):
        raise ValueError(f"{path}: no such model folder")


@torch.inference_mode()
def predict(model, processor, image: Image.Image) -> np.ndarray:
    """Label map of one image at its own size: `(H, W)` uint8, model order."""
    inputs = processor(images=image, return_tensors="pt").to(model.device)
    size = (image.height, image.width)
    return processor.post_process_semantic_segmentation(model(**inputs), [size])[0].cpu().numpy().astype(np.uint8)
