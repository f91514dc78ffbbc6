"""Facts of the benchmarks: label names, seen/unseen splits, and the one map between stored ids and model order.

A *stored id* is the number in a mask of the dataset. *Model order* is what the package computes with: the seen
classes first, then the unseen ones, numbered from 0. `LabelMap` turns one into the other; training, evaluation and
prediction all use it.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

IGNORE_INDEX = 255


@dataclass(frozen=True)
class Benchmark:
    """Label names by stored id and the split into seen and unseen classes."""

    name: str
    label_names: tuple[str, ...]
    seen_ids: tuple[int, ...]
    unseen_ids: tuple[int, ...]
    ignored_ids: tuple[int, ...] = ()
    seen_ids_for_tuning: tuple[int, ...] = ()
    unannotated_ids: tuple[int, ...] = ()

    def __post_init__(self):
        both = set(self.seen_ids) & set(self.unseen_ids)
        if both:
            raise ValueError(f"benchmark {self.name}: ids {sorted(both)} are both seen and unseen")
        for stored_id in self.class_ids:
            if not 0 <= stored_id < len(self.label_names):
                raise ValueError(f"benchmark {self.name}: id {stored_id} has no label name")

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Stored ids in model order."""
        return self.seen_ids + self.unseen_ids

    @property
    def class_names(self) -> tuple[str, ...]:
        """Label names in model order."""
        return tuple(self.label_names[i] for i in self.class_ids)

    @property
    def label_map(self) -> "LabelMap":
        return LabelMap(self.class_ids, len(self.seen_ids), self.ignored_ids)

    def config_fields(self) -> dict:
        """What a model's configuration says about its classes (see `CaGNetConfig`)."""
        num_seen = len(self.seen_ids)
        return {
            "id2label": dict(enumerate(self.class_names)),
            "seen_ids": list(range(num_seen)),
            "unseen_ids": list(range(num_seen, len(self.class_ids))),
            "dataset_ids": list(self.class_ids),
            "ignored_dataset_ids": list(self.ignored_ids),
        }

    def for_tuning(self) -> "Benchmark":
        """The split that rates, schedules and calibrations are chosen on: some *seen* classes play the unseen ones.

        The truly unseen classes become ignored ids, so that nothing about them can leak into a choice.
        """
        if not self.seen_ids_for_tuning:
            raise ValueError(f"benchmark {self.name} names no seen classes for tuning")
        held_out = set(self.seen_ids_for_tuning)
        return Benchmark(
            name=self.name,
            label_names=self.label_names,
            seen_ids=tuple(i for i in self.seen_ids if i not in held_out),
            unseen_ids=self.seen_ids_for_tuning,
            ignored_ids=self.ignored_ids + self.unseen_ids,
            unannotated_ids=self.unannotated_ids,
        )


class LabelMap:
    """Maps stored masks to model order and predictions back to stored ids; ids it does not know are refused."""

    def __init__(self, class_ids, num_seen: int, ignored_ids=()):
        self.class_ids = np.asarray(class_ids, dtype=np.uint8)
        self._all = np.full(256, -1, dtype=np.int16)  # -1: not in the label set
        self._all[list(ignored_ids)] = IGNORE_INDEX
        self._all[IGNORE_INDEX] = IGNORE_INDEX
        self._all[self.class_ids] = np.arange(len(self.class_ids))
        self._seen = self._all.copy()
        self._seen[self.class_ids[num_seen:]] = IGNORE_INDEX

    @classmethod
    def of(cls, config) -> "LabelMap":
        """The map of a model's configuration."""
        return cls(config.dataset_ids, len(config.seen_ids), config.ignored_dataset_ids)

    def to_model_order(self, mask: np.ndarray, *, hide_unseen: bool = False, source: str = "mask") -> np.ndarray:
        """Stored ids `(H, W)` uint8 -> model order, uint8, 255 = ignored. The input is not changed.

        Args:
            mask: Stored ids.
            hide_unseen: Map unseen classes to 255, as in training.
            source: What to call the mask in an error (a file name or image id).

        Raises:
            ValueError: The mask holds an id outside the label set.
        """
        mask = np.asarray(mask)
        if mask.dtype != np.uint8 or mask.ndim != 2:
            raise ValueError(f"{source}: a mask is a 2-d uint8 array, got {mask.dtype} of shape {mask.shape}")
        mapped = self._all[mask]
        if mapped.min(initial=0) < 0:
            wrong = sorted(set(np.unique(mask[mapped < 0]).tolist()))
            raise ValueError(f"{source}: label {wrong[0]} is not in the label set (unknown ids: {wrong})")
        return (self._seen[mask] if hide_unseen else mapped).astype(np.uint8)

    def to_stored_ids(self, prediction: np.ndarray) -> np.ndarray:
        """Model order `(H, W)` -> stored ids, uint8."""
        return self.class_ids[np.asarray(prediction)]


@cache
def _facts() -> dict:
    return json.loads(Path(__file__).with_name("benchmarks.json").read_text(encoding="utf-8"))


def benchmark_names() -> list[str]:
    return sorted(_facts())


def load_benchmark(name: str) -> Benchmark:
    """The benchmark called `name` (see `benchmark_names`)."""
    facts = _facts()
    if name not in facts:
        raise ValueError(f"unknown benchmark {name!r}; known: {', '.join(benchmark_names())}")
    entry = facts[name]
    return Benchmark(
        name=name,
        label_names=tuple(entry["label_names"]),
        seen_ids=tuple(entry["seen_ids"]),
        unseen_ids=tuple(entry["unseen_ids"]),
        ignored_ids=tuple(entry["ignored_ids"]),
        seen_ids_for_tuning=tuple(entry["seen_ids_for_tuning"] or ()),
        unannotated_ids=tuple(entry.get("unannotated_ids", ())),
    )
