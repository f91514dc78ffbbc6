"""Cells of images as a network that rests describes them, and the latents that a generator hears of them.

Shapes: P cells, D channels.
"""

import torch
import torch.nn.functional as F

from .variants import Context

PROBED = 200  # cells of a class in either half of the images, for the probe that reads the class from the latent
PENALTY = 1e-2  # on the squared weights of that probe


class Cells:
    """Labelled cells of images, as a network that rests describes them.

    Attributes:
        features: `(P, D)`.
        classes: `(P,)`.
        images: `(P,)`, the number of the image, rising.
        surroundings: `(P, D)`, the mean feature of the image's cells that do not have the label of the cell.
        maps: By image the map `(D, h, w)` that the contextual module hears.
        described: By image the features `(D, h, w)` of all cells.
        places: By image where the labelled cells are, `(h, w)` bool.
    """

    def __init__(self, model, maps, label_maps):
        ignore, found = model.config.ignore_index, []
        self.maps, self.described, self.places = [], [], []
        with torch.no_grad():
            for of_backbone, labels in zip(maps, label_maps, strict=True):
                output = model.cagnet(backbone_features=of_backbone[None].float(), output_hidden_states=True)
                features, labelled = output.features[0].movedim(0, -1), labels != ignore
                number = torch.full_like(labels, len(self.maps))
                around = surroundings(features, labels)
                found.append([values[labelled] for values in (features, labels, number, around)])
                self.maps.append(output.hidden_states[1][0])
                self.described.append(output.features[0])
                self.places.append(labelled)
        self.features, self.classes, self.images, self.surroundings = (
            torch.cat(parts) for parts in zip(*found, strict=True)
        )
        counts = torch.bincount(self.images, minlength=len(self.maps))
        self.ends = counts.cumsum(0).tolist()
        self.labelled_images = counts.nonzero().flatten()

    def draw(self, images: int):
        """The positions of the cells of some images, and the numbers of these images, both rising."""
        chosen = self.labelled_images[torch.randperm(len(self.labelled_images))[:images]].sort().values.tolist()
        starts = [0, *self.ends]
        return torch.cat([torch.arange(starts[image], self.ends[image]) for image in chosen]), chosen


def surroundings(features, labels):
    """The surroundings of every cell, `(h, w, D)`: the mean feature of the cells that have another label or none.

    Where all cells have one label the surroundings are 0.
    """
    classes, of_cell = labels.unique(return_inverse=True)
    members = F.one_hot(of_cell.flatten(), len(classes)).to(features.dtype)  # (P, S)
    flat = features.flatten(0, 1)
    others = len(flat) - members.sum(0)
    means = (flat.sum(0) - members.t() @ flat) / others.clamp_min(1)[:, None]
    return (means * (others > 0)[:, None])[of_cell]


def latent_of_cells(module, cells: Cells):
    """Mean and deviation `(P, D)` of a module's latent at the cells."""
    module.train()  # in evaluation mode there is no variance
    with torch.no_grad():
        found = [
            [values[0].movedim(0, -1)[place] for values in module(hidden[None])[1:]]
            for hidden, place in zip(cells.maps, cells.places, strict=True)
        ]
    mean, log_variance = (torch.cat(parts) for parts in zip(*found, strict=True))
    return mean, (0.5 * log_variance).exp()


class Latents:
    """The latents of cells: what real steps give the generator, and what synthetic steps draw.

    Args:
        mean, deviation: `(P, D)`.
        cells: The cells.
        context: The variant.
    """

    def __init__(self, mean, deviation, cells: Cells, context: Context):
        self.cells, self.context = cells, context
        if context.standardised:
            of_class, of_cell = means_by_class(mean, cells.classes)
            mean = mean - of_class[of_cell]
            squares, _ = means_by_class(mean.square() + deviation.square(), cells.classes)
            spread = squares.sqrt().clamp_min(1e-6)[of_cell]
            mean, deviation = mean / spread, deviation / spread
        self.mean, self.deviation = mean, deviation

    def regress(self, class_embeddings) -> None:
        """Fit the mean latent of every class, by ridge regression from its vector."""
        if self.context.synthetic != "of_class":
            return
        present = self.cells.classes.unique()
        means, of_cell = means_by_class(self.mean, self.cells.classes)
        vectors = F.normalize(class_embeddings, dim=1)
        centre, gram = means.mean(0), vectors[present] @ vectors[present].t()
        weights = torch.linalg.solve(gram + 0.1 * torch.eye(len(present)), means - centre)
        self.of_class = centre + vectors @ vectors[present].t() @ weights
        within = self.mean - means[of_cell]
        self.within = (within.square() + self.deviation.square()).mean(0).sqrt()

    def draw(self, where):
        """Latents `(n, D)` of these cells."""
        return self.mean[where] + self.deviation[where] * torch.randn_like(self.mean[where])

    def draw_for(self, classes):
        """Latents `(n, D)` for synthetic cells of these classes."""
        if self.context.synthetic == "bank":
            return self.draw(torch.randint(len(self.mean), classes.shape))
        noise = torch.randn(len(classes), self.mean.shape[1])
        return noise if self.context.synthetic == "normal" else self.of_class[classes] + self.within * noise

    def description(self) -> dict:
        """What the latent, as the generator hears it, says of image and class; nats where it has a variance."""
        square, variance = self.mean.square(), self.deviation.square()
        divergence = ((square + variance - 1) / 2 - self.deviation.clamp_min(1e-12).log()).mean().item()
        of_image = self.mean.var(0).sum()
        return {
            "nats_per_channel": None if self.context.of == "surroundings" else divergence,
            "variance_from_image": (of_image / (of_image + variance.mean(0).sum())).item(),
            "class_from_latent": self.leak(),
        }

    def leak(self) -> float:
        """Accuracy, averaged over classes, of a probe that reads the class of other images from the latent and its
        squares."""
        halves, drawn = self.cells.images % 2, []
        for half in (0, 1):
            found = []
            for number in self.cells.classes.unique().tolist():
                of_class = ((self.cells.classes == number) & (halves == half)).nonzero().flatten()
                found.append(of_class[torch.randperm(len(of_class))[:PROBED]])
            drawn.append(torch.cat(found))
        latents = [self.draw(where) for where in drawn]
        fitted, tested = (
            (torch.cat([latent, latent.square()], dim=1), self.cells.classes[where])
            for latent, where in zip(latents, drawn, strict=True)
        )
        centre, spread = fitted[0].mean(0), fitted[0].std(0).clamp_min(1e-6)
        weight = torch.zeros(fitted[0].shape[1] + 1, int(self.cells.classes.max()) + 1, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

        def score(values):
            return (values - centre) / spread @ weight[:-1] + weight[-1]

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(score(fitted[0]), fitted[1]) + PENALTY * weight[:-1].square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            right = (score(tested[0]).argmax(1) == tested[1]).float()
        accuracies = [right[tested[1] == number].mean() for number in tested[1].unique()]
        return (sum(accuracies) / len(accuracies)).item()


def means_by_class(values, classes):
    """Means `(K, D)` of values `(P, D)` over the cells of each class that there is, and where a cell's class is."""
    present, of_cell, counts = classes.unique(return_inverse=True, return_counts=True)
    return torch.zeros(len(present), values.shape[1]).index_add_(0, of_cell, values) / counts[:, None], of_cell
