"""Class names to vectors: the sources that can be read, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from cagnet_hf.data.benchmarks import Benchmark, load_benchmark
from cagnet_hf.model.configuration_cagnet import plain_name
from cagnet_hf.vectors.class_embeddings import BUNDLED_TABLE, load_class_embeddings, save_embedding_table

ANIMALS = Benchmark("animals", ("nothing", "cat", "polar_bear", "dog"), seen_ids=(3, 1), unseen_ids=(2,))
VECTORS = {"cat": [3.0, 4.0], "polar_bear": [0.0, 2.0], "dog": [5.0, 0.0]}
UNIT = [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]  # dog, cat, polar_bear: the model order


def write_json(path: Path, **changes) -> str:
    path.write_text(json.dumps({**VECTORS, **changes}))
    return str(path)


def write_npy(path: Path, rows) -> str:
    np.save(path, np.array(rows, dtype=np.float32))
    return str(path)


@pytest.mark.parametrize("name", ["pascal_voc", "pascal_context", "coco_stuff"])
@pytest.mark.parametrize("source", ["bundled", None])
def test_the_bundled_table_covers_the_published_benchmarks(name, source):
    benchmark = load_benchmark(name)
    embeddings = load_class_embeddings(source, benchmark)
    assert embeddings.shape == (len(benchmark.class_ids), 384)
    assert embeddings.dtype == np.float32
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(1)


def test_the_bundled_table_has_every_label_name_and_says_where_from():
    with safe_open(BUNDLED_TABLE, framework="numpy") as table:
        metadata = table.metadata()
    benchmarks = [load_benchmark(name) for name in ("pascal_voc", "pascal_context", "coco_stuff")]
    labels = {plain_name(name) for benchmark in benchmarks for name in benchmark.label_names}
    assert set(json.loads(metadata["names"])) == labels
    (source,) = json.loads(metadata["sources"])
    assert source["encoder"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert len(source["sha256"]["model.safetensors"]) == 64
    assert metadata["license"] == "apache-2.0"


def test_bundled_vectors_of_like_classes_are_near():
    voc = load_benchmark("pascal_voc")
    similarity = load_class_embeddings("bundled", voc) @ load_class_embeddings("bundled", voc).T
    cat, dog, bus = (voc.class_names.index(name) for name in ("cat", "dog", "bus"))
    assert similarity[cat, dog] > similarity[cat, bus]


def test_a_json_table_is_read_in_model_order(tmp_path):
    embeddings = load_class_embeddings(write_json(tmp_path / "table.json"), ANIMALS)
    assert embeddings == pytest.approx(np.array(UNIT))


def test_an_array_has_a_row_for_each_label_name(tmp_path):
    source = write_npy(tmp_path / "table.npy", [[0, 0], [3, 4], [0, 2], [5, 0]])  # the ignored row may be anything
    assert load_class_embeddings(source, ANIMALS) == pytest.approx(np.array(UNIT))


def test_a_saved_table_is_read_back(tmp_path):
    path = tmp_path / "table.safetensors"
    save_embedding_table(path, list(VECTORS), np.array(list(VECTORS.values())), {"encoder": "mine"})
    assert load_class_embeddings(str(path), ANIMALS) == pytest.approx(np.array(UNIT))
    with safe_open(path, framework="numpy") as table:
        assert table.metadata() == {"encoder": "mine", "names": json.dumps(list(VECTORS))}


@pytest.mark.parametrize("spelling", ["polar bear", "Polar-Bear", "POLAR_BEAR", " polar  bear "])
def test_names_are_found_however_they_are_spelled(tmp_path, spelling):
    table = {"cat": [1, 0], "dog": [1, 0], spelling: [0, 1]}
    (tmp_path / "table.json").write_text(json.dumps(table))
    assert load_class_embeddings(str(tmp_path / "table.json"), ANIMALS)[2].tolist() == [0, 1]


def test_parts_are_joined_as_they_are_and_normalised_once(tmp_path):
    first = write_npy(tmp_path / "first.npy", [[3.0]] * 4)
    second = write_npy(tmp_path / "second.npy", [[4.0]] * 4)
    assert load_class_embeddings(f"{first},{second}", ANIMALS)[0] == pytest.approx([0.6, 0.8])
    assert load_class_embeddings(f"{second}, {first}", ANIMALS)[0] == pytest.approx([0.8, 0.6])


def test_parts_may_be_normalised_first(tmp_path):
    first = write_npy(tmp_path / "first.npy", [[3.0]] * 4)
    second = write_npy(tmp_path / "second.npy", [[4.0]] * 4)
    embeddings = load_class_embeddings(f"{first},{second}", ANIMALS, normalize_parts=True)
    assert embeddings[0] == pytest.approx([0.5**0.5, 0.5**0.5])


# What is refused


def test_near_names_may_share_a_word_only(tmp_path):
    (tmp_path / "table.json").write_text(json.dumps({"cat": [1.0], "dog": [1.0], "bear": [1.0]}))
    with pytest.raises(ValueError, match=r"no embedding of class 'polar_bear' .*; near names: bear;"):
        load_class_embeddings(str(tmp_path / "table.json"), ANIMALS)


def test_a_class_without_an_embedding_is_named_with_its_near_names(tmp_path):
    (tmp_path / "table.json").write_text(json.dumps({"cat": [1.0], "dog": [1.0], "polar bears": [1.0]}))
    with pytest.raises(ValueError, match=r"no embedding of class 'polar_bear' .*; near names: polar bears;"):
        load_class_embeddings(str(tmp_path / "table.json"), ANIMALS)


def test_embeddings_of_two_sizes_are_refused(tmp_path):
    source = write_json(tmp_path / "table.json", dog=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"'dog' has size \(3,\), that of 'cat' \(2,\)"):
        load_class_embeddings(source, ANIMALS)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_embedding_that_is_not_finite_is_refused(tmp_path, value):
    source = write_json(tmp_path / "table.json", dog=[1.0, value])
    with pytest.raises(ValueError, match="class 'dog' has values that are not finite"):
        load_class_embeddings(source, ANIMALS)


def test_a_zero_embedding_is_refused_in_any_part(tmp_path):
    good = write_json(tmp_path / "good.json")
    zero = write_json(tmp_path / "zero.json", dog=[0.0, 0.0])
    with pytest.raises(ValueError, match=r"zero\.json: the embedding of class 'dog' is zero"):
        load_class_embeddings(f"{good},{zero}", ANIMALS)


def test_an_array_with_the_wrong_number_of_rows_is_refused(tmp_path):
    source = write_npy(tmp_path / "table.npy", UNIT)
    with pytest.raises(ValueError, match="3 rows, but benchmark animals has 4 label names"):
        load_class_embeddings(source, ANIMALS)


def test_an_object_array_is_refused(tmp_path):
    np.save(tmp_path / "table.npy", np.array([{}, {}, {}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="object arrays are refused"):
        load_class_embeddings(str(tmp_path / "table.npy"), ANIMALS)


def test_two_spellings_of_a_name_in_one_table_are_refused(tmp_path):
    source = write_json(tmp_path / "table.json", **{"Polar Bear": [1.0, 1.0]})
    with pytest.raises(ValueError, match="'Polar Bear' and 'polar_bear' are the same name"):
        load_class_embeddings(source, ANIMALS)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npy: no such file"):
        load_class_embeddings(str(tmp_path / "nowhere.npy"), ANIMALS)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "table.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"are a \.safetensors, \.json or \.npy file"):
        load_class_embeddings(str(tmp_path / "table.pkl"), ANIMALS)


def test_weights_are_no_embedding_table(tmp_path):
    save_file({"weight": np.ones((2, 2))}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not an embedding table"):
        load_class_embeddings(str(tmp_path / "model.safetensors"), ANIMALS)


@pytest.mark.parametrize("name", ["table.safetensors", "table.json", "table.npy"])
def test_a_damaged_file_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"not a table")
    with pytest.raises(ValueError, match=rf"{name}: not an? "):
        load_class_embeddings(str(tmp_path / name), ANIMALS)


def test_a_table_with_a_zero_vector_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="class 'dog' is zero"):
        save_embedding_table(tmp_path / "table.safetensors", ["cat", "dog"], np.array([[1.0], [0.0]]))
    assert not list(tmp_path.iterdir())


# The paper's vectors


@pytest.mark.parametrize("name", ["pascal_voc", "pascal_context", "coco_stuff"])
def test_the_papers_vectors_are_fasttext_then_word2vec(shared_dir, name):
    benchmark = load_benchmark(name)
    folder = shared_dir / "data/word_vectors"
    paths = [folder / f"{name}_{kind}.npy" for kind in ("fasttext", "word2vec")]
    embeddings = load_class_embeddings(",".join(map(str, paths)), benchmark)
    joined = np.concatenate([np.load(path) for path in paths], axis=1)
    for row, stored_id in zip(embeddings, benchmark.class_ids, strict=True):
        assert row == pytest.approx(joined[stored_id] / np.linalg.norm(joined[stored_id]), abs=1e-6)
    assert embeddings.shape == (len(benchmark.class_ids), 600)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SignSymbol", "sign symbol"),
        ("potted-plant", "potted plant"),
        ("Traffic_Light", "traffic light"),
        ("TVMonitor", "tv monitor"),
        ("TVmonitor", "tvmonitor"),
        ("McDonald", "mcdonald"),
        ("iPhone", "iphone"),
        ("Road lineMarking", "road line marking"),
    ],
)
def test_a_name_is_read_as_words(name, words):
    assert plain_name(name) == words
