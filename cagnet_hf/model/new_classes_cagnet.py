"""Classes of a trained model: new ones by their embeddings alone, old ones removed or renamed."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_cagnet import STORED_IDS, plain_name

# Of the variance of the new logits; chosen on held-out classes (model_cards/new_classes.md).
VARIANCE_PENALTY = 0.001


class _Class(NamedTuple):
    """A class of a model as its configuration describes it."""

    name: str
    seen: bool
    dataset_id: int


class EditableClasses:
    """What a segmenter does with its list of classes once it is trained; all of it changes the model in place."""

    @torch.inference_mode(False)
    def add_classes(
        self,
        names: Sequence[str],
        embeddings,
        *,
        dataset_ids: Sequence[int] | None = None,
        bias: float = 0.0,
        pixels_per_class: int = 256,
        seed: int = 0,
    ) -> None:
        """Teach the model new, unseen classes from their embeddings; no image is involved, seconds on a CPU.

        The generator makes features of the new classes and, as rehearsal, of as many of each old one. Only the new
        rows of the class head learn, against the logits of the old ones, which stay as they are: a pixel that an old
        class loses, it loses to a new class. A projection (SPNet) needs no training, only the embeddings; with a
        Gaussian generator the new rows are its Bayes rule, with the prior of the other unseen classes.

        Args:
            names: Names of the new classes.
            embeddings: `(n, E)` array or tensor, from the source of the model's own class embeddings. They are given
                the length of the model's own.
            dataset_ids: The ids that stored masks use for them; the next free ones when None.
            bias: Is added to the logits of the new classes: above 0 they win more pixels, right and wrong ones. A
                projection has no bias.
            pixels_per_class: Synthetic features of each class.
            seed: Of the latents; the global random state is left alone.

        Raises:
            ValueError: A name is taken or given twice; an embedding has the wrong size, is zero or not finite; an id
                is taken; the model cannot synthesise features.
        """
        config, classes = self.config, _classes(self.config)
        if isinstance(names, str):
            raise ValueError(f"names is a list of names, got {names!r}: write [{names!r}]")
        names = [name.strip() for name in names]
        if not names:
            raise ValueError("no names: name at least one new class")
        check_new_names(config, names)
        embeddings = self._checked_embeddings(names, embeddings)
        dataset_ids = _checked_dataset_ids(config, names, dataset_ids)
        if not math.isfinite(bias):
            raise ValueError(f"bias={bias}: it is added to logits, so choose a finite number")
        rows = None
        if self.classifier.learns:
            weights, biases = self._new_rows(embeddings, pixels_per_class, seed)
            rows = weights, biases + bias
        elif bias:
            raise ValueError(f"bias={bias}: a projection onto the class embeddings has no bias")
        new = [_Class(name, False, dataset_id) for name, dataset_id in zip(names, dataset_ids, strict=True)]
        _set_classes(config, classes + new, {*config.ignored_dataset_ids} - {*dataset_ids})
        self._set_rows(list(range(len(classes))), embeddings, rows)

    @torch.inference_mode(False)
    def remove_classes(self, names: Sequence[str]) -> None:
        """Forget classes; their pixels go to the class with the next highest score.

        Their stored ids become ignored ones, so that masks which show them can still be read.

        Raises:
            ValueError: There is no such class, or none would be left.
        """
        config, classes = self.config, _classes(self.config)
        removed = {_class_id(config, name) for name in ([names] if isinstance(names, str) else names)}
        kept = [i for i in range(len(classes)) if i not in removed]
        if not kept:
            raise ValueError("no class would be left: keep at least one")
        ignored = {*config.ignored_dataset_ids} | {classes[i].dataset_id for i in removed}
        _set_classes(config, [classes[i] for i in kept], ignored)
        self._set_rows(kept, self.class_embeddings[:0])

    def rename_classes(self, new_names: Mapping[str, str]) -> None:
        """Call classes otherwise, `{old: new}`; what the model predicts does not change.

        Raises:
            ValueError: There is no such class, or two would have one name.
        """
        config = self.config
        renamed = {_class_id(config, old): new.strip() for old, new in new_names.items()}
        others = [name for i, name in config.id2label.items() if i not in renamed]
        _check_names(others, renamed.values())
        classes = [old._replace(name=renamed.get(i, old.name)) for i, old in enumerate(_classes(config))]
        _set_classes(config, classes, config.ignored_dataset_ids)

    def _checked_embeddings(self, names: Sequence[str], embeddings) -> torch.Tensor:
        """`(n, E)`, like the model's own."""
        own = self.class_embeddings
        embeddings = torch.as_tensor(embeddings).to(own.device, torch.float32)
        if embeddings.shape != (len(names), own.shape[1]):
            raise ValueError(
                f"{len(names)} new classes need embeddings of shape {(len(names), own.shape[1])}, "
                f"got {tuple(embeddings.shape)}: they come from the source of the model's own"
            )
        lengths = embeddings.norm(dim=1, keepdim=True)
        for name, length in zip(names, lengths.flatten().tolist(), strict=True):
            if not 0 < length < float("inf"):
                raise ValueError(f"the embedding of class {name!r} is zero or not finite")
        return (embeddings / lengths * own.float().norm(dim=1).mean()).to(own.dtype)

    def _set_rows(self, kept: list[int], embeddings, rows=None) -> None:
        """Keep the given rows of all that has one per class; append the new ones."""
        self.class_embeddings = torch.cat([self.class_embeddings[kept], embeddings])
        self.classifier.set_classes(kept, rows)
        if self.generator is not None:
            self.generator.set_classes(kept, len(embeddings))

    def _new_rows(self, embeddings, pixels_per_class: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights `(n, C)` and biases `(n,)` of the new classes in the class head.

        By the generator's own rule where it has one; else they are trained, which is a convex problem.
        """
        rows = self.classifier.new_rows(embeddings)
        if rows is not None:
            return rows
        if self.generator is None:
            raise ValueError("this model has no generator to make features of new classes with")
        old = self.class_embeddings
        rows = self.generator.new_rows(self.classifier, old, embeddings, self.config.unseen_ids)
        if rows is not None:
            return rows
        table = torch.cat([old, embeddings])
        truth = torch.arange(len(table), device=table.device).repeat(pixels_per_class)
        with torch.no_grad(), evaluating(self.generator, self.classifier):
            inputs = self._head_inputs(table[truth], seed).float()  # (P, C)
        head = self.classifier.class_head
        old_weight, old_bias = head.weight.detach().flatten(1).float(), head.bias.detach().float()
        old_logits = F.linear(inputs, old_weight, old_bias)  # (P, N)
        weight = torch.zeros(len(embeddings), inputs.shape[1], device=inputs.device, requires_grad=True)
        bias = old_logits.mean().expand(len(embeddings)).clone().requires_grad_()
        penalty = VARIANCE_PENALTY * inputs.var(dim=0).sum()
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            logits = torch.cat([old_logits, F.linear(inputs, weight, bias)], dim=1)
            loss = F.cross_entropy(logits, truth) + penalty * weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        return weight.detach(), bias.detach()

    def _head_inputs(self, embeddings: torch.Tensor, seed: int) -> torch.Tensor:
        """What the class head sees of synthetic pixels of classes with these embeddings: `(P, E)` -> `(P, C)`.

        Patch-wise, each is the centre of a patch of its class.
        """
        side = self.classifier.neighbourhood
        maps = embeddings.t()[None, :, None]  # (1, E, 1, P)
        latent = self.generator.draw_latent(
            (1, self.generator.latent_size, 1, len(embeddings)), generator=torch.Generator().manual_seed(seed)
        ).to(maps)
        maps, latent = (m.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3) for m in (maps, latent))
        return self.classifier.head_inputs(self.generator(maps, latent))[0, :, 0].t()


@contextmanager
def evaluating(*parts: nn.Module):
    """Within, the parts are in evaluation mode; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for part in parts for module in part.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def check_new_names(
    config, names: Sequence[str], *, removed: Sequence[str] = (), renamed: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Refuse new classes that a model has, from its configuration alone.

    Args:
        names: Names of the new classes.
        removed, renamed: What is done with classes of the model before.

    Raises:
        ValueError: A name is taken, given twice or empty, or one of the other classes is none of the model's.
    """
    known = dict(config.id2label)
    for name in removed:
        known.pop(_class_id(config, name), None)
    known |= {_class_id(config, old): new for old, new in renamed.items()}
    _check_names(known.values(), names)


def _class_id(config, name: str) -> int:
    ids = {plain_name(known): i for i, known in config.id2label.items()}
    if plain_name(name) not in ids:
        raise ValueError(f"no class {name!r}; the model has {', '.join(config.id2label.values())}")
    return ids[plain_name(name)]


def _check_names(taken: Iterable[str], names: Iterable[str]) -> None:
    known = {plain_name(name): name for name in taken}
    for name in names:
        if not plain_name(name):
            raise ValueError("a class needs a name")
        if plain_name(name) in known:
            raise ValueError(f"two classes would be called {name!r} (and {known[plain_name(name)]!r}): names differ")
        known[plain_name(name)] = name


def _checked_dataset_ids(config, names: Sequence[str], dataset_ids: Sequence[int] | None) -> list[int]:
    taken = set(config.dataset_ids)
    if dataset_ids is None:
        used = taken | set(config.ignored_dataset_ids)
        top = max(config.dataset_ids, default=-1)
        free = [i for i in [*range(top + 1, STORED_IDS), *range(top)] if i not in used]
        if len(free) < len(names):
            raise ValueError(f"{len(names)} new classes, but stored masks have {len(free)} ids left")
        return free[: len(names)]
    dataset_ids = [int(i) for i in dataset_ids]
    if len(dataset_ids) != len(names):
        raise ValueError(f"{len(names)} new classes, but {len(dataset_ids)} dataset_ids: give one for each")
    for position, i in enumerate(dataset_ids):
        if i in taken or i in dataset_ids[:position] or not 0 <= i < STORED_IDS:
            raise ValueError(f"dataset id {i} of {names[position]!r} is taken or none of 0 to {STORED_IDS - 1}")
    return dataset_ids


def _classes(config) -> list[_Class]:
    """The classes in model order."""
    num_seen = len(config.seen_ids)
    return [_Class(config.id2label[i], i < num_seen, config.dataset_ids[i]) for i in range(config.num_labels)]


def _set_classes(config, classes: list[_Class], ignored_dataset_ids) -> None:
    """Write the classes into the configuration, once they have passed its own check."""
    fields = {
        "id2label": {i: entry.name for i, entry in enumerate(classes)},
        "label2id": {entry.name: i for i, entry in enumerate(classes)},
        "seen_ids": [i for i, entry in enumerate(classes) if entry.seen],
        "unseen_ids": [i for i, entry in enumerate(classes) if not entry.seen],
        "dataset_ids": [entry.dataset_id for entry in classes],
        "ignored_dataset_ids": sorted(ignored_dataset_ids),
    }
    trial = copy.deepcopy(config)
    for target in (trial, config):
        for field, value in fields.items():
            setattr(target, field, value)
        target.check()
