"""The parts on top of a backbone: spatial pyramids, contextual module, classifiers, generators.

`PYRAMIDS`, `CLASSIFIERS` and `GENERATORS` hold the exchangeable ones by name.

Shapes: B batch, h x w feature map, C channels, D feature size, E class-embedding size, N classes.
Sources: CaGNet (arXiv 2008.06893), CaGNetv2 (arXiv 2009.12232), ZS3Net (arXiv 1906.00817).
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .anchors_cagnet import Anchor
from .contracts_cagnet import Classifier, FeatureGenerator, PartTable
from .gaussian_cagnet import GaussianGenerator
from .prototypes_cagnet import NamesClassifier, PrototypeGenerator


class AtrousConvolution(nn.Conv2d):
    """A dilated 3x3 convolution that starts near zero: N(0, 0.01)."""

    def start_weights(self):
        init.normal_(self.weight, std=0.01)
        init.zeros_(self.bias)


class XavierConvolution(nn.Conv2d):
    """A convolution that starts Xavier-uniform with biases of 0.01, as the generator of ZS3Net does."""

    def start_weights(self):
        init.xavier_uniform_(self.weight)
        init.constant_(self.bias, 0.01)


class AtrousSpatialPyramid(nn.Module):
    """Sum of parallel dilated 3x3 convolutions (DeepLabV2's ASPP): `(B, C, h, w)` -> `(B, D, h, w)`."""

    def __init__(self, config, in_channels):
        super().__init__()
        self.branches = nn.ModuleList(
            AtrousConvolution(in_channels, config.feature_size, 3, padding=dilation, dilation=dilation)
            for dilation in config.aspp_dilations
        )

    def forward(self, hidden):
        return sum(branch(hidden) for branch in self.branches)


class DepthwiseSpatialPyramid(nn.Module):
    """A light ASPP for small backbones: dilated depthwise 3x3 convolutions beside the map itself, then one 1x1."""

    def __init__(self, config, in_channels):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels)
            for dilation in config.aspp_dilations
        )
        self.project = nn.Conv2d(in_channels, config.feature_size, 1)

    def forward(self, hidden):
        return self.project(hidden + sum(F.relu(branch(hidden)) for branch in self.branches))


class PooledPyramid(nn.Module):
    """The map beside its mean over the image, by 1x1 convolutions: `(B, C, h, w)` -> `(B, D, h, w)`.

    The mean says what the image is of, which is most of what dilated convolutions tell about it, at a quarter of their
    cost.
    """

    def __init__(self, config, in_channels):
        super().__init__()
        self.project = nn.Conv2d(in_channels, config.feature_size, 1)
        self.surroundings = nn.Conv2d(in_channels, config.feature_size, 1, bias=False)

    def forward(self, hidden):
        return self.project(hidden) + self.surroundings(hidden.mean(dim=(2, 3), keepdim=True))


class NoPyramid(nn.Module):
    """None: the features are the backbone's own map, `(B, D, h, w)`."""

    def __init__(self, config, in_channels):
        super().__init__()
        if config.feature_size != in_channels:
            raise ValueError(
                f'aspp="none" leaves the {in_channels} channels of the backbone: set feature_size={in_channels}, '
                f"not {config.feature_size}"
            )

    def forward(self, hidden):
        return hidden


class ContextualModule(nn.Module):
    """Describes each pixel's surroundings by a Gaussian latent (CaGNet, section 3.2; no convolution has a bias).

    Three chained dilated convolutions see three context scales; a selector weighs them per pixel.
    """

    @staticmethod
    def check(config):
        if len(config.context_dilations) != 3:
            raise ValueError(f"context_dilations needs three values, got {list(config.context_dilations)}")
        if config.context_variance not in ("released", "free"):
            raise ValueError(f"context_variance={config.context_variance!r}: choose one of 'released', 'free'")

    def __init__(self, config):
        super().__init__()
        size, hidden = config.feature_size, config.context_hidden_size
        self.scales = nn.ModuleList(
            nn.Conv2d(size if i == 0 else hidden, hidden, 3, padding=dilation, dilation=dilation, bias=False)
            for i, dilation in enumerate(config.context_dilations)
        )
        self.selector = nn.Conv2d(3 * hidden, 3, 3, padding=1, bias=False)
        self.merge = nn.Conv2d(3 * hidden, size, 1, bias=False)
        self.mean = nn.Conv2d(size, size, 3, padding=1, bias=False)
        self.log_variance = nn.Conv2d(size, size, 3, padding=1, bias=False)
        self.free_variance = config.context_variance == "free"

    def log_variance_of(self, merged):
        """Log variance of the latent, from what the mean is made of: as released never below that of the prior."""
        log_variance = self.log_variance(merged)
        return log_variance if self.free_variance else F.relu(log_variance)

    def forward(self, hidden, latent_noise=None):
        """`(B, D, h, w)` ASPP map -> (latent, mean, log variance), each `(B, D, h, w)`."""
        context, scales = torch.sigmoid(hidden), []
        for convolution in self.scales:
            context = F.relu(convolution(context))
            scales.append(context)
        weights = torch.sigmoid(F.relu(self.selector(torch.cat(scales, dim=1))))  # (B, 3, h, w)
        weighted = [scale * weight for scale, weight in zip(scales, weights.split(1, dim=1), strict=True)]
        merged = F.relu(self.merge(torch.cat(weighted, dim=1)))
        mean = self.mean(merged)
        if not self.training:  # the variance is only ever used to sample and to regularise
            return mean, mean, None
        log_variance = self.log_variance_of(merged)
        if latent_noise is None:
            latent_noise = torch.randn_like(mean)
        return mean + latent_noise * torch.exp(0.5 * log_variance), mean, log_variance


class _GeneratorOfLayers(FeatureGenerator):
    """1x1 convolutions on the class embedding beside a latent, with LeakyReLU and dropout between them.

    With an anchor the layers hear the latent alone, and their output is added to the anchor's mean of the class.
    """

    convolution = nn.Conv2d

    @staticmethod
    def check(config):
        if len(config.generator_hidden_sizes) != len(config.generator_dropout):
            raise ValueError("generator_hidden_sizes and generator_dropout must have equal length")
        Anchor.check(config)

    def __init__(self, config, latent_size):
        super().__init__()
        self.anchor = None if config.generator_anchor is None else Anchor(config)
        heard = latent_size + (config.embedding_size if self.anchor is None else 0)
        sizes = [heard, *config.generator_hidden_sizes]
        layers = []
        for size, next_size, dropout in zip(sizes, sizes[1:], config.generator_dropout, strict=False):
            layers += [self.convolution(size, next_size, 1), nn.LeakyReLU(0.2), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, self.convolution(sizes[-1], config.feature_size, 1))
        self.embedding_scale = config.generator_embedding_scale
        self.latent_size = latent_size

    def forward(self, embeddings, latent):
        if self.anchor is not None:
            return self.to_layers(self.anchor(embeddings)) + self.layers(latent)
        return self.layers(torch.cat([embeddings * self.embedding_scale, latent], dim=1))

    @staticmethod
    def to_layers(means):
        """Mean features as the layers would have to put them out."""
        return means

    def set_classes(self, kept, new):
        if self.anchor is not None:
            self.anchor.set_classes(kept, new)


class ContextualGenerator(_GeneratorOfLayers):
    """Class embedding and contextual latent of D channels -> pixel feature in (0, 1) (CaGNet, section 3.3)."""

    @staticmethod
    def check(config):
        if not config.contextual:
            raise ValueError('generator="contextual" needs the contextual latent: set contextual=True')
        _GeneratorOfLayers.check(config)

    def __init__(self, config):
        super().__init__(config, config.feature_size)

    def forward(self, embeddings, latent):
        return torch.sigmoid(super().forward(embeddings, latent))

    @staticmethod
    def to_layers(means):
        return torch.logit(means, eps=1e-3)  # a mean by extrapolation may leave (0, 1)


class MomentMatchingGenerator(_GeneratorOfLayers):
    """Class embedding and uniform noise of its size -> pixel feature: the GMMN of ZS3Net (Bucher et al., 2019)."""

    convolution = XavierConvolution
    draw_latent = staticmethod(torch.rand)

    def __init__(self, config):
        super().__init__(config, config.embedding_size)


class PixelClassifier(Classifier):
    """Class scores per pixel, on a trunk shared with the critic that tells real features from synthetic ones.

    With patches (CaGNetv2, section 3.4) the class head looks at the 3x3 neighbours of a pixel, too.
    """

    beside_scores = ("critic_head",)

    def __init__(self, config):
        super().__init__()
        hidden = config.classifier_hidden_size
        self.trunk = nn.Conv2d(config.feature_size, hidden, 1)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.neighbours = nn.Conv2d(hidden, hidden, 3, padding=1) if config.patch_size > 1 else None
        self.class_head = nn.Conv2d(hidden, config.num_labels, 1)
        self.critic_head = nn.Conv2d(hidden, 1, 1)
        self.neighbourhood = 1 if self.neighbours is None else 3

    def hidden(self, features):
        return self.dropout(F.relu(self.trunk(features)))

    def forward(self, features, class_embeddings=None):
        """`(B, D, h, w)` -> class logits `(B, N, h, w)`."""
        hidden = self.hidden(features)
        if self.neighbours is None:
            return self.class_head(hidden)
        return F.conv2d(hidden, *self._patch_head(), padding=1)

    def head_inputs(self, features):
        hidden = self.hidden(features)
        if self.neighbours is None:
            return hidden
        return F.conv2d(hidden, self.neighbours.weight, self.neighbours.bias, stride=3)

    def classify_centres(self, features):
        if self.neighbours is None:
            return self(features)
        return F.conv2d(self.hidden(features), *self._patch_head(), stride=3)

    def _patch_head(self):
        """Weight `(N, hidden, 3, 3)` and bias of neighbours and class head as the one linear map they are together."""
        weight = self.class_head.weight.flatten(1)
        folded = (weight @ self.neighbours.weight.flatten(1)).view(-1, *self.neighbours.weight.shape[1:])
        return folded, weight @ self.neighbours.bias + self.class_head.bias

    def criticise(self, features):
        """`(B, D, h, w)` -> realness `(B, 1, h, w)` in (0, 1)."""
        return torch.sigmoid(self.critic_head(self.hidden(features)))


def _check_pixel_by_pixel(config):
    if config.patch_size > 1:
        raise ValueError(f'patch_size={config.patch_size} needs classifier="convolutional"')


class LinearClassifier(Classifier, nn.Conv2d):
    """One 1x1 convolution (ZS3Net)."""

    check = staticmethod(_check_pixel_by_pixel)

    def __init__(self, config):
        super().__init__(config.feature_size, config.num_labels, 1)

    @property
    def class_head(self):
        return self

    def forward(self, features, class_embeddings=None):
        """`(B, D, h, w)` -> class logits `(B, N, h, w)`."""
        return super().forward(features)


class ProjectionClassifier(Classifier):
    """Products with the class embeddings, brought to length one (SPNet): nothing is learnt."""

    learns = False

    @staticmethod
    def check(config):
        if config.feature_size != config.embedding_size:
            raise ValueError(
                f"a projection classifier needs feature_size == embedding_size, "
                f"got {config.feature_size} and {config.embedding_size}"
            )
        if config.contextual:
            raise ValueError('classifier="projection" classifies the ASPP map: set contextual=False')
        if config.generator is not None:
            raise ValueError('classifier="projection" does not learn from features: set generator=None')
        _check_pixel_by_pixel(config)

    def __init__(self, config):
        super().__init__()

    def forward(self, features, class_embeddings):
        """`(B, D, h, w)` and `(N, D)` -> class logits `(B, N, h, w)`."""
        directions = F.normalize(class_embeddings.to(features.device), dim=1)
        return F.conv2d(features, directions[:, :, None, None])

    def set_classes(self, kept, rows=None):
        """Nothing here belongs to a class."""


PYRAMIDS = PartTable(
    "aspp",
    {
        "full": AtrousSpatialPyramid,
        "depthwise": DepthwiseSpatialPyramid,
        "pooled": PooledPyramid,
        "none": NoPyramid,
    },
)
CLASSIFIERS = PartTable(
    "classifier",
    {
        "convolutional": PixelClassifier,
        "linear": LinearClassifier,
        "projection": ProjectionClassifier,
        "names": NamesClassifier,
    },
)
GENERATORS = PartTable(
    "generator",
    {
        "contextual": ContextualGenerator,
        "moment_matching": MomentMatchingGenerator,
        "gaussian": GaussianGenerator,
        "prototypes": PrototypeGenerator,
        None: None,
    },
)
