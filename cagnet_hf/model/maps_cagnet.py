"""Maps of pixels: resizing, joining scales, picking pixels, and the masked loss over them.

Shapes: B batch, C channels, H x W image, h x w feature map, N classes, P pixels.
"""

import torch
import torch.nn.functional as F


def resize_image(image: torch.Tensor, size: tuple[int, int], scale: float | None = None, until=None) -> torch.Tensor:
    """Bilinear without antialiasing (as OpenCV and the published pipeline): `(C, H, W)` -> float32 `(C, *size)`.

    Args:
        scale: The exact zoom that `size` was rounded from, where it is not their ratio; pixel positions follow it.
        until: With a scale: how many rows and columns of the result are wanted, `(rows, columns)`; all when None.
    """
    image = image.to(torch.float32, memory_format=torch.contiguous_format)
    if until is not None and scale is None:
        raise ValueError("until: a part of an image needs a scale")
    rows, columns = until or size
    if image.shape[1:] == tuple(size):
        return image[:, :rows, :columns]
    # PyTorch copies a side that stays as long as it was, whatever the scale: it must do so for the whole size alone.
    wanted = [
        full if full == old else some + (some == old)
        for some, full, old in zip((rows, columns), size, image.shape[1:], strict=True)
    ]
    return torch.ops.aten.upsample_bilinear2d(image[None], wanted, False, scale, scale)[0, :, :rows, :columns]


def resize_labels(labels, size: tuple[int, int], scale: float | None = None, until=None):
    """Nearest by source index floor(i * in / out), or floor(i / scale): `(..., H, W)` -> `(..., *size)`.

    Args:
        labels: An array or a tensor.
        scale: The exact zoom that `size` was rounded from, where it is not their ratio.
        until: How many rows and columns of the result are wanted, `(rows, columns)`; all when None.
    """
    if scale is None and tuple(labels.shape[-2:]) == tuple(size):
        return labels if until is None else labels[..., : until[0], : until[1]]
    device = labels.device if isinstance(labels, torch.Tensor) else "cpu"
    rows, columns = (
        torch.arange(wanted, device=device) * old // new
        if scale is None
        else (torch.arange(wanted, device=device, dtype=torch.float64) / scale).long().clamp(max=old - 1)
        for wanted, new, old in zip(until or size, size, labels.shape[-2:], strict=True)
    )
    if not isinstance(labels, torch.Tensor):
        rows, columns = rows.numpy(), columns.numpy()
    return labels[..., rows[:, None], columns]


def centre_labels(labels, size: tuple[int, int]):
    """The labels at the centres of the cells of a coarser map: `(..., H, W)` -> `(..., *size)`."""
    rows, columns = (
        torch.arange(new, device=labels.device).mul(2).add(1).mul(old).div(2 * new, rounding_mode="floor")
        for new, old in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[..., rows[:, None], columns]


def scale_maximum(maps: list[torch.Tensor]) -> torch.Tensor:
    """Pixel-wise maximum of maps `(B, C, h, w)` of several sizes, each brought to the size of the first (bilinear)."""
    size = maps[0].shape[-2:]
    upsampled = [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps[1:]]
    return torch.stack([maps[0], *upsampled]).amax(dim=0)


def with_image_prior(logits: torch.Tensor, weight: float) -> torch.Tensor:
    """Logits `(B, N, h, w)` plus `weight` times the log of the mean probability of each class over the image."""
    shares = logits.softmax(1, dtype=torch.float32).mean((2, 3), keepdim=True)
    return logits + (weight * shares.clamp_min(1e-6).log()).to(logits.dtype)


def to_pixel_list(maps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The pixels of `(B, C, h, w)` where the mask `(B, h, w)` holds, as a map of one row: `(1, C, 1, P)`."""
    return maps.permute(0, 2, 3, 1)[mask].t()[None, :, None]


def mean_cross_entropy(logits, labels, *, ignore_index: int, class_weights=None):
    """Mean cross-entropy `()` of labelled pixels, 0 where there is none: logits `(B, N, h, w)`, labels `(B, h, w)`.

    With `class_weights` `(N,)` the weighted mean. Pixels are summed up after their losses: on a GPU, PyTorch's own sum
    over maps adds in any order, and refuses to where algorithms must be deterministic.
    """
    labelled = labels != ignore_index
    losses = F.cross_entropy(logits, labels, class_weights, ignore_index=ignore_index, reduction="none")
    if class_weights is None:
        return losses.sum() / labelled.sum().clamp_min(1)
    total_weight = (class_weights[labels.where(labelled, 0)] * labelled).sum()
    return losses.sum() / total_weight.clamp_min(torch.finfo(total_weight.dtype).tiny)


def checked_labels(labels, images, num_labels: int, ignore_index: int) -> torch.Tensor:
    """Labels of any integer type as int64 in which -100, PyTorch's own mark of pixels to ignore, is `ignore_index`.

    Args:
        labels: `(B, H, W)`.
        images: `(B, 3, H, W)`.

    Raises:
        ValueError: The labels are no integers, do not fit the images, or hold what is no class.
    """
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels of type {labels.dtype}: give class indices as integers")
    expected = (len(images), *images.shape[-2:])
    if tuple(labels.shape) != expected:
        raise ValueError(f"labels of shape {tuple(labels.shape)} for images that need {expected}")
    labels = labels.long()
    labels = labels.where(labels != -100, ignore_index)
    if not torch.compiler.is_compiling():  # a value cannot be looked at where a program is traced
        wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= num_labels))]
        if len(wrong):
            raise ValueError(
                f"label {wrong[0].item()} is no class: allowed are 0 to {num_labels - 1} and {ignore_index} (ignored)"
            )
    return labels
