"""Segment images with a trained model."""

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation


def load_model(model_path: str):
    """(model in evaluation mode, image processor) from a folder or Hub id; this package's own code runs it."""
    try:
        model = AutoModelForSemanticSegmentation.from_pretrained(model_path)
        processor = AutoImageProcessor.from_pretrained(model_path)
    except KeyError as error:
        raise ValueError(f"{model_path} is no CaGNet model: unknown model type {error}") from None
    if model.config.model_type != "cagnet":
        raise ValueError(f"{model_path} is a {model.config.model_type!r} model, not a CaGNet one")
    return model.eval().to(memory_format=torch.channels_last), processor


@torch.inference_mode()
def predict(model, processor, image: Image.Image) -> np.ndarray:
    """Label map of one image at its own size: `(H, W)` uint8, model order."""
    inputs = processor(images=image, return_tensors="pt").to(model.device)
    size = (image.height, image.width)
    return processor.post_process_semantic_segmentation(model(**inputs), [size])[0].cpu().numpy().astype(np.uint8)
