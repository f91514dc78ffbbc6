"""What an image classifier knows by name: its head applied at every pixel, and the classes that a name means to it.

Shapes: B batch, h x w feature map, D feature size, E class-embedding size, H channels of the head, K classes that the
image classifier knows ("known classes"), N classes of the segmenter.
"""

import copy
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .contracts_cagnet import Classifier
from .gaussian_cagnet import GaussianGenerator, of_all_processes

# Below this cosine between a name's vector and the nearest known one, nothing like the name is known. Chosen on the
# names of COCO-Stuff: what ImageNet lacks (sky, clouds, fog, moss, frisbee, skateboard) lies below.
NEAREST_COSINE = 0.40
# The values of τ that class means are averaged over.
TEMPERATURES = (0.02, 0.03, 0.05, 0.08, 0.12, 0.15)


class DenseHead(nn.Module):
    """The head of an image classifier at every cell of a feature map: `(B, D, h, w)` -> logits `(B, K, h, w)`.

    Args:
        size: D.
        hidden_size: H, the channels of a 1x1 convolution with ReLU6 before the last one (EfficientNet-Lite); 0 where
            there is none.
        known_classes: K.
    """

    def __init__(self, size: int, hidden_size: int, known_classes: int):
        super().__init__()
        self.hidden = nn.Conv2d(size, hidden_size, 1) if hidden_size else None
        self.output = nn.Conv2d(hidden_size or size, known_classes, 1)
        self.in_channels, self.num_classes = size, known_classes

    def forward(self, features):
        return self.output(features if self.hidden is None else F.relu6(self.hidden(features)))


class NameWeights(nn.Module):
    """Which known classes a class vector means: softmax of the cosines with the vectors of their names over τ.

    Buffers: `vectors` `(K, E)`; `known` `(K,)`, 0 for classes that take no part; `temperature` `()`, τ.
    """

    def __init__(self, config):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(config.known_classes, config.embedding_size))
        self.register_buffer("known", torch.zeros(config.known_classes))
        self.register_buffer("temperature", torch.ones(()))

    def start_weights(self):
        init.zeros_(self.vectors)
        init.zeros_(self.known)
        init.ones_(self.temperature)

    def cosines(self, embeddings):
        """Class vectors `(N, E)` -> cosines `(N, K)`; -1 with classes that take no part."""
        cosines = F.normalize(embeddings.to(self.vectors), dim=1) @ F.normalize(self.vectors, dim=1).t()
        return cosines.masked_fill(self.known == 0, -1)

    def forward(self, embeddings, temperature=None):
        """Class vectors `(N, E)` -> weights `(N, K)`, rows that sum to 1; by another τ where one is given."""
        temperature = self.temperature if temperature is None else temperature
        scores = (self.cosines(embeddings) / temperature).masked_fill(self.known == 0, -torch.inf)
        return scores.softmax(dim=1)

    def warn_of_strangers(self, embeddings) -> None:
        """Warn of class vectors that are near no known class: what is made of them is a guess."""
        for position, cosine in enumerate(self.cosines(embeddings).amax(dim=1).tolist()):
            if cosine < NEAREST_COSINE:
                warnings.warn(
                    f"new class {position + 1}: the image classifier knows nothing near this name (cosine "
                    f"{cosine:.2f} < {NEAREST_COSINE}); what the model makes of it is a guess",
                    stacklevel=4,
                )


class PrototypeMeans(nn.Module):
    """The mean feature of a class from its vector: the means of the known classes that its name means, moved to fit.

    Z_c = Σ_k a(c, k) M_k; the mean is `centre` + s (Z_c − `known_centre`), averaged over several τ: classes differ in
    the τ that suits them, and no choice by the seen classes was found that holds for the unseen ones of every dataset.

    Buffers: `means` `(K, D)`, M; `mass` `(K,)`, Σ p(k | pixel) over the pixels that M was taken from; `temperatures`
    `(T,)`, τ; `scales` `(T,)`, s; `centre` `(D,)`; `known_centres` `(T, D)`.
    """

    def __init__(self, config):
        super().__init__()
        self.names = NameWeights(config)
        self.register_buffer("means", torch.zeros(config.known_classes, config.feature_size))
        self.register_buffer("mass", torch.zeros(config.known_classes))
        self.register_buffer("temperatures", torch.zeros(len(TEMPERATURES)))
        self.register_buffer("scales", torch.zeros(len(TEMPERATURES)))
        self.register_buffer("centre", torch.zeros(config.feature_size))
        self.register_buffer("known_centres", torch.zeros(len(TEMPERATURES), config.feature_size))

    def start_weights(self):
        for name in ("means", "mass", "centre", "known_centres"):
            init.zeros_(getattr(self, name))
        init.ones_(self.temperatures)
        init.ones_(self.scales)

    def prototypes(self, embeddings):
        """Class vectors `(N, E)` -> Z of every τ, `(T, N, D)`."""
        return torch.stack([self.names(embeddings, temperature) @ self.means for temperature in self.temperatures])

    def forward(self, embeddings):
        """Class vectors `(B, E, h, w)` -> means of their classes `(B, D, h, w)`."""
        batch, _, height, width = embeddings.shape
        prototypes = self.prototypes(embeddings.movedim(1, -1).flatten(0, 2))
        moved = self.scales[:, None, None] * (prototypes - self.known_centres[:, None])
        means = self.centre + moved.mean(0)
        return means.view(batch, height, width, -1).movedim(-1, 1)

    def observe(self, features, posteriors) -> None:
        """Take features `(P, D)` with their posteriors `(P, K)` into the means of this process."""
        mass = posteriors.sum(0)
        tiny = torch.finfo(mass.dtype).tiny
        self._merge(mass, posteriors.t() @ features / mass.clamp_min(tiny)[:, None])

    def observe_share(self, features, posteriors, count) -> None:
        """Take features `(P, D)` of all processes together with their posteriors `(P, K)`, for `count` pixels."""
        observed = features.new_tensor(len(features)), posteriors.sum(0), posteriors.t() @ features
        number, mass, sums = (sum(parts) for parts in zip(*of_all_processes(*observed), strict=True))
        self._merge(mass * count / number.clamp_min(1), sums / mass.clamp_min(torch.finfo(mass.dtype).tiny)[:, None])

    def share(self) -> None:
        """Make the means those of all processes together."""
        statistics = of_all_processes(self.mass, self.means)
        self.mass, self.means = torch.zeros_like(self.mass), torch.zeros_like(self.means)
        for mass, means in statistics:
            self._merge(mass, means)

    def _merge(self, mass, means) -> None:
        together = self.mass + mass
        self.means += (means - self.means) * (mass / together.clamp_min(torch.finfo(mass.dtype).tiny))[:, None]
        self.mass = together

    def fit(self, embeddings, class_means) -> None:
        """Choose every s by least squares on classes `(n, E)` whose means `(n, D)` are known."""
        prototypes, class_means = self.prototypes(embeddings).double(), class_means.double()
        centre, known_centres = class_means.mean(0), prototypes.mean(1)
        moved = prototypes - known_centres[:, None]
        self.scales.copy_((moved * (class_means - centre)).sum((1, 2)) / moved.square().sum((1, 2)).clamp_min(1e-12))
        self.centre.copy_(centre)
        self.known_centres.copy_(known_centres)


class PrototypeGenerator(GaussianGenerator):
    """A Gaussian generator whose means come from what an image classifier knows by name, not from a regression.

    In the covariance every class weighs alike, however many pixels and batches show the class.
    """

    new_mean = PrototypeMeans

    @staticmethod
    def check(config):
        GaussianGenerator.check(config)
        if not config.known_classes:
            raise ValueError('generator="prototypes" needs known_classes, how many classes the image classifier knows')

    def start_observing(self) -> None:
        """Forget what was observed. The scatter of each class is kept until `fit`; the scatters are no weights."""
        for tensor in (*self.buffers(recurse=False), self.mean.mass, self.mean.means):
            tensor.zero_()
        classes, size = self.class_means.shape
        self._class_scatters = self.scatter.new_zeros(classes, size, size)

    def observe(self, features, labels) -> None:
        """Take real features `(P, D)` with their classes `(P,)` into the statistics of this process; see `share`."""
        features = features.to(self.scatter.dtype)
        for label in labels.unique().tolist():  # the few classes of a batch
            values = features[labels == label]
            mean = values.mean(0)
            self._merge_class(
                label, self.class_counts.new_tensor(len(values)), mean, (values - mean).t() @ (values - mean)
            )

    def share(self) -> None:
        """Join the statistics of all processes, and take the scatter in which every class weighs alike."""
        observed = of_all_processes(self.class_counts.clone(), self.class_means.clone(), self._class_scatters)
        if len(observed) > 1:
            for tensor in (self.class_counts, self.class_means):
                tensor.zero_()
            self._class_scatters = torch.zeros_like(self._class_scatters)
            for counts, means, scatters in observed:
                for label in counts.nonzero()[:, 0].tolist():
                    self._merge_class(label, counts[label], means[label], scatters[label])
        self.scatter.copy_(torch.einsum("cij,c->ij", self._class_scatters, 1 / self.class_counts.clamp_min(1)))
        self.batch_counts.copy_(self.class_counts > 0)
        self.batch_means.copy_(self.class_means)
        self.mean.share()

    def without(self, label: int) -> "PrototypeGenerator":
        """A generator that has not seen a class; only between `share` and `fit`."""
        scatters, self._class_scatters = self._class_scatters, None  # they may be large, and are not copied
        part, self._class_scatters = copy.deepcopy(self), scatters
        part.scatter -= scatters[label] / self.class_counts[label]
        for statistics in (part.class_counts, part.class_means, part.batch_counts, part.batch_means):
            statistics[label] = 0
        return part

    def _merge_class(self, label, count, mean, scatter) -> None:
        apart = mean - self.class_means[label]
        share = count / (self.class_counts[label] + count)
        self._class_scatters[label] += scatter + self.class_counts[label] * share * torch.outer(apart, apart)
        self.class_means[label] += share * apart
        self.class_counts[label] += count

    def fit(self, embeddings, *, temperature: float | None, shrinkage: float, covariance_scale: float) -> None:
        """Take the covariance from the scatter, and s from the classes with pixels.

        Args:
            embeddings: `(N, E)` of all classes.
            temperature: τ; the average over `TEMPERATURES` when None.
            shrinkage, covariance_scale: See `GaussianGenerator.fit`.
        """
        self._class_scatters = None
        self.fit_covariance(shrinkage=shrinkage, covariance_scale=covariance_scale)
        self.fit_means(embeddings, temperature=temperature)

    def fit_means(self, embeddings, *, temperature: float | None) -> None:
        """Take s from the classes with pixels; see `fit`."""
        temperatures = TEMPERATURES if temperature is None else [temperature] * len(TEMPERATURES)
        self.mean.temperatures.copy_(torch.tensor(temperatures))
        observed = self.class_counts > 0
        self.mean.fit(embeddings[observed], self.class_means[observed])

    def new_rows(self, classifier, embeddings, new_embeddings, unseen_ids):
        self.mean.names.warn_of_strangers(new_embeddings)
        return super().new_rows(classifier, embeddings, new_embeddings, unseen_ids)


class NamesClassifier(Classifier):
    """Class scores from an image classifier alone: its posteriors at every cell, joined by what the names mean.

    The score of a class is log Σ_k a(c, k) p(k | pixel) less the log of its mean Σ_k a(c, k) m_k over photographs.

    Buffers: `mean_posteriors` `(K,)`, m.
    """

    @staticmethod
    def check(config):
        if not config.known_classes:
            raise ValueError('classifier="names" needs known_classes, how many classes the image classifier knows')
        if config.generator is not None or config.contextual or config.patch_size > 1:
            raise ValueError('classifier="names" learns nothing: set generator=None, contextual=False, patch_size=1')

    def __init__(self, config):
        super().__init__()
        self.head = DenseHead(config.feature_size, config.known_hidden_size, config.known_classes)
        self.names = NameWeights(config)
        self.register_buffer("mean_posteriors", torch.zeros(config.known_classes))
        self.class_head = nn.Conv2d(config.known_classes, config.num_labels, 1)

    def start_weights(self):
        init.constant_(self.mean_posteriors, 1 / len(self.mean_posteriors))

    def head_inputs(self, features):
        return self.head(features).softmax(dim=1)

    def forward(self, features, class_embeddings=None):
        """`(B, D, h, w)` -> class logits `(B, N, h, w)`."""
        joined = F.conv2d(self.head_inputs(features), self.class_head.weight)
        return joined.clamp_min(1e-12).log() + self.class_head.bias[:, None, None]

    @torch.no_grad()
    def name_classes(self, embeddings) -> None:
        """Let the rows of the class head be those of classes with these vectors `(N, E)`."""
        weights, biases = self._rows(embeddings)
        self.class_head.weight.copy_(weights[:, :, None, None])
        self.class_head.bias.copy_(biases)

    @torch.no_grad()
    def new_rows(self, embeddings):
        self.names.warn_of_strangers(embeddings)
        return self._rows(embeddings)

    def _rows(self, embeddings):
        weights = self.names(embeddings)
        weights = weights / (weights @ self.mean_posteriors)[:, None]
        return weights, torch.zeros(len(weights), device=weights.device)
