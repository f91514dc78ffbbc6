"""What a run measures of itself between two looks: kept on the device, so that no step waits for a number."""

import math
from collections.abc import Iterable, Mapping
from statistics import fmean

import torch


class NotFinite(FloatingPointError):  # noqa: N818 - says what a FloatingPointError is about
    """A measured value was not finite.

    Attributes:
        what: The losses that were not finite in the first iteration in which something was; without any, the rest.
        iteration: That iteration, from 0.
    """

    def __init__(self, names: list[str], iteration: int):
        losses = [name.removeprefix("loss/") for name in names if name.startswith("loss/")]
        self.what = f"loss {', '.join(losses)}" if losses else ", ".join(names)
        self.iteration = iteration
        super().__init__(f"{self.what} not finite at iteration {iteration + 1}")


class Measurements:
    """Scalars by name and iteration since the last look."""

    def __init__(self):
        self._values: dict[str, list[torch.Tensor]] = {}
        self._iterations: dict[str, list[int]] = {}

    def add(self, iteration: int, values: Mapping[str, torch.Tensor]) -> None:
        """Keep scalars of an iteration; there may be several of a name."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)
            self._iterations.setdefault(name, []).append(iteration)

    def take(self) -> dict[str, float]:
        """The means by name; what was kept is forgotten. This waits for the device.

        Raises:
            NotFinite: A value was not finite.
        """
        values = {name: torch.stack(kept).tolist() for name, kept in self._values.items()}
        broken = [
            (iteration, name)
            for name, numbers in values.items()
            for iteration, number in zip(self._iterations[name], numbers, strict=True)
            if not math.isfinite(number)
        ]
        self.__init__()
        if broken:
            first = min(iteration for iteration, _ in broken)
            raise NotFinite(sorted({name for iteration, name in broken if iteration == first}), first)
        return {name: fmean(numbers) for name, numbers in values.items()}


def total_norm(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The Euclidean norm of all values together; not finite where one of them is not."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor.float()) for tensor in tensors]))


def gradient_norms(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """The norm of the gradient of each part that has one, by `gradient_norm/PART`."""
    norms = {}
    for part, optimizer in optimizers.items():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            norms[f"gradient_norm/{part}"] = total_norm(gradients)
    return norms
