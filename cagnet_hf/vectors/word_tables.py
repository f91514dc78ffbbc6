"""Tables of word vectors: the asked words are picked out of a file of any size, which is read once, in blocks.

| name ends in | format |
|---|---|
| `.bin` | word2vec, binary |
| `.vec`, `.txt` | word2vec or fastText as text, with a first line `COUNT DIMENSION`; or GloVe, which has none |

Each of them also as `.gz`, and as the only file or the member `FILE.zip:MEMBER` of a zip archive.
"""

import difflib
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from .word_streams import BLOCK, open_stream

_MAX_WORD = 4096  # bytes; a longer "word" means that numbers are read as text
_FASTTEXT_MODEL = (793712314).to_bytes(4, "little")  # how fastText's own models begin
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


def find_words(source: str, words: Iterable[str]) -> FoundWords:
    """The vectors that a table has of the asked words, each as it is spelled.

    Args:
        source: A file, see above.
        words: What to look for; a word that the table lacks is absent from the result.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is of another format or an archive that cannot be read, is truncated, or holds an asked
            word twice, or a row of another dimension.
    """
    asked = {word.encode() for word in words}
    beginnings = {_beginning(word) for word in asked}
    vectors, row_of, alike = {}, {}, defaultdict(list)
    with open_stream(source) as (name, file):
        suffix = name.lower().rpartition(".")[2]
        if suffix not in ("bin", "vec", "txt"):
            raise ValueError(f"{source}: word vectors are a .bin, .vec or .txt file (or one of these as .gz or .zip)")
        rows, parse = (_binary_rows, _floats_of_bytes) if suffix == "bin" else (_text_rows, _floats_of_text)
        for row, (word, numbers) in enumerate(rows(source, file), start=1):
            beginning = _beginning(word)
            if beginning not in beginnings:
                continue
            if len(alike[beginning]) < _NEAR_WORDS:
                alike[beginning].append(word)
            if word in asked:
                if word in row_of:
                    both = f"rows {row_of[word]} and {row} are both of the word {word.decode()!r}"
                    raise ValueError(f"{source}: {both}; delete one")
                row_of[word] = row
                try:
                    vectors[word.decode()] = parse(numbers)
                except ValueError as error:
                    raise ValueError(f"{source}: row {row} holds something else than numbers ({error})") from error
    return FoundWords(vectors, dict(alike))


def _beginning(word: bytes) -> bytes:
    return word[:_BEGINNING].lower()


def _binary_rows(source: str, file: io.BufferedReader) -> Iterator[tuple[bytes, bytes]]:
    """The layout of Mikolov's tool: the line `COUNT DIMENSION`; each word, a space and little-endian float32."""
    if file.peek(len(_FASTTEXT_MODEL)).startswith(_FASTTEXT_MODEL):
        raise ValueError(f"{source}: fastText's own model; take its vectors as text, the .vec of the same name")
    count, dimension = _parse_header(source, file.readline(_MAX_WORD).rstrip(b"\n"))
    block, at = b"", 0
    for _ in range(count):
        while (space := block.find(b" ", at)) < 0 or len(block) <= space + 4 * dimension:
            if space < 0 and len(block) - at > _MAX_WORD:
                raise ValueError(f"{source}: a word of more than {_MAX_WORD} bytes; the header does not fit the file")
            more = file.read(BLOCK)
            if not more:
                raise ValueError(f"{source}: ends early; it is truncated, or its header does not fit: fetch it again")
            block, at = block[at:] + more, 0
        word, at = block[at:space].lstrip(b"\n"), space + 1 + 4 * dimension  # some writers end a row with a line break
        yield word, block[space + 1 : at]
    if (block[at : at + 2] + file.read(2)).strip(b"\n"):
        raise ValueError(f"{source}: goes on after {count} rows of {dimension} numbers; its header is wrong")


def _text_rows(source: str, file: io.BufferedReader) -> Iterator[tuple[bytes, bytes]]:
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
    row = 0
    for row, line in enumerate(lines, start=1):
        extra = line.count(b" ") - dimension
        word, _, numbers = line.partition(b" ")
        if extra > 0 and not _is_number(line.split(b" ", extra + 1)[extra]):
            word, *_ = line.rsplit(b" ", dimension)  # a few tables have words with spaces, which no lookup asks for
        elif extra:
            raise ValueError(
                f"{source}: row {row} ({word.decode(errors='replace')!r}) has {dimension + extra} numbers, "
                f"not {dimension}; the file is damaged, truncated, or separated by more than single spaces"
            )
        yield word, numbers
    if count not in (None, row):
        raise ValueError(f"{source}: {row} rows, but the first line says {count}; it is truncated or wrong")


def _lines(source: str, file: io.BufferedReader) -> Iterator[bytes]:
    """Lines without what ends them; one that is no line of a table is refused before it fills the memory."""
    while line := file.readline(BLOCK):
        if len(line) == BLOCK:
            raise ValueError(f"{source}: a line of over {BLOCK} bytes; this is no text table")
        if line := line.rstrip(b" \r\n"):
            yield line


def _parse_header(source: str, line: bytes) -> tuple[int, int]:
    fields = line.split()
    if len(fields) != 2 or not all(number.isdigit() for number in fields) or not 0 < int(fields[1]) <= 10_000:
        start = line[:40].decode(errors="replace")
        raise ValueError(f"{source}: starts with {start!r}, not with a line COUNT DIMENSION")
    return int(fields[0]), int(fields[1])


def _floats_of_bytes(numbers: bytes) -> np.ndarray:
    return np.frombuffer(numbers, dtype="<f4")


def _floats_of_text(numbers: bytes) -> np.ndarray:
    return np.array([float(number) for number in numbers.split(b" ")], dtype=np.float32)


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
