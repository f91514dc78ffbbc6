"""A generator without training: the features of a class are Gaussian, and its embedding tells their mean.

Shapes: P pixels, D feature size, E class-embedding size, N classes.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .contracts_cagnet import FeatureGenerator


class GaussianGenerator(FeatureGenerator):
    """Class embedding and standard normal latent -> pixel feature.

    The features of every class are normal with one covariance; the mean is a ridge regression from the embedding onto
    the mean features of the classes seen. All of it follows in closed form from statistics of real features, which
    travel with the weights. In the means every pixel weighs alike; in the covariance every class of every batch does,
    or the largest classes would decide it.
    """

    @staticmethod
    def check(config):
        if config.classifier != "linear":
            raise ValueError('generator="gaussian" has a linear Bayes rule: set classifier="linear"')

    def __init__(self, config):
        super().__init__()
        classes, size = config.num_labels, config.feature_size
        self.latent_size = size
        self.mean = self.new_mean(config)
        self.deviation = nn.Conv2d(size, size, 1, bias=False)  # a Cholesky factor of the covariance
        self.register_buffer("class_counts", torch.zeros(classes))
        self.register_buffer("class_means", torch.zeros(classes, size))
        self.register_buffer("batch_counts", torch.zeros(classes))  # batches with a pixel of the class
        self.register_buffer("batch_means", torch.zeros(classes, size))  # means of the batches' means
        self.register_buffer("scatter", torch.zeros(size, size))  # around `batch_means`, weighted as said above

    def start_weights(self):
        """Nothing is observed: every statistic and mean is 0, the covariance 1."""
        for tensor in (*self.mean.parameters(), *self.buffers(recurse=False)):
            init.zeros_(tensor)
        init.dirac_(self.deviation.weight)

    @staticmethod
    def new_mean(config) -> nn.Module:
        """What gives the means of classes `(B, D, h, w)` by their vectors of length 1, `(B, E, h, w)`."""
        return nn.Conv2d(config.embedding_size, config.feature_size, 1)

    def forward(self, embeddings, latent):
        """`(B, E, h, w)` and `(B, D, h, w)` -> features `(B, D, h, w)`."""
        return self.mean(F.normalize(embeddings, dim=1)) + self.deviation(latent)

    def observe(self, features, labels) -> None:
        """Take real features `(P, D)` with their classes `(P,)`, those of every process, into the statistics."""
        features = features.to(self.scatter.dtype)
        counts = torch.bincount(labels, minlength=len(self.class_counts)).to(features.dtype)
        sums = torch.zeros_like(self.class_means).index_add_(0, labels, features)
        means = sums / counts.clamp_min(1)[:, None]
        residuals = features - means[labels]
        observed = counts, means, (residuals / counts[labels, None]).t() @ residuals
        for counts, means, scatter in of_all_processes(*observed):
            self._merge(counts, means, scatter)

    def _merge(self, counts, means, scatter) -> None:
        """Statistics of two sets of pixels together (Chan et al., 1979): no sums of squares, nothing cancels."""
        batch_counts = (counts > 0).to(counts.dtype)
        apart = _move_mean(self.batch_means, self.batch_counts, means, batch_counts)
        between = self.batch_counts * batch_counts / (self.batch_counts + batch_counts).clamp_min(1)
        self.scatter += scatter + (apart * between[:, None]).t() @ apart
        self.batch_counts += batch_counts
        _move_mean(self.class_means, self.class_counts, means, counts)
        self.class_counts += counts

    def fit(self, embeddings, *, ridge: float, shrinkage: float, covariance_scale: float) -> None:
        """Regress the means from the embeddings, and take the covariance from the scatter.

        Args:
            embeddings: `(N, E)` of all classes; those without a pixel take no part.
            ridge: λ of the regression on unit-length embeddings.
            shrinkage: Share of the covariance, 0 to 1, that is replaced by its diagonal.
            covariance_scale: Factor on the covariance: the channels of a feature and neighbouring pixels are not as
                telling as the model of independent Gaussian pixels has it.
        """
        self.fit_means(embeddings, ridge=ridge)
        self.fit_covariance(shrinkage=shrinkage, covariance_scale=covariance_scale)

    def fit_means(self, embeddings, *, ridge: float) -> None:
        """Regress the means from the embeddings `(N, E)`; see `fit`."""
        observed = (self.class_counts > 0).double()[:, None]
        means = self.class_means.double()
        centre = (means * observed).sum(0) / observed.sum().clamp_min(1)
        keys = F.normalize(embeddings.double(), dim=1) * observed
        gram = keys @ keys.t() + ridge * torch.eye(len(keys), dtype=keys.dtype, device=keys.device)
        weight = torch.linalg.solve(gram, (means - centre) * observed).t() @ keys
        self.mean.weight.copy_(weight[:, :, None, None])
        self.mean.bias.copy_(centre)

    def fit_covariance(self, *, shrinkage: float, covariance_scale: float) -> None:
        """Take the covariance from the scatter; see `fit`."""
        moved = self.batch_means.double() - self.class_means.double()
        scatter = self.scatter.double() + (moved * self.batch_counts[:, None]).t() @ moved
        covariance = scatter / self.batch_counts.sum().clamp_min(1)
        variances = covariance.diagonal()
        floor = (1e-6 * variances.mean()).clamp_min(1e-12)  # of channels that never vary
        covariance = torch.lerp(covariance, variances.diag(), shrinkage) + floor * torch.eye(len(variances)).to(floor)
        factor = torch.linalg.cholesky_ex(covariance_scale * covariance).L
        self.deviation.weight.copy_(factor[:, :, None, None])

    def set_classes(self, kept: list[int], new: int) -> None:
        """Keep the statistics of the given classes and append `new` ones without a pixel; what is made stays."""
        # How much of the scatter is whose is not known: what is left goes with the batches that are left.
        batches = self.batch_counts.double()
        self.scatter = self.scatter * (batches[kept].sum() / batches.sum().clamp_min(1)).to(self.scatter)
        for name in ("class_counts", "class_means", "batch_counts", "batch_means"):
            rows = getattr(self, name)[kept]
            setattr(self, name, torch.cat([rows, rows.new_zeros(new, *rows.shape[1:])]))

    def bayes_rule(self, embeddings, log_priors):
        """The classifier that is optimal for these Gaussians: linear, as they share their covariance.

        A class with pixels stands for itself; the mean of the others is the regression's.

        Args:
            embeddings: `(N, E)`; those beyond the generator's classes are of new ones.
            log_priors: `(N,)`.

        Returns:
            Weights `(N, D)` and biases `(N,)`.
        """
        regressed = self.mean(F.normalize(embeddings, dim=1)[:, :, None, None])[:, :, 0, 0]
        new = len(embeddings) - len(self.class_counts)
        observed = F.pad(self.class_counts, (0, new))[:, None] > 0
        means = torch.where(observed, F.pad(self.class_means, (0, 0, 0, new)), regressed).double()
        weights = torch.cholesky_solve(means.t(), self.deviation.weight[:, :, 0, 0].double()).t()
        return weights, log_priors - 0.5 * (means * weights).sum(1)

    @torch.no_grad()
    def new_rows(self, classifier, embeddings, new_embeddings, unseen_ids):
        """The Bayes rule of the new classes, with the prior that unseen classes have in the classifier."""
        if not self.class_counts.any():
            raise ValueError("this model's generator has observed no features yet: train the stage that fits it")
        old, table = len(embeddings), torch.cat([embeddings, new_embeddings])
        weights, biases = self.bayes_rule(table, torch.zeros(len(table), device=table.device))
        log_priors = classifier.bias - biases[:old]  # what the rule was given for them
        unseen = log_priors[list(unseen_ids)]
        # The median: some may have been given a bias of their own when they were added.
        return weights[old:], biases[old:] + (unseen.median() if len(unseen) else 0)


def _move_mean(mean, count, other_mean, other_count):
    """Make `mean` `(N, D)` of `count` `(N,)` values that of both sets; returns how far apart the two were."""
    apart = other_mean - mean
    mean += apart * (other_count / (count + other_count).clamp_min(1))[:, None]
    return apart


def of_all_processes(*tensors):
    """The tensors of every process, process by process; in the same order everywhere."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [tensors]
    gathered = []
    for tensor in tensors:
        copies = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(copies, tensor.contiguous())
        gathered.append(copies)
    return list(zip(*gathered, strict=True))
