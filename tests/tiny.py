"""A model of a few thousand weights for the synthetic benchmark, its recipe, and images of noise to train it on."""

from collections.abc import Sequence

import torch

from cagnet_hf.methods import method_of
from cagnet_hf.methods.base import Method, StepResult
from cagnet_hf.methods.options import Recipe
from cagnet_hf.training.optimizers import build_optimizers
from cagnet_hf.training.recipe_files import load_recipe
from cagnet_hf.training.setup import benchmark_of, build_model

NUM_SEEN, NUM_CLASSES = 12, 16
BACKBONE = ["model.stem_size=8", "model.hidden_sizes=[8, 8, 16, 16]"]
HEADS = [
    "model.feature_size=16",
    "model.context_hidden_size=8",
    "model.classifier_hidden_size=16",
    "model.generator_hidden_sizes=[16, 16]",
    "model.generator_dropout=[0.1, 0.1]",
]


def tiny_recipe(method: str, *overrides: str) -> Recipe:
    """The recipe of a method for `scenes`, with a tiny network."""
    sizes = BACKBONE if method.startswith("spnet") else BACKBONE + HEADS
    return load_recipe(f"scenes/{method}", [*sizes, *overrides])


def new_model(recipe: Recipe, stage: str = "pretrain"):
    """(model in training mode, its optimisers) at the start of a stage; the same weights every time."""
    torch.manual_seed(0)
    model = build_model(recipe, benchmark_of(recipe))
    return model.train(), build_optimizers(model, recipe.stages[stage])


def method_for(model, recipe: Recipe, stage) -> Method:
    """The method that runs a stage of the recipe on the model."""
    return method_of(recipe.method, recipe.model)(recipe, stage, model)


def real_step(model, batch, recipe: Recipe, stage) -> StepResult:
    return method_for(model, recipe, stage).real_step(batch)


class Tape:
    """A learner that updates nothing: it writes down who was to learn, and which parts of the model had gradients."""

    def __init__(self, model):
        self.model = model
        self.losses: list[torch.Tensor] = []
        self.learners: list[tuple[str, ...]] = []
        self.reached: list[set[str]] = []

    def backward(self, loss: torch.Tensor) -> None:
        if not self.losses or len(self.losses) == len(self.learners):
            self.model.zero_grad()
        self.losses.append(loss.detach())
        loss.backward()

    def step(self, parts: Sequence[str]) -> None:
        self.learners.append(tuple(parts))
        self.reached.append({name.partition(".")[0] for name in gradients(self.model)})


def iterate(model, batch, recipe: Recipe, stage, method: Method | None = None) -> tuple[dict[str, torch.Tensor], Tape]:
    """(terms, tape) of one iteration; a batch of None is a synthetic one."""
    tape = Tape(model)
    return (method or method_for(model, recipe, stage)).iterate([batch], tape), tape


def noise_batch() -> dict[str, torch.Tensor]:
    """Two images of noise with labels of seen classes and ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, NUM_SEEN + 1, (2, 32, 32), generator=generator)
    labels[labels == NUM_SEEN] = 255
    return {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator), "labels": labels}


def gradients(module) -> dict[str, torch.Tensor]:
    """Gradients that are not zero, by name."""
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}
