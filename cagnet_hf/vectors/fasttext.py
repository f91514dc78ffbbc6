"""The binary model of fastText (`.bin`): a header, a dictionary and the matrix of words and character n-grams.

Bojanowski et al., "Enriching Word Vectors with Subword Information" (arXiv 1607.04606); the layout is that of
fastText's own files, versions 11 and 12. The vector of a word of the dictionary is the mean of its own row and the
rows of its n-grams; a word that is not in it has the n-grams alone.
"""

import re
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np

from .word_streams import Blocks

MAGIC = struct.pack("<i", 793712314)
_ARGUMENTS = ("dim", "ws", "epoch", "minCount", "neg", "wordNgrams", "loss", "model", "bucket", "minn", "maxn", "lr")
_SUPERVISED = 3
_END_OF_SENTENCE = b"</s>"


def read_fasttext(blocks: Blocks, meet: Callable[[bytes], bool], compose: Iterable[bytes]) -> dict[bytes, np.ndarray]:
    """The vectors, `(E,)` float32, of the words that `meet` asks for and of the words to compose.

    Args:
        blocks: At the start of the file.
        meet: Called with each word of the dictionary; whether its vector is wanted.
        compose: Words to build from their n-grams where the dictionary lacks them.

    Raises:
        ValueError: The file is truncated, quantized, of another version, or its parts do not fit.
    """
    source = blocks.source
    blocks.skip(len(MAGIC))
    (version,) = struct.unpack("<i", blocks.take(4))
    if version not in (11, 12):
        raise ValueError(f"{source}: a fastText model of version {version}, not 11 or 12")
    arguments = dict(zip(_ARGUMENTS, struct.unpack("<12i", blocks.take(48)), strict=True))
    blocks.skip(8)  # t, a double
    size, num_words, _, _, pruned = struct.unpack("<3i2q", blocks.take(28))
    if version == 11 and arguments["model"] == _SUPERVISED:
        arguments["maxn"] = 0  # such models have no character n-grams, whatever they say
    dimension, bucket = arguments["dim"], arguments["bucket"]
    if not 0 < dimension <= 10_000 or not 0 <= num_words <= size or bucket < (arguments["maxn"] > 0):
        raise ValueError(
            f"{source}: a damaged header: dimension {dimension}, {num_words} words of {size} entries, {bucket} buckets"
        )
    if pruned > 0:
        raise ValueError(f"{source}: a pruned model; use the .bin or .vec file that it was made from")

    rows_of: dict[bytes, list[int]] = {}
    known = set()
    compose = set(compose)
    for row in range(size):
        word = blocks.take_until(b"\0")
        is_label = blocks.take(9)[8]  # an int64, the count, comes before
        if is_label:
            continue
        if word in compose:
            known.add(word)
        if meet(word):
            rows_of[word] = [row]
    for word in compose - known:
        rows_of[word] = []
    for word, rows in rows_of.items():
        if word != _END_OF_SENTENCE and pruned:  # 0: pruned to none
            buckets = ngram_buckets(word, arguments["minn"], arguments["maxn"], bucket)
            rows.extend(num_words + number for number in buckets)

    quantized, matrix_rows, columns = struct.unpack("<?2q", blocks.take(17))
    if quantized:
        raise ValueError(f"{source}: a quantized model (.ftz); use the .bin or .vec file that it was made from")
    if (matrix_rows, columns) != (num_words + bucket, dimension):
        raise ValueError(
            f"{source}: a matrix of {matrix_rows} x {columns}, but {num_words} words and {bucket} buckets of "
            f"dimension {dimension}; fetch the file again"
        )
    return _mean_rows(blocks, {word: rows for word, rows in rows_of.items() if rows}, matrix_rows, dimension)


def ngram_buckets(word: bytes, minn: int, maxn: int, bucket: int) -> list[int]:
    """The buckets of a word's n-grams of `minn` to `maxn` characters, `<` before and `>` after it.

    A lone `<` or `>` counts as no n-gram. The hash is 32-bit FNV-1a, which takes a byte as signed.
    """
    characters = re.findall(rb"[^\x80-\xbf][\x80-\xbf]*", b"<" + word + b">")  # UTF-8: a head and what continues it
    buckets = []
    for start in range(len(characters)):
        for end in range(start + max(minn, 1), min(start + maxn, len(characters)) + 1):
            if end - start == 1 and (start == 0 or end == len(characters)):
                continue
            buckets.append(_hash(b"".join(characters[start:end])) % bucket)
    return buckets


def _hash(ngram: bytes) -> int:
    value = 2166136261
    for byte in ngram:
        signed = byte | 0xFFFFFF00 if byte & 0x80 else byte
        value = (value ^ signed) * 16777619 & 0xFFFFFFFF
    return value


def _mean_rows(
    blocks: Blocks, rows_of: dict[bytes, list[int]], matrix_rows: int, dimension: int
) -> dict[bytes, np.ndarray]:
    """The mean of each word's rows of the matrix that `blocks` stands before; one pass over the rows that are used."""
    users = defaultdict(list)
    for word, rows in rows_of.items():
        for row in rows:
            users[row].append(word)
    users.setdefault(matrix_rows - 1, [])  # read the last row too, which a truncated file lacks
    sums = {word: np.zeros(dimension) for word in rows_of}
    next_row = 0
    for row in sorted(users):
        blocks.skip((row - next_row) * dimension * 4)
        vector = np.frombuffer(blocks.take(dimension * 4), dtype="<f4")
        for word in users[row]:
            sums[word] += vector
        next_row = row + 1
    return {word: (sums[word] / len(rows)).astype(np.float32) for word, rows in rows_of.items()}
