"""One rule for every entrance: what a decoded picture becomes before anything else looks at it."""

import numpy as np
import torch
from PIL import Image, ImageOps

GROUND = (255, 255, 255)  # what transparent pixels show: white, as transformers' processors have it


def rgb_image(image: Image.Image) -> Image.Image:
    """A picture as a person sees it: turned as its EXIF data say, on a white ground, 8 bits a channel, RGB."""
    image = eight_bit(ImageOps.exif_transpose(image))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, GROUND)
        return Image.alpha_composite(ground, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def eight_bit(image):
    """A PIL image of 16-bit grey values with its values scaled to 8 bits, where Pillow would cut them off at 255.

    Any other image, of whatever kind, is given back as it is.
    """
    if not getattr(image, "mode", "").startswith("I;16"):
        return image
    return Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))


def image_tensor(image) -> torch.Tensor:
    """A PIL image or an array `(H, W, 3)` -> a uint8 tensor `(3, H, W)`; a tensor stays as it is."""
    if isinstance(image, torch.Tensor):
        return image
    if isinstance(image, Image.Image):
        image = rgb_image(image)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
