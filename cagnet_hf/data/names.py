"""What a user may have meant by a name that nobody knows, and how a name of anybody's is shown."""

import difflib
import html
import re
import unicodedata
from collections.abc import Iterable

# Controls, formats (among them what turns the direction of a text), lone surrogates, and ends of lines.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_MARKDOWN = re.compile(r"([\\`*\[\]|~$])")


def did_you_mean(word: object, known: Iterable[str], cutoff: float = 0.5) -> str:
    """`; did you mean 'WORD'?`, or nothing where no known word is near."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def nearest_keys(key: str, known: Iterable[tuple[str, str]]) -> str:
    """`; did you mean 'stages.pretrain.network.lr'?`: the nearest known keys, wherever they stand.

    Args:
        key: A dotted key that nobody knows.
        known: The keys that there are, each with its meaning, whose first words are another name of the key.
    """
    parents, _, name = key.rpartition(".")
    found: dict[str, float] = {}
    for path, meaning in known:
        others, _, leaf = path.rpartition(".")
        likeness = max(_likeness(name, leaf), _likeness(name, re.split("[;:,.]", meaning)[0], of_words=False))
        if likeness >= 0.6:
            found[path] = likeness + (1 if others.startswith(parents) else 0.9 * _likeness(parents, others))
    best = max(found.values(), default=0)
    nearest = [repr(path) for path, likeness in found.items() if likeness == best][:3]
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""


def _likeness(one: str, other: str, *, of_words: bool = True) -> float:
    """How much two names have in common, from 0 to 1; `of_words`: a word of one is nearly that one."""
    words, others = sorted((re.split("[^a-z0-9.]+", name.lower()) for name in (one, other)), key=len)
    if of_words and len(words) == 1 < len(others) and words[0] in others:
        return 0.9
    return difflib.SequenceMatcher(None, "".join(words), "".join(others)).ratio()


def has_hidden(text: str) -> bool:
    """Whether a text holds characters that show nothing and change what is around them, such as an end of line."""
    return any(unicodedata.category(character) in _HIDDEN for character in text)


def printable(text: object, *, lines: bool = False) -> str:
    """A text that changes nothing around it on a terminal or in a figure: hidden characters are written as escapes.

    Args:
        text: A name that anybody may have chosen.
        lines: Leave ends of lines and tabs as they are.
    """
    kept = "\n\t" if lines else ""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _HIDDEN and character not in kept
        else character
        for character in str(text)
    )


def markdown(text: object) -> str:
    """A name as Markdown that shows the name, and is no markup, no HTML and no end of a table's cell."""
    return html.escape(_MARKDOWN.sub(r"\\\1", printable(text)), quote=False)


def is_background(name: str) -> bool:
    """Whether a class is background: the pixels that were looked at and show none of the other classes."""
    return name.strip().lower() == "background"
