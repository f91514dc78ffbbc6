"""The names that an ImageNet classifier knows: their text vectors, and which of them a word means.

The bundled table holds a vector for each of the 1,000 ImageNet classes, in the order of a classifier's outputs. The
text of a class is `lemmas: definition` of its WordNet synset, encoded by all-MiniLM-L6-v2 as the bundled class
embeddings are. `scripts/prepare_imagenet_names.py` makes the table.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from logging import getLogger
from pathlib import Path

import numpy as np
from safetensors import safe_open

from ..data.names import did_you_mean
from ..model.configuration_cagnet import plain_name
from ..model.prototypes_cagnet import NEAREST_COSINE
from .class_embeddings import BUNDLED, join_parts, read_metadata, read_table

logger = getLogger(__name__)

IMAGENET_TABLE = Path(__file__).with_name("imagenet_names.safetensors")
MEAN_POSTERIORS = Path(__file__).with_name("mean_posteriors.safetensors")


@dataclass(frozen=True)
class KnownNames:
    """What a classifier of images knows by name.

    Attributes:
        texts: The names, in the order of the classifier's outputs.
        vectors: `(K, E)` float32, rows of length 1.
        synsets: WordNet ids; empty where they are not known.
    """

    texts: tuple[str, ...]
    vectors: np.ndarray
    synsets: tuple[str, ...] = ()

    def positions(self, wanted: Iterable[str]) -> list[int]:
        """Which of the classes are meant by synset id, by one of the lemmas, or by the whole text.

        Raises:
            ValueError: There is no such class.
        """
        by_name: dict[str, list[int]] = {}
        for position, text in enumerate(self.texts):
            for name in {text, *lemmas(text), *self.synsets[position : position + 1]}:
                by_name.setdefault(plain_name(name), []).append(position)
        found: set[int] = set()
        for name in wanted:
            if plain_name(name) not in by_name:
                raise ValueError(f"{name!r} is no class of this classifier{did_you_mean(plain_name(name), by_name)}")
            found.update(by_name[plain_name(name)])
        return sorted(found)


def warn_of_strangers(names: Sequence[str], vectors: np.ndarray) -> None:
    """Warn of names, with vectors `(n, E)` in the space of the bundled ones, that are near nothing in ImageNet."""
    known = imagenet_names()
    for name, row in zip(names, vectors @ known.vectors.T, strict=True):
        if row.max() < NEAREST_COSINE:
            logger.warning(
                "%r: nothing near this name is known (the nearest is %r, similarity %.2f), so what the model makes of "
                "the class is a guess: say the name in other words, or give labels of the class",
                plain_name(name),
                lemmas(known.texts[row.argmax()])[0],
                row.max(),
            )


def mean_posteriors(backbone: str) -> np.ndarray:
    """How probable each ImageNet class is on average at a pixel of a photograph, `(1000,)` float32, to a backbone."""
    with safe_open(MEAN_POSTERIORS, framework="numpy") as table:
        if backbone not in table.keys():
            raise ValueError(f"backbone={backbone!r}: choose one of {', '.join(sorted(table.keys()))}")
        return table.get_tensor(backbone).astype(np.float32)


def lemmas(text: str) -> list[str]:
    """The names in `lemma, lemma: definition`."""
    return [lemma.strip() for lemma in text.partition(":")[0].split(",")]


@cache
def imagenet_names() -> KnownNames:
    """The bundled names of ImageNet's 1,000 classes."""
    metadata = read_metadata(IMAGENET_TABLE)
    vectors = np.stack(list(read_table(IMAGENET_TABLE).values()))
    return KnownNames(
        tuple(json.loads(metadata["names"])), join_parts([vectors]), tuple(json.loads(metadata["synsets"]))
    )


def known_names(names: Sequence[str] | None, source: str = BUNDLED) -> KnownNames:
    """The vectors of the names that a classifier of images has.

    Args:
        names: The classifier's names (`id2label`) in the order of its outputs; ImageNet's when None.
        source: `"bundled"`, or a table of the names that `cagnet-hf prepare_embeddings` made.

    Raises:
        ValueError: A name has no vector.
    """
    bundled = imagenet_names()
    if source == BUNDLED:
        if names is None or [lemmas(name) for name in names] == [lemmas(text) for text in bundled.texts]:
            return bundled
        raise ValueError(
            "the classifier's names are not ImageNet's: make a table of them with `cagnet-hf prepare_embeddings` from "
            "the encoder of the class embeddings, and give it as known_embeddings"
        )
    names = bundled.texts if names is None else names
    table = read_table(Path(source))
    missing = [name for name in names if plain_name(name) not in table]
    if missing:
        raise ValueError(f"{source}: no vector of {missing[0]!r}, which the classifier knows")
    return KnownNames(tuple(names), join_parts([np.stack([table[plain_name(name)] for name in names])]))
