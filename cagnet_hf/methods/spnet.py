"""SPNet: features projected onto the fixed class embeddings; SPNet-c: with a calibration at test time."""

import torch

from . import register
from .base import Method


@register
class SPNet(Method):
    """logits = features · Wᵀ with the normalised class embeddings W, which nothing trains (SPNet, section 3.2)."""

    titles = {"spnet": "SPNet", "spnet_c": "SPNet-c"}
    paper = "Xian et al., Semantic Projection Network for Zero- and Few-Label Semantic Segmentation, CVPR 2019"
    parts = {"classifier": "projection", "generator": None}

    def trained_columns(self, logits: torch.Tensor) -> torch.Tensor:
        """The seen columns alone, unless some pixel may have the label of an unseen class."""
        if self.recipe.supervised or self.stage.pseudo_labels is not None:
            return logits
        return logits[:, : len(self.model.config.seen_ids)]
