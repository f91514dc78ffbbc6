"""A training set held in memory: decoded once, as bytes on the device that trains."""

import torch
from tqdm.auto import tqdm

from .stream import LabelledImages
from .threads import map_in_order


def hold(images: LabelledImages, device: torch.device | str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every image `(3, H, W)` and its labels `(H, W)`, uint8, on `device`: 4 bytes a pixel.

    Raises:
        ValueError: They do not fit, or one is broken.
    """
    held = []
    decoded = map_in_order(images.__getitem__, range(len(images)))
    for pair in tqdm(decoded, total=len(images), desc=f"decoding to {device}", unit="image"):
        try:
            held.append(tuple(values.to(device) for values in pair))
        except torch.cuda.OutOfMemoryError:
            raise ValueError(
                f"in_memory: {device} is full after {len(held)} of {len(images)} images; leave it out"
            ) from None
    return held
