"""Class names in tables of word vectors: which words of a table stand for a name.

A name is looked up whole, its words joined by `_` or `-`; failing that, it is the mean of its words' vectors as the
table has them, of whatever length. Each spelling is tried as written, in lower case, Capitalised and in UPPER CASE,
in that order. So were the vectors of the paper's release made, as far as the rows of `wall-wood`, `sky-other` and
their like tell; for the names where it deviates there are synonyms.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from ..data.names import did_you_mean
from ..files import parse_yaml
from ..model.configuration_cagnet import name_words, plain_name
from .word_tables import FoundWords, find_words

Synonyms = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class NamedVectors:
    """The vectors of names, `(E,)` float32 each, and the words that each is the mean of."""

    vectors: dict[str, np.ndarray]
    words: dict[str, list[str]]


def look_up_names(
    names: Iterable[str], source: str, *, synonyms: Synonyms | None = None, optional: Collection[str] = ()
) -> NamedVectors:
    """The vectors of class names in a table of word vectors (see `word_tables` for what it may be).

    Args:
        names: The class names.
        source: The table.
        synonyms: What to look up for a name instead: another name, or a list of words to take the mean of.
        optional: Those of the names that may be missing from the table, and then from the result.

    Raises:
        ValueError: The table lacks a name (all such names are listed, with near words), or cannot be read.
    """
    synonyms = {plain_name(name): meant for name, meant in (synonyms or {}).items()}
    meant = {name: synonyms.get(plain_name(name), name) for name in names}
    found = find_words(source, {spelling for item in meant.values() for spelling in _spellings_to_ask(item)})
    words = {name: _words_of(item, found) for name, item in meant.items()}
    missing = [name for name in meant if not words[name] and name not in optional]
    if missing:
        reasons = ", ".join(_reason(name, meant[name], found) for name in missing)
        raise ValueError(
            f"{source}: no vector of {reasons}; --synonyms FILE can name a word of the table for each of them"
        )
    words = {name: used for name, used in words.items() if used}
    vectors = {name: np.mean([found.vectors[word] for word in used], axis=0) for name, used in words.items()}
    return NamedVectors(vectors, words)


def load_synonyms(path: str | Path, names: Iterable[str]) -> dict[str, str | list[str]]:
    """A YAML file of class names, each with the name or the list of words to look up instead.

    Raises:
        ValueError: The file is no such mapping, or has a name that is none of `names`.
    """
    known = {plain_name(name) for name in names}
    try:
        synonyms = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({error})") from error
    if not isinstance(synonyms, dict):
        raise ValueError(f"{path}: synonyms are lines `name: word`, or `name: [word, word]` for their mean")
    for name, meant in synonyms.items():
        words = meant if isinstance(meant, list) else [meant]
        if not words or not all(isinstance(word, str) and name_words(word) for word in [name, *words]):
            raise ValueError(f"{path}: {name!r} has {meant!r}, but a synonym is a name or a list of words")
        if plain_name(name) not in known:
            hint = did_you_mean(plain_name(name), known)
            raise ValueError(f"{path}: {name!r} is none of the class names{hint}")
    return synonyms


def _spellings(words: Sequence[str]) -> list[str]:
    """How a table may spell these words as one entry, the likeliest first."""
    cases = [list(words), *([case(word) for word in words] for case in (str.lower, str.capitalize, str.upper))]
    return list(dict.fromkeys(joiner.join(case) for case in cases for joiner in "_-"))


def _spellings_to_ask(meant: str | Sequence[str]) -> list[str]:
    whole = _spellings(name_words(meant)) if isinstance(meant, str) else []
    return whole + [spelling for word in _parts(meant) for spelling in _spellings([word])]


def _parts(meant: str | Sequence[str]) -> list[str]:
    return name_words(meant) if isinstance(meant, str) else list(meant)


def _words_of(meant: str | Sequence[str], found: FoundWords) -> list[str]:
    """The words of the table that stand for a name; none where one is missing."""
    if isinstance(meant, str) and (whole := _first(_spellings(name_words(meant)), found)):
        return [whole]
    words = [_first(_spellings([word]), found) for word in _parts(meant)]
    return [word for word in words if word] if all(words) else []


def _first(spellings: Iterable[str], found: FoundWords) -> str | None:
    return next((spelling for spelling in spellings if spelling in found.vectors), None)


def _reason(name: str, meant: str | Sequence[str], found: FoundWords) -> str:
    """A missing name, for which of its words, and what is near these."""
    missing = [word for word in _parts(meant) if not _first(_spellings([word]), found)]
    near = [near for word in missing for near in found.near(word)]
    reason = "" if missing == [name] else f"no {', '.join(map(repr, missing))}"
    hint = f"near: {', '.join(near)}" if near else ""
    return f"{name!r}" + (f" ({'; '.join(filter(None, [reason, hint]))})" if reason or hint else "")
