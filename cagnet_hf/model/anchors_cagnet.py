"""The anchor of a trained generator: class means in closed form, which the generator adds its layers' output to.

A network that is fitted to twelve or fifteen classes says something arbitrary between them. Where a closed form knows
the mean feature of a class, the network is left with how features scatter around the mean.

Shapes: D feature size, E class-embedding size, N classes.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .contracts_cagnet import PartTable
from .gaussian_cagnet import GaussianGenerator
from .prototypes_cagnet import PrototypeGenerator

ANCHORS = PartTable("generator_anchor", {"ridge": GaussianGenerator, "prototypes": PrototypeGenerator, None: None})


class Anchor(nn.Module):
    """The mean feature of a class: that of its own pixels, or else what a closed form makes of the class vector.

    Buffers: `keys` `(N, E)`, the vectors of classes with pixels, of length 1; the vectors of the others are zero.
    """

    def __init__(self, config):
        super().__init__()
        self.closed_form = ANCHORS.build(config)
        self.register_buffer("keys", torch.zeros(config.num_labels, config.embedding_size))

    @staticmethod
    def check(config):
        if config.generator_anchor == "prototypes" and not config.known_classes:
            raise ValueError('generator_anchor="prototypes" needs known_classes, how many the image classifier knows')

    def start_weights(self):
        init.zeros_(self.keys)

    @torch.no_grad()
    def forward(self, embeddings):
        """Class vectors `(B, E, h, w)` -> mean features `(B, D, h, w)`."""
        directions = F.normalize(embeddings, dim=1)
        same = F.conv2d(directions, self.keys[:, :, None, None]) > 1 - 1e-4  # (B, N, h, w)
        own = F.conv2d(same.to(directions), self.closed_form.class_means.t()[:, :, None, None])
        own = own / same.sum(dim=1, keepdim=True).clamp_min(1)
        return torch.where(same.any(dim=1, keepdim=True), own, self.closed_form.mean(directions))

    def fit(self, embeddings, **options) -> None:
        """Find the closed form of what was observed; see the `fit_means` of the closed form.

        Args:
            embeddings: `(N, E)` of all classes.
        """
        self.closed_form.fit_means(embeddings, **options)
        observed = self.closed_form.class_counts > 0
        self.keys.copy_(F.normalize(embeddings, dim=1) * observed[:, None])

    def set_classes(self, kept: list[int], new: int) -> None:
        """Keep what is known of the given classes, and expect `new` more."""
        self.closed_form.set_classes(kept, new)
        rows = self.keys[kept]
        self.keys = torch.cat([rows, rows.new_zeros(new, rows.shape[1])])
