"""What updates a model: gradients, averaged over processes, stepped part by part."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator

from .measurements import gradient_norms


class Learner:
    """Gradients and optimisers of a stage (see `methods.base.Learner`).

    Args:
        optimizers: By the name of the part that an optimiser steps.

    Attributes:
        norms: The norms of the last gradients by part, where `with_norms` asks for them.
    """

    def __init__(self, accelerator: Accelerator, optimizers: Mapping[str, torch.optim.Optimizer]):
        self.accelerator, self.optimizers = accelerator, optimizers
        self.with_norms = False
        self.norms: dict[str, torch.Tensor] = {}
        self._fresh = True

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss to those since the last step."""
        if self._fresh:
            for optimizer in self.optimizers.values():
                optimizer.zero_grad()
            self._fresh = False
        # As after a forward pass of its own: the next one casts the weights anew.
        torch.clear_autocast_cache()
        with torch.autocast(self.accelerator.device.type, enabled=False):
            self.accelerator.backward(loss)

    def step(self, parts: Sequence[str]) -> None:
        """Update those of the parts that have an optimiser by the mean of all processes' gradients."""
        stepping = {part: optimizer for part, optimizer in self.optimizers.items() if part in parts}
        if self.accelerator.num_processes > 1:
            average_gradients(self.accelerator, stepping.values())
        if self.with_norms:
            self.norms |= gradient_norms(stepping)
        for optimizer in stepping.values():
            optimizer.step()
        self._fresh = True


def average_gradients(accelerator: Accelerator, optimizers) -> None:
    """Average gradients over processes. Steps use different parts of the model, so each step sends what it updates.

    A parameter that one process did not reach (a crop without a labelled pixel) counts as zero there; one that none
    reached keeps no gradient, so that its optimiser leaves it alone.
    """
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    reached = torch.tensor([float(p.grad is not None) for p in parameters], device=accelerator.device)
    reached = accelerator.reduce(reached, "sum").tolist()
    parameters = [parameter for parameter, processes in zip(parameters, reached, strict=True) if processes]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = accelerator.reduce(torch.cat([p.grad.flatten() for p in parameters]), "mean")
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(gradient.view_as(parameter))


def average_statistics(accelerator: Accelerator, model) -> None:
    """Average the running statistics of batch normalisation over processes, which see different images."""
    if accelerator.num_processes > 1:
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(accelerator.reduce(buffer, "mean"))
