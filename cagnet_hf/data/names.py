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
