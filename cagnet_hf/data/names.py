"""What a user may have meant by a name that nobody knows."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: object, known: Iterable[str], cutoff: float = 0.5) -> str:
    """`; did you mean 'WORD'?`, or nothing where no known word is near."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""
