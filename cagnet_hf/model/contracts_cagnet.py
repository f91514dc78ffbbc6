"""What the exchangeable parts of the network have in common: the tables that hold them, classifiers, generators.

Shapes: B batch, h x w feature map, D feature size, E class-embedding size, N classes.
"""

import torch
from torch import nn


class PartTable(dict):
    """The classes of one exchangeable part by name: the field of the configuration that chooses one -> its class.

    A part from outside the package joins the table, `BACKBONES["mine"] = MyBackbone`, and is chosen by its name,
    `CaGNetConfig(backbone="mine")`; whoever opens a model that was saved with it adds the part first. A part is built
    from the configuration. What it needs of the configuration it says in a static method `check(config)`, which raises
    a ValueError.

    Args:
        field: The configuration's field.
        parts: Name -> class, or a function that builds the part; None -> None where a model can do without.
        besides: What else the field may hold, for the message about an unknown name.
    """

    def __init__(self, field: str, parts: dict, besides: str = ""):
        super().__init__(parts)
        self.field, self.besides = field, besides

    def chosen(self, config):
        """The class that the configuration names.

        Raises:
            ValueError: There is no such name.
        """
        name = getattr(config, self.field)
        if name not in self:
            raise ValueError(f"{self.field}={name!r}: choose one of {', '.join(map(repr, self))}{self.besides}")
        return self[name]

    def check(self, config) -> None:
        """Refuse, with a ValueError, an unknown name and a configuration that does not suit the part."""
        check = getattr(self.chosen(config), "check", None)
        if check is not None:
            check(config)

    def build(self, config, *arguments) -> nn.Module | None:
        part = self.chosen(config)
        return None if part is None else part(config, *arguments)


class Classifier(nn.Module):
    """`forward(features, class_embeddings)`: `(B, D, h, w)` and `(N, E)` -> class logits `(B, N, h, w)`.

    Attributes:
        learns: Whether the classifier has weights. They are then a `class_head`, a convolution with a row for each
            class, and what comes before the head.
        neighbourhood: The score of a pixel depends on a square of this many pixels a side.
        beside_scores: The names of parts that class scores do not depend on.
    """

    learns = True
    neighbourhood = 1
    beside_scores: tuple[str, ...] = ()
    class_head: nn.Conv2d

    def head_inputs(self, features):
        """What the class head sees of the centre of every neighbourhood: maps of n x m of them -> `(B, C, n, m)`."""
        return features

    def classify_centres(self, features):
        """Class logits `(B, N, n, m)` of the centres of maps that are tiled with n x m neighbourhoods."""
        return self(features)

    def new_rows(self, embeddings):
        """Weights `(n, C)` and biases `(n,)` of new classes with vectors `(n, E)` in the class head.

        None where they follow from what a generator makes.
        """
        return None

    def set_classes(self, kept: list[int], rows=None) -> None:
        """Keep the class head's rows of the given classes; append the weights and biases in `rows`, if there are."""
        head = self.class_head
        for name, new in zip(("weight", "bias"), rows or (None, None), strict=True):
            old = getattr(head, name)
            values = old.detach()[kept]
            if new is not None:
                values = torch.cat([values, new.to(values).view(-1, *values.shape[1:])])
            setattr(head, name, nn.Parameter(values, requires_grad=old.requires_grad))
        head.out_channels = len(head.weight)


class FeatureGenerator(nn.Module):
    """`forward(embeddings, latent)`: class embeddings `(B, E, h, w)` and a latent -> pixel features `(B, D, h, w)`.

    Attributes:
        latent_size: Channels of the latent.
        draw_latent: `draw_latent(shape, generator=, device=, dtype=)` draws one.
    """

    latent_size: int
    draw_latent = staticmethod(torch.randn)

    def set_classes(self, kept: list[int], new: int) -> None:
        """Forget all classes but those; expect `new` more."""

    def new_rows(self, classifier: Classifier, embeddings, new_embeddings, unseen_ids: list[int]):
        """Weights `(n, C)` and biases `(n,)` of new classes in the class head; None where they must be trained.

        Args:
            embeddings: `(N, E)` of the classes there are.
            new_embeddings: `(n, E)`.
            unseen_ids: Which of the N are unseen.
        """
        return None
