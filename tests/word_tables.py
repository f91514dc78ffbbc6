"""Small tables of word vectors in the formats that are distributed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

Table = Mapping[str, Sequence[float]]


def write_word2vec(path: Path, table: Table, *, row_end: bytes = b"\n", header: str | None = None) -> str:
    """Mikolov's tool ends a row with a line break, gensim with nothing."""
    dimension = len(next(iter(table.values())))
    rows = (word.encode() + b" " + np.array(row, "<f4").tobytes() + row_end for word, row in table.items())
    path.write_bytes((header or f"{len(table)} {dimension}").encode() + b"\n" + b"".join(rows))
    return str(path)


def write_vec(path: Path, table: Table, *, header: str | None = None) -> str:
    """The text of fastText, which ends a row with a space."""
    dimension = len(next(iter(table.values())))
    lines = [header or f"{len(table)} {dimension}", *(f"{row} " for row in _rows(table))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def write_glove(path: Path, table: Table) -> str:
    path.write_text("\n".join(_rows(table)) + "\n", encoding="utf-8")
    return str(path)


def _rows(table: Table) -> list[str]:
    return [f"{word} {' '.join(map(repr, np.asarray(row, np.float32).tolist()))}" for word, row in table.items()]
