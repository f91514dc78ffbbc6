"""Files of word vectors: every format is read alike, in little memory, and a damaged file is refused in one line."""

import gzip
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from word_tables import write_glove, write_vec, write_word2vec

from cagnet_hf.vectors.word_tables import find_words

TABLE = {"the": [1.0, 2.0, 3.0], "zebra": [0.25, -1.5, 4.0], "Überfluss": [7.0, 0.1, 9.0], "last": [1.0, 1.0, 1e-8]}


def write_gensim(path: Path, table) -> str:
    return write_word2vec(path, table, row_end=b"")


FORMATS = {
    "word2vec.bin": write_word2vec,
    "gensim.bin": write_gensim,
    "fasttext.vec": write_vec,
    "glove.txt": write_glove,
}
every_format = pytest.mark.parametrize("name", FORMATS)


def found(source: str, *words: str) -> dict[str, list[float]]:
    return {word: vector.tolist() for word, vector in find_words(source, words).vectors.items()}


def expected(*words: str) -> dict[str, list[float]]:
    return {word: np.array(TABLE[word], np.float32).tolist() for word in words}


@every_format
def test_asked_words_are_found(tmp_path, name):
    source = FORMATS[name](tmp_path / name, TABLE)
    assert found(source, "zebra", "Überfluss", "last", "absent") == expected("zebra", "Überfluss", "last")


@every_format
def test_words_are_found_as_they_are_spelled(tmp_path, name):
    source = FORMATS[name](tmp_path / name, TABLE)
    assert found(source, "Zebra", "the") == expected("the")


@every_format
def test_a_table_may_be_compressed(tmp_path, name):
    source = Path(FORMATS[name](tmp_path / name, TABLE))
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(source.read_bytes()))
    assert found(f"{source}.gz", "zebra", "last") == expected("zebra", "last")


@every_format
def test_a_table_may_be_in_an_archive(tmp_path, name):
    source = Path(FORMATS[name](tmp_path / name, TABLE))
    with zipfile.ZipFile(tmp_path / "one.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(source, f"folder/{name}")
    with zipfile.ZipFile(tmp_path / "two.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("other.txt", "zebra 1 2 3")
        archive.write(source, name)
    assert found(str(tmp_path / "one.zip"), "zebra", "last") == expected("zebra", "last")
    assert found(f"{tmp_path}/two.zip:{name}", "zebra", "last") == expected("zebra", "last")
    with pytest.raises(ValueError, match=rf"two\.zip:FILE, for FILE one of: other\.txt, {name}$"):
        found(str(tmp_path / "two.zip"), "zebra")


def test_words_with_spaces_are_passed_over(tmp_path):
    source = write_glove(tmp_path / "glove.txt", {"the": [1.0], ". . .": [2.0], "at a@b.c": [3.0], "zebra": [4.0]})
    assert found(source, "zebra", ".") == {"zebra": [4.0]}


def test_near_words_are_those_of_the_same_beginning(tmp_path):
    table = {"zebras": [1.0], "Zebra": [1.0], "unzebra": [1.0], "zoo": [1.0]}
    words = find_words(write_glove(tmp_path / "glove.txt", table), ["zebbra"])
    assert (words.vectors, words.near("zebbra")) == ({}, ["zebra", "zebras"])


@every_format
def test_a_large_table_is_never_in_memory(tmp_path, name):
    """What is kept does not grow with the file."""
    rows = np.random.default_rng(0).standard_normal((10_000, 200), dtype=np.float32).round(3)
    source = FORMATS[name](tmp_path / name, {f"word{number}": row for number, row in enumerate(rows)})
    assert Path(source).stat().st_size > 8e6
    tracemalloc.start()
    vectors = find_words(source, ["word7", "word9999"]).vectors
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (vectors["word7"] == rows[7]).all()
    assert (vectors["word9999"] == rows[-1]).all()
    assert peak < 2.5e6


# What is refused


def assert_refused(source: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refusal:
        found(source, "the", "zebra", "last")
    message = str(refusal.value)
    assert message.startswith(source.partition(".zip:")[0])
    assert "\n" not in message


@pytest.mark.parametrize("name", ["word2vec.bin", "gensim.bin", "fasttext.vec"])
@pytest.mark.parametrize("kept", [0.4, 0.6])
def test_a_truncated_table_is_refused(tmp_path, name, kept):
    source = Path(FORMATS[name](tmp_path / name, TABLE))
    data = source.read_bytes()
    source.write_bytes(data[: int(kept * len(data))])
    assert_refused(str(source), "ends early|truncated")


@every_format
def test_a_table_that_lacks_its_last_numbers_is_refused(tmp_path, name):
    source = Path(FORMATS[name](tmp_path / name, TABLE))
    data = source.read_bytes()
    source.write_bytes(data[:-6] if name.endswith(".bin") else data[: data.rstrip().rindex(b" ")])
    assert_refused(str(source), "ends early|has 2 numbers, not 3; the file is damaged, truncated")


@pytest.mark.parametrize("name", ["word2vec.bin", "fasttext.vec"])
@pytest.mark.parametrize("header", ["5 3", "3 3", "4 2", "4 4"])
def test_a_wrong_header_is_refused(tmp_path, name, header):
    source = FORMATS[name](tmp_path / name, TABLE)
    Path(source).write_bytes(header.encode() + Path(source).read_bytes()[3:])
    assert_refused(source, "header|row 1|first line says")


@pytest.mark.parametrize("header", ["words", "4 3 2", "4 -3", "4 0", "4 1000000"])
def test_a_binary_file_with_another_first_line_is_refused(tmp_path, header):
    source = write_word2vec(tmp_path / "word2vec.bin", TABLE, header=header)
    assert_refused(source, f"starts with '{header}', not with a line COUNT DIMENSION")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("zebra 1 2", r"row 2 \('zebra'\) has 2 numbers, not 3"),
        ("zebra 1 2 3 4", r"row 2 \('zebra'\) has 4 numbers, not 3"),
        ("zebra 1 two 3", "row 2 holds something else than numbers"),
        ("zebra 1  3", "row 2 holds something else than numbers"),
        ("the 4 5 6", "rows 1 and 2 are both of the word 'the'"),
    ],
)
@pytest.mark.parametrize("header", ["", "2 3\n"])
def test_a_damaged_row_is_refused(tmp_path, header, row, reason):
    (tmp_path / "table.txt").write_text(f"{header}the 1 2 3\n{row}\n")
    assert_refused(str(tmp_path / "table.txt"), reason)


def test_a_word_that_is_twice_in_a_binary_table_is_refused(tmp_path):
    source = Path(write_word2vec(tmp_path / "word2vec.bin", TABLE))
    source.write_bytes(source.read_bytes().replace(b"last", b"the"))
    assert_refused(str(source), "rows 1 and 4 are both of the word 'the'; delete one")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"word\n", bytes(300_000)])
def test_a_file_that_is_no_text_table_is_refused(tmp_path, content):
    (tmp_path / "table.txt").write_bytes(content)
    assert_refused(str(tmp_path / "table.txt"), "its first line is neither|no text table")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "table.h5").write_bytes(b"data")
    assert_refused(str(tmp_path / "table.h5"), r"word vectors are a \.bin, \.vec or \.txt file")


def test_fasttext_s_own_model_is_refused_with_what_to_take_instead(tmp_path):
    (tmp_path / "model.bin").write_bytes((793712314).to_bytes(4, "little") + bytes(100))
    assert_refused(str(tmp_path / "model.bin"), "fastText's own model; take its vectors as text, the .vec of the")


@pytest.mark.parametrize("suffix", ["gz", "zip"])
def test_a_damaged_archive_is_refused(tmp_path, suffix):
    source = Path(
        write_glove(tmp_path / "glove.txt", {f"{word}{i}": TABLE[word] for word in TABLE for i in range(99)})
    )
    packed = tmp_path / f"glove.txt.{suffix}"
    if suffix == "gz":
        packed.write_bytes(gzip.compress(source.read_bytes()))
    else:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(source, "glove.txt")
    data = packed.read_bytes()
    packed.write_bytes(data[: len(data) // 2])
    assert_refused(str(packed), "damaged or truncated")
    packed.write_bytes(b"no archive")
    assert_refused(str(packed), "damaged or truncated")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.vec: no such file of word vectors"):
        found(str(tmp_path / "absent.vec"), "the")
