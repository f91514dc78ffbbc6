"""One rule for every entrance: what a decoded picture becomes before anything else looks at it."""

import numpy as np
import torch
from PIL import Image, ImageOps

GROUND = (255, 255, 255)  # what transparent pixels show: white, as transformers' processors have it


def rgb_image(image) -> Image.Image:
    """A picture as a person sees it: turned as its EXIF data say, on a white ground, 8 bits a channel, RGB.

    Args:
        image: A PIL image, or an array or a tensor `(H, W)` or `(H, W, C)` with values as `eight_bit_values` has them.
    """
    if not isinstance(image, Image.Image):
        values = eight_bit_values(np.asarray(image))
        image = Image.fromarray(np.round(values).astype(np.uint8))
    image = eight_bit(ImageOps.exif_transpose(image))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, GROUND)
        return Image.alpha_composite(ground, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def eight_bit(image):
    """A PIL image of more than 8 bits a value with its values scaled to 8 bits; Pillow would cut them off at 255.

    Any other image, of whatever kind, is given back as it is.
    """
    mode = getattr(image, "mode", "")
    if mode not in ("I", "F") and not mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if mode == "I" and values.max() > 255:  # what Pillow makes of 16-bit grey in some files
        values = values.clip(0, 65535).astype(np.uint16)
    return Image.fromarray(np.round(eight_bit_values(values)).astype(np.uint8))


def eight_bit_values(values: np.ndarray) -> np.ndarray:
    """Values of pixels on the scale of bytes, 0 to 255: those of uint8 as they are.

    uint16 is scaled from 65535, bool and floating-point numbers from 0 to 1 are scaled from 1. Floating-point numbers
    beyond 1 and other integers are taken to be on the scale of bytes.

    Raises:
        ValueError: A value is below 0, above 255 or not finite.
    """
    if values.dtype == np.uint8 or not values.size:
        return values
    if values.dtype == np.uint16:
        return np.round(values / 257).astype(np.uint8)
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255):  # NaN is neither
        raise ValueError(f"an image of {values.dtype} with values from {low} to {high}: give 0 to 255, or 0.0 to 1.0")
    return values * 255 if values.dtype.kind == "f" and high <= 1 else values


def image_tensor(image) -> torch.Tensor:
    """A PIL image or an array `(H, W, 3)` -> a uint8 tensor `(3, H, W)`; a tensor stays as it is."""
    if isinstance(image, torch.Tensor):
        return image
    return torch.from_numpy(np.array(rgb_image(image))).permute(2, 0, 1)
