"""Optimisers of a stage: the network, the classifier (with the critic), the generator."""

import torch
from torch import nn

from ..methods.options import OptimizerRecipe, StageRecipe

FUSING = ("cpu", "cuda")  # devices on which one kernel steps a tensor: measured to halve Adam's time on a CPU


def build_optimizers(model, stage: StageRecipe) -> dict[str, torch.optim.Optimizer]:
    """One optimiser per part that learns in `stage`; the parameters of all others stop requiring gradients.

    The model has every part that the stage trains (see `Method.check`).
    """
    model.requires_grad_(False)
    groups = {
        "network": lambda recipe: network_groups(model.cagnet, recipe),
        "classifier": lambda recipe: [{"params": list(model.classifier.parameters())}],
        "generator": lambda recipe: [{"params": _layers_of(model.generator)}],
    }
    optimizers = {}
    for part, recipe in stage.optimizers().items():
        parameter_groups = groups[part](recipe)
        for group in parameter_groups:
            group.setdefault("multiplier", 1.0)
            for parameter in group["params"]:
                parameter.requires_grad_(True)
        optimizers[part] = _build(recipe, parameter_groups)
    return optimizers


def _layers_of(generator: nn.Module) -> list[nn.Parameter]:
    """The generator's parameters without those of its anchor, which follow in closed form."""
    return [parameter for name, parameter in generator.named_parameters() if not name.startswith("anchor.")]


def network_groups(network: nn.Module, recipe: OptimizerRecipe) -> list[dict]:
    """Parameter groups of backbone, ASPP and contextual module with their learning-rate factors.

    ASPP biases and batch normalisation take no weight decay; frozen batch normalisation takes no part.
    """
    factors = {"backbone": 1.0, "context": 1.0, "aspp_weights": 1.0, "aspp_biases": 1.0} | recipe.multipliers
    factors.setdefault("selector", factors["context"])
    grouped: dict[tuple, list] = {}
    for module_name, module in network.named_modules():
        normalization = isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, parameter in module.named_parameters(recurse=False):
            if normalization and network.config.freeze_batch_norm:
                continue
            part = _part_of(f"{module_name}.{name}")
            plain = normalization or part == "aspp_biases"
            if factors[part]:
                grouped.setdefault((factors[part], 0.0 if plain else recipe.weight_decay), []).append(parameter)
    return [
        {"params": parameters, "multiplier": factor, "weight_decay": decay}
        for (factor, decay), parameters in grouped.items()
    ]


def _part_of(name: str) -> str:
    if name.startswith("context.selector"):
        return "selector"
    if name.startswith("context."):
        return "context"
    if name.startswith("aspp."):
        return "aspp_biases" if name.endswith("bias") else "aspp_weights"
    return "backbone"


def _build(recipe: OptimizerRecipe, groups: list[dict]) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    fused = groups[0]["params"][0].device.type in FUSING
    return kind(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)


def set_learning_rates(optimizers, stage: StageRecipe, iteration: int) -> None:
    """Set every group's rate to what `iteration` (from 0) of the stage uses."""
    for part, optimizer in optimizers.items():
        rate = getattr(stage, part).lr_at(iteration, stage.iterations)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["multiplier"]
