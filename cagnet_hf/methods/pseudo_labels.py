"""Self-training: which ignored pixels get which unseen class, from the logits of the current model.

Sources: CaGNetv2 (arXiv 2009.12232) for the top-k rule; ZS3Net (Bucher et al., 2019), section 3.3, for the confident
share. Both leave labelled pixels and padding as they are and give back new label maps.
"""

from collections.abc import Sequence

import torch

from ..model.maps_cagnet import resize_labels
from ..model.new_classes_cagnet import evaluating
from .options import PseudoLabelRecipe


def network_inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a batch holds for the network: `pixel_values`, or `backbone_features` that were computed before."""
    return {name: batch[name] for name in ("pixel_values", "backbone_features") if name in batch}


@torch.no_grad()
def label_ignored_pixels(model, batch: dict[str, torch.Tensor], rule: PseudoLabelRecipe) -> torch.Tensor:
    """The batch's labels `(B, H, W)` with unseen classes where they were ignored and the model, as it is, sees them.

    Decided per cell of the feature map; padding stays ignored.
    """
    config, labels = model.config, batch["labels"]
    with evaluating(model):
        logits = model(**network_inputs(batch)).logits
    cells, padding = (resize_labels(batch[key], logits.shape[-2:]) for key in ("labels", "padding"))
    options = {"unseen_ids": config.unseen_ids, "ignore_index": config.ignore_index}
    if rule.rule == "top_k":
        cells = top_k_labels(logits, cells, padding, k=rule.top_k, **options)
    else:
        cells = confident_labels(logits, cells, padding, share=rule.share, **options)
    guesses = resize_labels(cells, labels.shape[-2:])
    torch.clear_autocast_cache()  # weights cast without gradients must not serve the step that follows
    unseen = (guesses >= len(config.seen_ids)) & (guesses != config.ignore_index)
    return torch.where((labels == config.ignore_index) & ~batch["padding"] & unseen, guesses, labels)


def top_k_labels(logits, labels, padding, unseen_ids: Sequence[int], k: int, ignore_index: int = 255):
    """Give each ignored pixel its highest-ranked unseen class, if that is among the pixel's top `k` classes.

    Args:
        logits: `(B, N, h, w)` scores of all classes.
        labels: `(B, h, w)` int64.
        padding: `(B, h, w)` bool, True where there is no image.
        unseen_ids: The classes that may be given.
        k: Ranks that count, 1 to N: at 1 the unseen class must be the argmax, at N every ignored pixel gets one.

    Returns:
        `(B, h, w)` labels; a pixel without such a class stays ignored.
    """
    _check(logits, labels, padding)
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k={k}: choose from 1 to the number of classes, {logits.shape[1]}")
    unseen = _on_device(unseen_ids, logits)
    score, index = logits.index_select(1, unseen).max(dim=1)  # (B, h, w)
    given = unseen[index]  # (B, h, w)
    # Of equal scores the lower class ranks higher, as in an argmax.
    earlier = torch.arange(logits.shape[1], device=logits.device)[:, None, None] < given[:, None]
    rank = ((logits > score[:, None]) | ((logits == score[:, None]) & earlier)).sum(dim=1)
    free = (labels == ignore_index) & ~padding
    return torch.where(free & (rank < k), given, labels)


def confident_labels(logits, labels, padding, unseen_ids: Sequence[int], share: float, ignore_index: int = 255):
    """Give the most confident ignored pixels whose argmax is an unseen class that class.

    Args:
        logits: `(B, N, h, w)` scores of all classes; confidence is the softmax probability of the argmax.
        labels: `(B, h, w)` int64.
        padding: `(B, h, w)` bool, True where there is no image.
        unseen_ids: The classes that may be given.
        share: Part of such pixels that is labelled in each image, 0 to 1; their number is rounded up, and of equally
            confident pixels the first in raster order come first.

    Returns:
        `(B, h, w)` labels; the other pixels stay ignored.
    """
    _check(logits, labels, padding)
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: choose from 0 to 1")
    probabilities = logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    confidence, guess = (values.flatten(1) for values in probabilities.max(dim=1))  # (B, h * w)
    free = ((labels == ignore_index) & ~padding).flatten(1)
    candidates = free & (guess[..., None] == _on_device(unseen_ids, logits)).any(dim=-1)
    order = confidence.where(candidates, -1.0).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    chosen = candidates & (rank < share * candidates.sum(dim=1, keepdim=True))
    return torch.where(chosen, guess, labels.flatten(1)).view_as(labels)


def _check(logits, labels, padding) -> None:
    expected = (len(logits), *logits.shape[2:])
    for name, values in (("labels", labels), ("padding", padding)):
        if values.shape != expected:
            raise ValueError(f"{name} of shape {tuple(values.shape)} for logits of shape {tuple(logits.shape)}")


def _on_device(class_ids: Sequence[int], logits) -> torch.Tensor:
    return torch.as_tensor(class_ids).to(logits.device, non_blocking=True)  # a blocking copy would wait for the GPU
