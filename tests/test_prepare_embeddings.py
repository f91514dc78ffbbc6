"""Class names to a table: the rules of looking names up, the command, and the paper's own vectors."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_encoders import write_bert
from word_tables import write_glove, write_vec, write_word2vec

from cagnet_hf import CaGNetConfig, CaGNetForSemanticSegmentation, CaGNetImageProcessor
from cagnet_hf.data.benchmarks import Benchmark, load_benchmark
from cagnet_hf.model.configuration_cagnet import plain_name
from cagnet_hf.vectors.class_embeddings import load_class_embeddings
from cagnet_hf.vectors.new_classes import embed_names
from cagnet_hf.vectors.text_encoders import encode_names
from cagnet_hf.vectors.word_names import load_synonyms, look_up_names

ANIMALS = Benchmark("animals", ("nothing", "cat", "polar_bear", "dog"), seen_ids=(3, 1), unseen_ids=(2,))
WORDS = {"cat": [3.0, 4.0], "polar": [1.0, 1.0], "bear": [3.0, -1.0], "Dog": [5.0, 0.0]}


@pytest.fixture
def words(tmp_path) -> str:
    return write_glove(tmp_path / "words.txt", WORDS)


@pytest.fixture
def call(load_script, tmp_path, capsys):
    """`call(*arguments)`: (exit code, error lines, printed lines) of the command; it writes `table.safetensors`."""

    def run(*arguments):
        output = str(tmp_path / "table.safetensors")
        code = load_script("prepare_embeddings").main(["--output", output, *map(str, arguments)])
        printed = capsys.readouterr()
        return code, [line for line in printed.err.splitlines() if "error" in line.lower()], printed.out.splitlines()

    return run


@pytest.fixture
def make(call, tmp_path):
    """`make(*arguments)`: (vectors by name, metadata) of the table that the command writes."""

    def run(*arguments) -> tuple[dict[str, list[float]], dict[str, str]]:
        code, errors, _ = call(*arguments, "--overwrite")
        assert (code, errors) == (0, [])
        with safe_open(tmp_path / "table.safetensors", framework="numpy") as table:
            metadata = table.metadata()
            return dict(zip(json.loads(metadata["names"]), table.get_tensor("embeddings"), strict=True)), metadata

    return run


def assert_refused(result, reason: str) -> None:
    code, errors, _ = result
    assert (code, len(errors)) == (2, 1)
    assert errors[0].startswith("error: ")
    assert reason in errors[0]


# How a name is looked up


def words_for(tmp_path: Path, entries: list[str], name: str, **options) -> list[str]:
    source = write_glove(tmp_path / "words.txt", {entry: [1.0 + i] for i, entry in enumerate(entries)})
    return look_up_names([name], source, **options).words[name]


@pytest.mark.parametrize(
    ("entries", "used"),
    [
        (["polar", "bear", "polar_bear", "polar-bear"], ["polar_bear"]),
        (["polar", "bear", "polar-bear"], ["polar-bear"]),
        (["polar", "bear", "Polar_Bear", "POLAR_BEAR"], ["Polar_Bear"]),
        (["polar", "bear", "polarbear"], ["polar", "bear"]),
        (["Polar", "BEAR", "bear"], ["Polar", "bear"]),
    ],
)
@pytest.mark.parametrize("name", ["polar bear", "polar_bear", "polar-bear"])
def test_a_name_is_looked_up_whole_and_then_by_its_words(tmp_path, entries, used, name):
    assert words_for(tmp_path, entries, name) == used


@pytest.mark.parametrize(
    ("name", "entries", "used"),
    [
        ("TV", ["tv", "Tv", "TV"], "TV"),
        ("Tv", ["tv", "TV"], "tv"),
        ("tv", ["TV", "Tv"], "Tv"),
        ("tv", ["TV"], "TV"),
    ],
)
def test_a_spelling_as_written_is_taken_before_another(tmp_path, name, entries, used):
    assert words_for(tmp_path, entries, name) == [used]


def test_the_mean_is_of_the_vectors_as_they_are(words):
    assert look_up_names(["polar bear"], words).vectors["polar bear"].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("meant", "used"),
    [("cat", ["cat"]), ("polar cat", ["polar", "cat"]), (["polar", "bear"], ["polar", "bear"]), (["dog"], ["Dog"])],
)
def test_a_synonym_is_looked_up_instead(words, meant, used):
    assert look_up_names(["Polar_Bear"], words, synonyms={"polar bear": meant}).words["Polar_Bear"] == used


def test_a_list_of_words_is_never_looked_up_whole(tmp_path):
    entries = ["hot_dog", "hot", "dog"]
    assert words_for(tmp_path, entries, "hot dog", synonyms={"hot dog": ["hot", "dog"]}) == ["hot", "dog"]


def test_every_missing_name_is_listed_with_near_words(words):
    reason = r"'cats' \(near: cat\), 'polar wolf' \(no 'wolf'\), 'Bears' \(near: bear\); --synonyms FILE"
    with pytest.raises(ValueError, match=rf"words\.txt: no vector of {reason}"):
        look_up_names(["cats", "cat", "polar wolf", "Bears"], words)


def test_a_name_may_be_optional(words):
    assert list(look_up_names(["cat", "wolf"], words, optional={"wolf"}).vectors) == ["cat"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("doog: cat", "'doog' is none of the class names; did you mean 'dog'?"),
        ("dog: 5", "'dog' has 5, but a synonym is a name or a list of words"),
        ("dog: []", "'dog' has []"),
        ("- dog", "synonyms are lines `name: word`"),
        ("dog: [", "not YAML"),
    ],
)
def test_wrong_synonyms_are_refused(tmp_path, content, reason):
    (tmp_path / "synonyms.yaml").write_text(content)
    with pytest.raises(ValueError) as refusal:
        load_synonyms(tmp_path / "synonyms.yaml", ["dog", "cat"])
    assert str(refusal.value).startswith(f"{tmp_path}/synonyms.yaml: ")
    assert reason in str(refusal.value)


# The command


def test_the_table_serves_a_benchmark(make, words, tmp_path):
    make("--word_vectors", words, "--names", "dog", "cat", "Polar_Bear", "dog")
    embeddings = load_class_embeddings(str(tmp_path / "table.safetensors"), ANIMALS)
    assert embeddings == pytest.approx(np.array([[1, 0], [0.6, 0.8], [1, 0]]))


def test_the_table_says_what_it_was_made_from(make, words):
    vectors, metadata = make("--word_vectors", words, "--names", "polar bear", "Dog", "--license", "pddl")
    assert list(vectors) == ["dog", "polar bear"]
    assert (metadata["normalize"], metadata["license"]) == ("whole", "pddl")
    digest = hashlib.sha256(Path(words).read_bytes()).hexdigest()
    used = {"Dog": ["Dog"], "polar bear": ["polar", "bear"]}
    assert json.loads(metadata["sources"]) == [{"file": "words.txt", "sha256": digest, "words": used}]


def test_names_may_come_from_a_file(make, words, tmp_path):
    (tmp_path / "names.txt").write_text("polar bear\n\ncat\n")
    assert list(make("--word_vectors", words, "--names_file", tmp_path / "names.txt")[0]) == ["cat", "polar bear"]


def test_a_file_that_is_no_text_has_no_names(call, words, tmp_path):
    (tmp_path / "names.txt").write_bytes(b"caf\xe9")
    result = call("--word_vectors", words, "--names_file", tmp_path / "names.txt")
    assert_refused(result, "names.txt: not a text file of UTF-8")


def test_sources_are_joined_in_their_order_and_normalised_once(make, tmp_path):
    first = write_vec(tmp_path / "first.vec", {"cat": [0.0, 3.0]})
    second = write_word2vec(tmp_path / "second.bin", {"cat": [4.0]})
    sources = ["--word_vectors", first, "--word_vectors", second, "--names", "cat"]
    assert make(*sources)[0]["cat"] == pytest.approx([0, 0.6, 0.8])
    assert make(*sources, "--normalize", "parts")[0]["cat"] == pytest.approx([0, 0.5**0.5, 0.5**0.5])
    swapped = ["--word_vectors", second, "--word_vectors", first, "--names", "cat"]
    assert make(*swapped)[0]["cat"] == pytest.approx([0.8, 0, 0.6])


def test_words_and_an_encoder_are_joined(make, words, tmp_path):
    encoder = str(write_bert(tmp_path))
    options = ["--names", "cat", "--normalize", "parts", "--prompt", "a photo of a {}.", "--pooling", "head"]
    vectors, metadata = make("--encoder", encoder, "--word_vectors", words, *options)
    encoded = encode_names(["cat"], encoder, prompt="a photo of a {}.", pooling="head")[0]
    assert vectors["cat"] == pytest.approx(np.append(encoded, [0.6, 0.8]) / 2**0.5, abs=1e-6)
    record = json.loads(metadata["sources"])[0]
    assert (record["encoder"], record["pooling"], record["prompt"]) == (tmp_path.name, "head", "a photo of a {}.")
    assert record["sha256"]["vocab.txt"] == hashlib.sha256((tmp_path / "vocab.txt").read_bytes()).hexdigest()
    assert "model.safetensors" in record["sha256"]


@pytest.mark.parametrize("given", [["one"], ["one", "none"], ["none", "one"]])
def test_synonyms_are_for_all_word_vectors_or_for_each(make, tmp_path, given):
    table = write_vec(tmp_path / "words.vec", {"tv": [0.0, 1.0], "television": [1.0, 0.0]})
    (tmp_path / "one.yaml").write_text("tv: television")
    (tmp_path / "none.yaml").write_text("{}")
    options = [part for name in given for part in ("--synonyms", tmp_path / f"{name}.yaml")]
    vector = make("--word_vectors", table, "--word_vectors", table, "--names", "tv", *options)[0]["tv"]
    halves = {"one": [1, 0], "none": [0, 1]}
    expected = [number for name in given * (3 - len(given)) for number in halves[name]]
    assert vector * 2**0.5 == pytest.approx(expected)


def test_a_benchmarks_ignored_label_may_lack_a_vector(call, tmp_path):
    """`unlabel`, which is no class of Pascal-Context."""
    names = [plain_name(name) for name in load_benchmark("pascal_context").class_names]
    table = write_glove(tmp_path / "words.txt", {word: [1.0, 2.0] for name in names for word in name.split()})
    code, errors, printed = call("--word_vectors", table, "--benchmark", "pascal_context")
    assert (code, errors) == (0, [])
    assert "Left out 'unlabel': an ignored label without a vector" in printed
    assert f"{table}: 32 names are entries of the table, 1 means of several" in printed


def test_a_class_of_a_benchmark_without_a_vector_is_refused(call, words):
    code, errors, _ = call("--word_vectors", words, "--benchmark", "pascal_voc")
    assert (code, len(errors)) == (2, 1)
    assert all(repr(name) in errors[0] for name in ("aeroplane", "potted_plant", "tv"))
    assert "background" not in errors[0]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--names cat", "give --word_vectors FILE or --encoder DIR_OR_ID"),
        ("--word_vectors {words} --names cat,dog", "write names apart"),
        ("--word_vectors {words} --names _", "holds no names"),
        ("--word_vectors {words} --names cats", "no vector of 'cats' (near: cat)"),
        ("--word_vectors absent.vec --names cat", "absent.vec: no such file"),
        ("--word_vectors {words} --names cat --synonyms {words} --synonyms {words}", "2 --synonyms for 1 --word"),
        ("--encoder {words} --names cat --synonyms {words}", "--synonyms are for --word_vectors"),
        ("--word_vectors {words} --names cat --pooling mean", "--prompt are for an --encoder"),
        ("--word_vectors {words} --names cat --encoder_name x", "--encoder_name x names one --encoder"),
        ("--word_vectors {words} --names cat --output table.npy", "ends in .safetensors"),
        ("--word_vectors {words} --benchmark pascal", "unknown benchmark 'pascal'"),
    ],
)
def test_wrong_arguments_are_refused(call, words, tmp_path, arguments, reason):
    assert_refused(call(*arguments.format(words=words).split()), reason)
    assert not (tmp_path / "table.safetensors").exists()


@pytest.mark.parametrize(
    ("row", "reason"), [([0.0, 0.0], "class 'cat' is zero"), ([1.0, np.nan], "class 'cat' has values that are not")]
)
def test_a_vector_that_says_nothing_is_refused(call, tmp_path, row, reason):
    good = write_vec(tmp_path / "good.vec", WORDS)
    bad = write_word2vec(tmp_path / "bad.bin", {"cat": row})
    assert_refused(call("--word_vectors", good, "--word_vectors", bad, "--names", "cat"), f"{bad}: the embedding of")
    assert_refused(call("--word_vectors", bad, "--names", "cat"), reason)


def test_an_existing_file_is_kept(call, words, tmp_path):
    output = tmp_path / "table.safetensors"
    output.write_bytes(b"precious")
    assert_refused(call("--word_vectors", words, "--names", "cat"), "exists; choose another or pass --overwrite")
    assert output.read_bytes() == b"precious"


# The paper's vectors, from tables of words

KINDS = ("fasttext", "word2vec")
BENCHMARKS = ("pascal_voc", "pascal_context", "coco_stuff")
# What the release looked up instead of the names, or not whole.
SYNONYMS = {
    ("pascal_voc", "word2vec"): {"aeroplane": "airplane", "diningtable": "dining table"},
    ("pascal_context", "fasttext"): {"unlabel": "background", "diningtable": "table", "potted plant": "plant"},
    ("coco_stuff", "word2vec"): {"potted plant": ["potted", "plant"]},
}
SYNONYMS["pascal_context", "word2vec"] = SYNONYMS["pascal_context", "fasttext"] | {"aeroplane": "airplane"}
# Names whose published rows must come out as means of words that other rows have given.
MEANS = [f"{first}-other" for first in ("building", "ceiling", "ground", "plant", "sky", "water")]
MEANS += ["ceiling-tile", "wall-stone", "wall-wood"]


def published(folder: Path, benchmark: str, kind: str) -> dict[str, np.ndarray]:
    """The published vectors by name, as written."""
    names = load_benchmark(benchmark).label_names
    return dict(zip(names, np.load(folder / f"{benchmark}_{kind}.npy").astype(np.float64), strict=True))


def words_of_the_release(folder: Path, kind: str) -> dict[str, np.ndarray]:
    """A table of words, as long as they were: Context's rows are, of the others only the directions are published.

    A name of two words, of which one is `x` of Context and the other `y`, has a row r with a * r = x + y. Two such
    rows with the same y give y; one is enough where the direction of y is known.
    """
    voc, context, coco = (published(folder, benchmark, kind) for benchmark in BENCHMARKS)
    other = context.pop("unlabel"), context.pop("diningtable"), context.pop("potted_plant")
    words = dict(zip(("background", "table", "plant"), other, strict=True))
    airplane = context.pop("aeroplane") if kind == "word2vec" else 3 * coco["airplane"]
    words |= context | {"airplane": airplane}
    for name in ("other", "tile"):
        rows = np.stack([coco[f"wall-{name}"], -coco[f"floor-{name}"]], axis=1)
        factors = np.linalg.lstsq(rows, words["wall"] - words["floor"], rcond=None)[0]
        words[name] = factors[0] * coco[f"wall-{name}"] - words["wall"]
    for name in ("stone", "wood"):
        rows = np.stack([coco[f"floor-{name}"], -coco[name]], axis=1)
        words[name] = np.linalg.lstsq(rows, words["floor"], rcond=None)[0][1] * coco[name]
    words["potted"] = 5 * coco["potted plant"] - words["plant"]
    words["dining"] = 5 * coco["dining table"] - words["table"]
    if kind == "word2vec":
        words["potted_plant"] = 3 * voc["potted_plant"]
    else:
        words["diningtable"] = 4 * voc["diningtable"]
        words["aeroplane"] = context["aeroplane"]
    means = {*MEANS, "potted plant", "dining table", "wall-other", "floor-other", "wall-tile", "floor-tile"}
    means |= {"floor-stone", "floor-wood"}
    # The rest as entries of arbitrary length; those of two words by turns with `_` and `-`.
    for number, name in enumerate(sorted(coco.keys() - words.keys() - means)):
        words["_-"[number % 2].join(plain_name(name).split())] = (1 + number % 3) * coco[name]
    return words


@pytest.fixture(scope="module")
def release(shared_dir, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The folder of the published vectors, and a table of words of each kind: fastText as text, word2vec binary."""
    folder = shared_dir / "data/word_vectors"
    tables = tmp_path_factory.mktemp("tables")
    return folder, {
        "fasttext": write_vec(tables / "crawl.vec", words_of_the_release(folder, "fasttext")),
        "word2vec": write_word2vec(tables / "news.bin", words_of_the_release(folder, "word2vec")),
    }


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_published_matrices_are_made_from_words(release, make, tmp_path, name):
    """Context's parts are joined as they are; those of the others had length 1 before."""
    folder, tables = release
    arguments = ["--benchmark", name, "--normalize", "whole" if name == "pascal_context" else "parts"]
    for kind in KINDS:
        synonyms = tmp_path / f"{kind}.yaml"
        synonyms.write_text(json.dumps(SYNONYMS.get((name, kind), {})))
        arguments += ["--word_vectors", tables[kind], "--synonyms", synonyms]
    vectors, metadata = make(*arguments)
    joined = np.concatenate([np.load(folder / f"{name}_{kind}.npy") for kind in KINDS], axis=1)
    assert len(joined) == len(load_benchmark(name).label_names)
    for label, row in zip(load_benchmark(name).label_names, joined, strict=True):
        assert vectors[plain_name(label)] == pytest.approx(row / np.linalg.norm(row), abs=1e-6), label
    if name == "coco_stuff":
        for source in json.loads(metadata["sources"]):
            assert all(len(source["words"][label]) == 2 for label in MEANS)


def test_a_mean_of_directions_is_not_what_was_published(release):
    """The words' own lengths count: the difference is far above the precision of the test above."""
    folder, tables = release
    found = look_up_names(["wall", "wood"], tables["fasttext"]).vectors
    mean = sum(vector / np.linalg.norm(vector) for vector in found.values())
    row = published(folder, "coco_stuff", "fasttext")["wall-wood"]
    assert np.abs(mean / np.linalg.norm(mean) - row).max() > 1e-3


@pytest.fixture
def of_prototypes(tmp_path):
    """(a saved model of prototypes that knows "dog", "sofa" and a class in between, the means of their features)."""
    torch.manual_seed(0)
    model = CaGNetForSemanticSegmentation(
        CaGNetConfig(
            **{"id2label": {0: "dog", 1: "sofa"}, "backbone": "resnet", "depths": [1] * 4, "hidden_sizes": [6] * 4},
            **{"stem_size": 4, "aspp": "none", "feature_size": 6, "embedding_size": 384, "known_classes": 3},
            **{"contextual": False, "classifier": "linear", "generator": "prototypes"},
        )
    )
    means = model.generator.mean
    dog, sofa = torch.from_numpy(embed_names(["dog", "sofa"]))
    means.names.vectors.copy_(torch.stack([dog, sofa, (dog + sofa) / 2]))
    means.names.known.fill_(1)
    means.means.copy_(torch.randn(3, 6))
    means.mass.copy_(torch.tensor([1.0, 2.0, 1.0]))
    means.temperatures.fill_(0.01)
    model.save_pretrained(tmp_path / "prototypes")
    CaGNetImageProcessor().save_pretrained(tmp_path / "prototypes")
    return tmp_path / "prototypes", means.means


def test_visual_vectors_are_mean_features_of_what_a_name_means(make, of_prototypes):
    folder, means = of_prototypes
    vectors, metadata = make("--prototypes", folder, "--names", "dog", "sofa")
    centred = (means - (means * torch.tensor([[1.0], [2.0], [1.0]])).sum(0) / 4).numpy()
    for name, expected in (("dog", centred[0]), ("sofa", centred[1])):
        np.testing.assert_allclose(vectors[name], expected / np.linalg.norm(expected), atol=1e-5)
    assert json.loads(metadata["sources"]) == [{"prototypes": "prototypes", "backbone": "resnet"}]


def test_visual_vectors_of_another_method_are_refused(call, of_prototypes, tmp_path):
    model = CaGNetForSemanticSegmentation.from_pretrained(of_prototypes[0])
    model.config.generator, model.generator = None, None
    model.save_pretrained(tmp_path / "other")
    CaGNetImageProcessor().save_pretrained(tmp_path / "other")
    code, errors, _ = call("--prototypes", tmp_path / "other", "--names", "dog")
    assert code == 2 and "no model of prototypes" in errors[0]
