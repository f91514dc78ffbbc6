"""Tables of word vectors: the asked words are picked out of a file of any size, which is read once, in blocks.

| name ends in | format |
|---|---|
| `.bin` | word2vec, binary; or fastText's own model, known by its first bytes |
| `.vec`, `.txt` | word2vec or fastText as text, with a first line `COUNT DIMENSION`; or GloVe, which has none |

Each of them also as `.gz`, and as the only file or the member `FILE.zip:MEMBER` of a zip archive.
"""

import difflib
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from .fasttext import MAGIC, read_fasttext
from .word_streams import BLOCK, Blocks, open_stream

_BEGINNING = 3  # bytes that near words share
_NEAR_WORDS = 300  # kept for each beginning: the first, in most tables the most frequent


@dataclass(frozen=True)
class FoundWords:
    """What a table holds of the asked words: vectors `(E,)` float32, and words of the same beginnings."""

    vectors: dict[str, np.ndarray]
    alike: dict[bytes, list[bytes]] = field(repr=False)

    def near(self, word: str) -> list[str]:
        """The up to three nearest words of the table, in lower case."""
        candidates = self.alike.get(_beginning(word.encode()), [])
        lower = dict.fromkeys(candidate.decode(errors="replace").lower() for candidate in candidates)
        return difflib.get_close_matches(word.lower(), lower, n=3)


def find_words(source: str, words: Iterable[str], *, compose: Iterable[str] = ()) -> FoundWords:
    """The vectors that a table has of the asked words, each as it is spelled.

    Args:
        source: A file, see above.
        words: What to look for; a word that the table lacks is absent from the result.
        compose: Words to build from their character n-grams where the table, a fastText `.bin`, lacks them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is of another format or an archive that cannot be read, is truncated, holds an asked
            word twice, or a row of another dimension; `compose` is given and the file is no fastText `.bin`.
    """
    search = _Search(source, words)
    compose = sorted(word.encode() for word in compose)
    with open_stream(source) as (name, file):
        suffix = name.lower().rpartition(".")[2]
        is_model = suffix == "bin" and file.peek(len(MAGIC)).startswith(MAGIC)
        if compose and not is_model:
            listed = b", ".join(compose).decode()
            raise ValueError(f"{source}: lacks {listed}; only a fastText .bin can build words from character n-grams")
        if is_model:
            vectors = read_fasttext(Blocks(source, file), search.meet, compose)
        elif suffix == "bin":
            vectors = _read_word2vec(Blocks(source, file), search.meet)
        elif suffix in ("vec", "txt"):
            vectors = _read_text(source, file, search.meet)
        else:
            raise ValueError(f"{source}: word vectors are a .bin, .vec or .txt file (or one of these as .gz or .zip)")
    return FoundWords({word.decode(): vector for word, vector in vectors.items()}, dict(search.alike))


class _Search:
    """Meets every word of a table: tells which are asked for, and remembers some that begin like these."""

    def __init__(self, source: str, words: Iterable[str]):
        self.source = source
        self.alike: dict[bytes, list[bytes]] = defaultdict(list)
        self._asked = {word.encode() for word in words}
        self._beginnings = {_beginning(word) for word in self._asked}
        self._rows: dict[bytes, int] = {}
        self._row = 0

    def meet(self, word: bytes) -> bool:
        self._row += 1
        beginning = _beginning(word)
        if beginning not in self._beginnings:
            return False
        if len(self.alike[beginning]) < _NEAR_WORDS:
            self.alike[beginning].append(word)
        if word not in self._asked:
            return False
        if word in self._rows:
            raise ValueError(
                f"{self.source}: rows {self._rows[word]} and {self._row} are both of the word {word.decode()!r}; "
                "delete one"
            )
        self._rows[word] = self._row
        return True


def _beginning(word: bytes) -> bytes:
    return word[:_BEGINNING].lower()


def _read_word2vec(blocks: Blocks, meet: Callable[[bytes], bool]) -> dict[bytes, np.ndarray]:
    """The layout of Mikolov's tool: the line `COUNT DIMENSION`; each word, a space and little-endian float32."""
    count, dimension = _parse_header(blocks.source, blocks.take_until(b"\n"))
    vectors = {}
    for _ in range(count):
        word = blocks.take_until(b" ").lstrip(b"\n")  # some writers end a row with a line break
        numbers = blocks.take(4 * dimension)
        if meet(word):
            vectors[word] = np.frombuffer(numbers, dtype="<f4")
    if blocks.rest(2).strip(b"\n"):
        raise ValueError(f"{blocks.source}: goes on after {count} rows of {dimension} numbers; its header is wrong")
    return vectors


def _parse_header(source: str, line: bytes) -> tuple[int, int]:
    fields = line.split()
    if len(fields) != 2 or not all(number.isdigit() for number in fields) or not 0 < int(fields[1]) <= 10_000:
        start = line[:40].decode(errors="replace")
        raise ValueError(f"{source}: starts with {start!r}, not with a line COUNT DIMENSION")
    return int(fields[0]), int(fields[1])


def _read_text(source: str, file: io.BufferedReader, meet: Callable[[bytes], bool]) -> dict[bytes, np.ndarray]:
    """A line for each word: it and its numbers, separated by single spaces."""
    lines = _lines(source, file)
    first = next(lines, b"")
    count = None
    if len(first.split()) == 2 and first.replace(b" ", b"").isdigit():
        count, dimension = _parse_header(source, first)
    else:
        dimension = first.count(b" ")
        lines = chain([first], lines)
    if not dimension:
        raise ValueError(f"{source}: its first line is neither COUNT DIMENSION nor a word and its numbers")
    vectors = {}
    row = 0
    for row, line in enumerate(lines, start=1):
        extra = line.count(b" ") - dimension
        word, _, numbers = line.partition(b" ")
        if extra > 0 and not _is_number(line.split(b" ", extra + 1)[extra]):
            continue  # a few tables have words with spaces in them, which no lookup asks for
        if extra:
            raise ValueError(
                f"{source}: row {row} ({word.decode(errors='replace')!r}) has {dimension + extra} numbers, "
                f"not {dimension}; the file is damaged, truncated, or separated by more than single spaces"
            )
        if meet(word):
            vectors[word] = _parse_numbers(source, row, numbers)
    if count not in (None, row):
        raise ValueError(f"{source}: {row} rows, but the first line says {count}; it is truncated or wrong")
    return vectors


def _lines(source: str, file: io.BufferedReader) -> Iterator[bytes]:
    """Lines without what ends them; one that is no line of a table is refused before it fills the memory."""
    while line := file.readline(BLOCK):
        if len(line) == BLOCK:
            raise ValueError(f"{source}: a line of over {BLOCK} bytes; this is no text table")
        if line := line.rstrip(b" \r\n"):
            yield line


def _parse_numbers(source: str, row: int, numbers: bytes) -> np.ndarray:
    try:
        return np.array([float(number) for number in numbers.split(b" ")], dtype=np.float32)
    except ValueError as error:
        raise ValueError(f"{source}: row {row} holds something else than numbers ({error})") from error


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
