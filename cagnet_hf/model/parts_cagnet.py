"""The exchangeable parts on top of a backbone: spatial pyramids, contextual module, classifier, generators.

Shapes: B batch, h x w feature map, C channels, D feature size, E class-embedding size, N classes.
Sources: CaGNet (arXiv 2008.06893), CaGNetv2 (arXiv 2009.12232), ZS3Net (arXiv 1906.00817).
"""

import torch
import torch.nn.functional as F
from torch import nn

from .gaussian_cagnet import GaussianGenerator


class AtrousConvolution(nn.Conv2d):
    """A dilated 3x3 convolution that starts near zero."""


class XavierConvolution(nn.Conv2d):
    """A convolution that starts Xavier-uniform with biases of 0.01, as the generator of ZS3Net does."""


class AtrousSpatialPyramid(nn.Module):
    """Sum of parallel dilated 3x3 convolutions (DeepLabV2's ASPP): `(B, C, h, w)` -> `(B, D, h, w)`."""

    def __init__(self, in_channels, out_channels, dilations):
        super().__init__()
        self.branches = nn.ModuleList(
            AtrousConvolution(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
            for dilation in dilations
        )

    def forward(self, hidden):
        return sum(branch(hidden) for branch in self.branches)


class DepthwiseSpatialPyramid(nn.Module):
    """A light ASPP for small backbones: dilated depthwise 3x3 convolutions beside the map itself, then one 1x1."""

    def __init__(self, in_channels, out_channels, dilations):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels)
            for dilation in dilations
        )
        self.project = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hidden):
        return self.project(hidden + sum(F.relu(branch(hidden)) for branch in self.branches))


class ContextualModule(nn.Module):
    """Describes each pixel's surroundings by a Gaussian latent (CaGNet, section 3.2; no convolution has a bias).

    Three chained dilated convolutions see three context scales; a selector weighs them per pixel.
    """

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
        log_variance = F.relu(self.log_variance(merged))
        if latent_noise is None:
            latent_noise = torch.randn_like(mean)
        return mean + latent_noise * torch.exp(0.5 * log_variance), mean, log_variance


class ContextualGenerator(nn.Module):
    """Class embedding and contextual latent -> pixel feature, by 1x1 convolutions (CaGNet, section 3.3)."""

    def __init__(self, config):
        super().__init__()
        sizes = [config.embedding_size + config.feature_size, *config.generator_hidden_sizes]
        layers = []
        for size, next_size, dropout in zip(sizes, sizes[1:], config.generator_dropout, strict=False):
            layers += [nn.Conv2d(size, next_size, 1), nn.LeakyReLU(0.2), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(sizes[-1], config.feature_size, 1))
        self.embedding_scale = config.generator_embedding_scale
        self.latent_size = config.feature_size

    def forward(self, embeddings, latent):
        """`(B, E, h, w)` and `(B, D, h, w)` -> features `(B, D, h, w)` in (0, 1)."""
        return torch.sigmoid(self.layers(torch.cat([embeddings * self.embedding_scale, latent], dim=1)))

    draw_latent = staticmethod(torch.randn)


class MomentMatchingGenerator(nn.Module):
    """Class embedding and uniform noise of its size -> pixel feature: the GMMN of ZS3Net (Bucher et al., 2019)."""

    def __init__(self, config):
        super().__init__()
        sizes = [2 * config.embedding_size, *config.generator_hidden_sizes]
        layers = []
        for size, next_size, dropout in zip(sizes, sizes[1:], config.generator_dropout, strict=False):
            layers += [XavierConvolution(size, next_size, 1), nn.LeakyReLU(0.2), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, XavierConvolution(sizes[-1], config.feature_size, 1))
        self.embedding_scale = config.generator_embedding_scale
        self.latent_size = config.embedding_size

    def forward(self, embeddings, latent):
        """`(B, E, h, w)` twice -> features `(B, D, h, w)`."""
        return self.layers(torch.cat([embeddings * self.embedding_scale, latent], dim=1))

    draw_latent = staticmethod(torch.rand)


class PixelClassifier(nn.Module):
    """Class scores per pixel, on a trunk shared with the critic that tells real features from synthetic ones.

    With patches (CaGNetv2, section 3.4) the class head looks at the 3x3 neighbours of a pixel, too.
    """

    def __init__(self, config):
        super().__init__()
        hidden = config.classifier_hidden_size
        self.trunk = nn.Conv2d(config.feature_size, hidden, 1)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.neighbours = nn.Conv2d(hidden, hidden, 3, padding=1) if config.patch_size > 1 else None
        self.class_head = nn.Conv2d(hidden, config.num_labels, 1)
        self.critic_head = nn.Conv2d(hidden, 1, 1)

    def hidden(self, features):
        return self.dropout(F.relu(self.trunk(features)))

    def forward(self, features):
        """`(B, D, h, w)` -> class logits `(B, N, h, w)`."""
        hidden = self.hidden(features)
        if self.neighbours is None:
            return self.class_head(hidden)
        return F.conv2d(hidden, *self._patch_head(), padding=1)

    def centres(self, features):
        """What the class head sees of the centres of 3x3 patches: `(B, D, 3n, 3m)` -> `(B, C, n, m)`."""
        convolution = self.neighbours
        return F.conv2d(self.hidden(features), convolution.weight, convolution.bias, stride=3)

    def classify_centres(self, features):
        """The centres of maps tiled with 3x3 patches: `(B, D, 3n, 3m)` -> class logits `(B, N, n, m)`."""
        return F.conv2d(self.hidden(features), *self._patch_head(), stride=3)

    def _patch_head(self):
        """Weight `(N, hidden, 3, 3)` and bias of neighbours and class head as the one linear map they are together."""
        weight = self.class_head.weight.flatten(1)
        folded = (weight @ self.neighbours.weight.flatten(1)).view(-1, *self.neighbours.weight.shape[1:])
        return folded, weight @ self.neighbours.bias + self.class_head.bias

    def criticise(self, features):
        """`(B, D, h, w)` -> realness `(B, 1, h, w)` in (0, 1)."""
        return torch.sigmoid(self.critic_head(self.hidden(features)))


def build_spatial_pyramid(config, in_channels):
    """The ASPP on a backbone's map of `in_channels`."""
    pyramid = AtrousSpatialPyramid if config.aspp == "full" else DepthwiseSpatialPyramid
    return pyramid(in_channels, config.feature_size, config.aspp_dilations)


def build_classifier(config):
    """The learnt classifier; None where class embeddings classify (a projection)."""
    if config.classifier == "convolutional":
        return PixelClassifier(config)
    return nn.Conv2d(config.feature_size, config.num_labels, 1) if config.classifier == "linear" else None


def build_generator(config):
    """The generator of features; None where a method has none."""
    if config.generator == "contextual":
        return ContextualGenerator(config)
    if config.generator == "gaussian":
        return GaussianGenerator(config)
    return MomentMatchingGenerator(config) if config.generator == "moment_matching" else None
