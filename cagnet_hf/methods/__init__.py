"""Methods: one file each, found by name through the registry in this module.

A method is a class derived from `base.Method` (or from another method) and marked with `@register`. Every file in this
folder is looked through; a class defined elsewhere is known once its module has been imported.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from .base import Method

# What the terms of the methods' losses are; each falls while training goes well, unless the text says otherwise.
LOSSES = {
    "classification": "how badly labelled pixels of seen classes are told apart (cross-entropy)",
    "classification_synthetic": "the same of made features at the pixels of a real step",
    "synthetic": "the same of made features in a step without images, of seen and unseen classes",
    "content": "how far made features are from real ones of their class",
    "moment_matching": "how far the moments of made features are from those of real ones of an image and class",
    "generator": "how well the critic tells made features from real ones; goes up and down, as the two compete",
    "critic": "how badly the critic tells them apart; goes up and down",
    "gradient_penalty": "how far the critic is from being smooth",
    "kl": "how far the latents of pixels are from a standard normal distribution",
}
SELF_TRAINED = "_st"  # the suffix of a row's name with self-training
_METHODS: list[type[Method]] = []
_Class = TypeVar("_Class", bound=type)


def register(method: _Class) -> _Class:
    """Make a class derived from `Method` known by the rows that `titles` names."""
    same = [known for known in _METHODS if (known.__module__, known.__name__) == (method.__module__, method.__name__)]
    for known in same:  # a cell of a notebook that is run again
        _METHODS.remove(known)
    taken = {row for known in _METHODS for row in known.titles} & method.titles.keys()
    if taken:
        raise ValueError(f"{method.__name__}: another method has the row {min(taken)!r}")
    _METHODS.append(method)
    return method


def methods() -> list[type[Method]]:
    """Every known method; those that only label pixels come last, as they fit any model."""
    _import_all()
    from .base import Method

    return [*_METHODS, Method]


@cache
def _import_all() -> None:
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")


def method_of(row: str, model: Mapping[str, Any]) -> type[Method]:
    """The method of a recipe.

    Args:
        row: What the recipe calls its method, such as `cagnet_pi_st`. Where no method has a row of that name, the
            parts of the model tell.
        model: The fields of the recipe's model.

    Raises:
        ValueError: Neither the name nor the parts are those of a method.
    """
    known = {name: method for method in methods() for name in method.titles}
    named = known.get(row.removesuffix(SELF_TRAINED))
    if named is not None:
        return named
    for method in methods():
        if all(_field(model, name) == value for name, value in method.parts.items()):
            return method
    raise ValueError(f"method {row!r}: no method of this name, and none for such a model; known: {', '.join(known)}")


def _field(model: Mapping[str, Any], name: str) -> Any:
    from ..model.configuration_cagnet import CaGNetConfig  # here: transformers takes seconds

    return model[name] if name in model else CaGNetConfig.__dataclass_fields__[name].default


def title_of(row: str) -> str:
    """What tables call a row: `cagnet_pi_st` -> `CaGNet(pi)+ST`; the name itself where no method knows the row."""
    titles = {name: title for method in methods() for name, title in method.titles.items()}
    base = row.removesuffix(SELF_TRAINED)
    if base not in titles:
        return row
    return titles[base] + ("+ST" if base != row else "")
