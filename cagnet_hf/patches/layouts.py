"""Patches of categories: cut from label maps, filled, accepted, put together into synthetic label maps.

Shapes: B label maps of h x w pixels, M patches of k x k pixels; classes in model order.
Source: CaGNetv2 (arXiv 2009.12232).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

NO_CLASS = 255  # of a pixel without a label, in patches and the label maps they are cut from, which are bytes


class SamplingRules(NamedTuple):
    """How patches of one size are sampled and which are kept."""

    start: int  # raster positions that hold one unseen class
    min_unseen: int  # pixels of unseen classes
    max_classes: int


SAMPLING_RULES = {3: SamplingRules(5, 7, 3), 5: SamplingRules(13, 17, 8), 7: SamplingRules(25, 30, 12)}


def cut_patches(label_maps: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Non-overlapping blocks of label maps `(B, h, w)` -> `(M, k, k)`, wholly ignored ones dropped.

    What is left over at the lower and right edge is not used.

    Raises:
        ValueError: The maps are smaller than a patch.
    """
    height, width = (side // patch_size for side in label_maps.shape[1:])
    if not height or not width:
        raise ValueError(
            f"label maps of {label_maps.shape[1]} x {label_maps.shape[2]} pixels hold no patch of {patch_size} x "
            f"{patch_size}: choose a smaller patch_size or larger maps"
        )
    label_maps = label_maps[:, : height * patch_size, : width * patch_size]
    blocks = label_maps.unflatten(2, (width, patch_size)).unflatten(1, (height, patch_size)).transpose(2, 3)
    blocks = blocks.flatten(0, 2)
    return blocks[(blocks != NO_CLASS).flatten(1).any(dim=1)]


def collect_patches(
    label_maps: Iterable, patch_size: int, max_patches: int | None = None, *, ignore_index: int = NO_CLASS
) -> torch.Tensor:
    """The patches of label maps `(h, w)`, arrays or tensors of any size: `(M, k, k)` uint8.

    Stops reading when there are `max_patches`.

    Args:
        ignore_index: What pixels without a label hold in the label maps, beside `NO_CLASS`.

    Raises:
        ValueError: No label map has a labelled pixel.
    """
    found, total = [torch.empty((0, patch_size, patch_size), dtype=torch.uint8)], 0
    for label_map in label_maps:
        label_map = torch.as_tensor(label_map).long()
        label_map = label_map.where(label_map != ignore_index, NO_CLASS)
        found.append(cut_patches(label_map[None], patch_size).to(torch.uint8))
        total += len(found[-1])
        if max_patches is not None and total >= max_patches:
            break
    if not total:
        raise ValueError("the label maps have no labelled pixel: there is no patch to learn from")
    return torch.cat(found)[:max_patches]


def fill_ignored(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill ignored pixels from their neighbours, and say which pixels can still be learnt from.

    In turn every ignored pixel takes its lower, right, upper and left neighbour's class, the patch being a torus,
    until none is left. A pixel that was copied to an earlier raster position has been shown to whoever predicts it in
    raster order: it is given, like the first one, and taken out of the labels.

    Args:
        patches: `(M, k, k)`, `NO_CLASS` where ignored; not changed. A wholly ignored patch stays as it is.

    Returns:
        The filled patches and the labels, `(M, k, k)` each.
    """
    side = patches.shape[-1]
    positions = torch.arange(side * side, device=patches.device).view(side, side)
    source = torch.where(patches != NO_CLASS, positions, -1)  # where a pixel's class comes from
    for _ in range(side // 2):
        for shift, dim in ((-1, 1), (-1, 2), (1, 1), (1, 2)):
            source = torch.where(source < 0, source.roll(shift, dim), source)
    source = torch.where(source < 0, positions, source).flatten(1)
    earliest = torch.full_like(source, side * side).scatter_reduce_(
        1, source, positions.flatten().expand_as(source), "amin"
    )
    shown_early = (earliest < positions.flatten()).view_as(patches)
    filled = patches.flatten(1).gather(1, source).view_as(patches)
    return filled, torch.where(shown_early, NO_CLASS, patches)


def swap_in_unseen(
    filled: torch.Tensor, labels: torch.Tensor, unseen_ids: Sequence[int], share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """In a `share` of the patches, at random, one class gives its place to an unseen class drawn uniformly.

    The class is that of a pixel drawn uniformly. Without this an unseen class is never seen to follow itself, and a
    network that has learnt the training patches well all but never goes on with one.

    Args:
        filled, labels: `(M, k, k)` from `fill_ignored`; not changed.

    Returns:
        The two with unseen classes swapped in.
    """
    number, side, _ = filled.shape
    unseen = torch.as_tensor(list(unseen_ids), dtype=filled.dtype, device=filled.device)
    new = unseen[torch.randint(len(unseen), (number,), device=filled.device)]
    old = filled.flatten(1).gather(1, torch.randint(side * side, (number, 1), device=filled.device))[:, :, None]
    swapped = (filled == old) & (torch.rand(number, 1, 1, device=filled.device) < share)
    filled = torch.where(swapped, new[:, None, None], filled)
    return filled, torch.where(swapped & (labels != NO_CLASS), new[:, None, None], labels)


def accept_patches(patches: torch.Tensor, unseen_ids: Sequence[int]) -> torch.Tensor:
    """Which patches `(M, k, k)` hold enough unseen pixels and few enough classes: `(M,)` bool."""
    rules = SAMPLING_RULES[patches.shape[-1]]
    unseen = torch.isin(patches, torch.as_tensor(list(unseen_ids), dtype=patches.dtype, device=patches.device))
    ordered = patches.flatten(1).sort(dim=1).values
    num_classes = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1)
    return (unseen.flatten(1).sum(dim=1) >= rules.min_unseen) & (num_classes <= rules.max_classes)


def assemble_patches(patches: torch.Tensor) -> torch.Tensor:
    """Put patches `(B, n, m, k, k)` side by side: label maps `(B, nk, mk)`."""
    return patches.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def class_odds(num_classes: int, unseen_ids: Sequence[int], unseen_rate: float, device=None) -> torch.Tensor:
    """The prior of a synthetic pixel's class, unnormalised: 1 for seen and 1 + `unseen_rate` for unseen, `(N,)`."""
    odds = torch.ones(num_classes)
    odds[list(unseen_ids)] += unseen_rate
    return odds.to(device)


class PatchSource:
    """Synthetic label maps tiled with patches: sampled ones, and pure ones of a single class.

    Args:
        bank: `(M, k, k)` sampled patches; everything is drawn on its device.
        odds: `(N,)` how often a pure patch holds each class (see `class_odds`).
        pure_per_sampled: Pure patches for each sampled one.

    Raises:
        ValueError: The bank is empty.
    """

    def __init__(self, bank: torch.Tensor, odds: torch.Tensor, *, pure_per_sampled: float = 8.0):
        if not len(bank):
            raise ValueError("the bank holds no patch")
        self.bank = bank.long()
        self.odds = odds.to(bank.device)
        self.pure_per_sampled = pure_per_sampled

    def draw(self, map_shape: tuple[int, int, int], *, generator=None) -> torch.Tensor:
        """Label maps `(B, h, w)`.

        Raises:
            ValueError: h or w is no multiple of the patch size.
        """
        side, device = self.bank.shape[-1], self.bank.device
        batch, height, width = map_shape
        if height % side or width % side:
            fitting = " x ".join(str(max(1, round(pixels / side)) * side) for pixels in (height, width))
            raise ValueError(f"{height} x {width} pixels are no whole number of patches of {side}; {fitting} are")
        tiles = (batch, height // side, width // side)
        number = batch * tiles[1] * tiles[2]
        pure = torch.multinomial(self.odds, number, replacement=True, generator=generator)
        sampled = self.bank[torch.randint(len(self.bank), (number,), generator=generator, device=device)]
        is_sampled = torch.rand(number, generator=generator, device=device) * (1 + self.pure_per_sampled) < 1
        patches = torch.where(is_sampled[:, None, None], sampled, pure[:, None, None])
        return assemble_patches(patches.unflatten(0, tiles))
