"""What is varied: what the generator hears beside the class, and how the classifier is fine-tuned."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Context:
    """What the generator hears beside the class.

    Attributes:
        of: `"noise"`, which is what the latent of the released objective comes to; `"surroundings"`, the mean feature
            of the image's cells that do not have the label of the cell, those without a label included; `"learnt"`,
            the latent of a contextual module of free variance that learns with a generator of its own by the papers'
            text (L2 of weight 10). The generator of the variant is fitted anew.
        kl: Of `"learnt"`, the weight of the distance of the latent from a standard normal.
        standardised: Give the latents of every class the mean 0 and the variance 1 in each channel.
        synthetic: What synthetic steps draw: `"normal"` latents; those of a `"bank"` of real contexts; or normal ones
            around a mean that is regressed from the class vector, `"of_class"`.
        content: The content loss of the generator. The MMD compares the features of a class as a set, so that nothing
            asks the generator to listen to the latent; `"l2"`, of weight 10, compares cell by cell.
    """

    of: str = "noise"
    kl: float = 0.0
    standardised: bool = False
    synthetic: str = "normal"
    content: str = "mmd"


@dataclass(frozen=True)
class Schedule:
    """How the classifier is fine-tuned.

    Attributes:
        block: Real steps in turn with as many synthetic ones.
        together: Every step is real and synthetic at once; half as many steps.
        falls: The classifier's rate falls to zero.
        averaged: The share of the last steps over which the classifier's weights are averaged.
        corrected: Synthetic logits are corrected for the odds that classes are drawn with, in training alone.
        weight: Of the loss of synthetic steps; the recipe's when None.
        image_prior: Of the configuration, when the model is scored.
    """

    block: int = 50
    together: bool = False
    falls: bool = False
    averaged: float = 0.0
    corrected: bool = False
    weight: float | None = None
    image_prior: float = 0.0


LEARNT = Context("learnt", kl=0.1)
CONTEXTS = {
    "noise": Context(),
    "noise, L2": Context(content="l2"),
    "surroundings, L2, bank": Context("surroundings", content="l2", synthetic="bank"),
    "surroundings, standardised, L2, bank": Context("surroundings", 0, True, "bank", "l2"),
    "learnt, L2": replace(LEARNT, content="l2"),
    "learnt, L2, bank": replace(LEARNT, content="l2", synthetic="bank"),
    "learnt, L2, of class": replace(LEARNT, content="l2", synthetic="of_class"),
    "learnt, standardised, L2, bank": replace(LEARNT, standardised=True, content="l2", synthetic="bank"),
    "learnt": LEARNT,
    "learnt, of class": replace(LEARNT, synthetic="of_class"),
    "learnt, standardised, bank": replace(LEARNT, standardised=True, synthetic="bank"),
}
SCHEDULES = {
    "blocks of 50": Schedule(),
    "blocks of 50, image prior 1": Schedule(image_prior=1),
    "blocks of 50, image prior 2": Schedule(image_prior=2),
    "blocks of 50, image prior 3": Schedule(image_prior=3),
    "blocks of 50, weight 4": Schedule(weight=4),
    "blocks of 50, falling rate": Schedule(falls=True),
    "blocks of 50, averaged": Schedule(averaged=0.5),
    "blocks of 50, corrected": Schedule(corrected=True),
    "in turn": Schedule(block=1),
    "in turn, weight 4": Schedule(block=1, weight=4),
    "in turn, weight 4, falling rate": Schedule(block=1, weight=4, falls=True),
    "in turn, weight 16, falling rate": Schedule(block=1, weight=16, falls=True),
    "together, weight 4": Schedule(together=True, weight=4),
}
