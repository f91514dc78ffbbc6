"""Small tables of word vectors in the formats that are distributed."""

import struct
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


def write_fasttext(
    path: Path,
    table: Table,
    buckets: Sequence[Sequence[float]],
    *,
    ngrams: tuple[int, int] = (3, 6),
    labels: Sequence[str] = (),
    version: int = 12,
    model: int = 2,
    quantized: bool = False,
    pruned: int = -1,
) -> str:
    """fastText's own model: `table` has the words' own rows, `buckets` those of the n-grams."""
    dimension = len(next(iter(table.values())))
    arguments = [dimension, 5, 5, 1, 5, 1, 2, model, len(buckets), *ngrams, 100]
    data = struct.pack("<2i12id", 793712314, version, *arguments, 1e-4)
    data += struct.pack("<3i2q", len(table) + len(labels), len(table), len(labels), 1000, pruned)
    for kind, entries in enumerate((table, labels)):
        for entry in entries:
            data += entry.encode() + b"\0" + struct.pack("<qb", 10, kind)
    matrix = np.array([*table.values(), *buckets], "<f4")
    data += struct.pack("<?2q", quantized, *matrix.shape) + matrix.tobytes()
    data += struct.pack("<?2q", False, len(table), dimension) + bytes(4 * dimension * len(table))  # the output
    path.write_bytes(data)
    return str(path)


def _rows(table: Table) -> list[str]:
    return [f"{word} {' '.join(map(repr, np.asarray(row, np.float32).tolist()))}" for word, row in table.items()]
