"""Folders, archives and addresses of strangers: no code of theirs is run, no pickle read, nothing filled up."""

import http.server
import io
import json
import os
import shutil
import tarfile
import threading
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from miniature_archives import write_jpeg, write_png
from safetensors.torch import load_file, save_file
from test_bad_input import CLASSES, IDS, Hostile
from tiny_encoders import write_bert
from transformers import TimmBackboneConfig

from cagnet_hf.apps import demo
from cagnet_hf.data.benchmarks import parse_class_table
from cagnet_hf.data.builders import archives
from cagnet_hf.data.builders.archives import open_source
from cagnet_hf.data.builders.own_folder import folder_examples
from cagnet_hf.data.image_inputs import RemoteFile
from cagnet_hf.data.sources import open_prepared
from cagnet_hf.files import check_weight_files, parse_yaml
from cagnet_hf.methods.options import RecipeError
from cagnet_hf.training.recipe_files import load_recipe
from cagnet_hf.vectors.text_encoders import encode_names
from cagnet_hf.weights.backbones import LOADERS, load_backbone_weights
from cagnet_hf.weights.classifier_heads import load_image_classifier_head
from cagnet_hf.weights.folders import load_model

INDEX = "model.safetensors.index.json"


@pytest.fixture
def model_folder(trained_run, tmp_path):
    return shutil.copytree(trained_run / "model", tmp_path / "model")


# Weights


def names_a_pickle(folder):
    torch.save({"weight": Hostile(folder.parent / "it_ran")}, folder / "pytorch_model.bin")
    return "pytorch_model.bin"


def names_a_file_above(folder):
    save_file({"weight": torch.zeros(1)}, folder.parent / "above.safetensors")
    return "../above.safetensors"


def names_an_absolute_file(folder):
    save_file({"weight": torch.zeros(1)}, folder.parent / "above.safetensors")
    return str(folder.parent / "above.safetensors")


def names_a_file_of_windows(folder):
    return "..\\above.safetensors"


def names_a_file_in_a_folder(folder):
    return "deeper/model.safetensors"


def names_no_text(folder):
    return 7


HOSTILE_INDICES = [
    names_a_pickle,
    names_a_file_above,
    names_an_absolute_file,
    names_a_file_of_windows,
    names_a_file_in_a_folder,
    names_no_text,
]
every_index = pytest.mark.parametrize("name", HOSTILE_INDICES, ids=lambda name: name.__name__)


def with_index(folder, name):
    """The folder's weights by an index in place of the file itself."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, name(folder))}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


@every_index
def test_a_model_whose_index_names_another_file_is_refused(name, model_folder, tmp_path):
    with pytest.raises(ValueError, match="which is no safetensors file beside it"):
        load_model(str(with_index(model_folder, name)))
    assert not (tmp_path / "it_ran").exists()


@every_index
def test_an_encoder_whose_index_names_another_file_is_refused(name, tmp_path):
    folder = with_index(write_bert(tmp_path / "encoder"), name)
    with pytest.raises(ValueError, match="which is no safetensors file beside it"):
        encode_names(["cat"], str(folder))
    assert not (tmp_path / "it_ran").exists()


def test_a_backbone_whose_index_names_a_pickle_is_refused(model_folder, trained_run, tmp_path):
    model, _ = load_model(str(trained_run / "model"))
    with pytest.raises(ValueError, match="which is no safetensors file beside it"):
        load_backbone_weights(model, str(with_index(model_folder, names_a_pickle)))
    assert not (tmp_path / "it_ran").exists()


def names_its_weights(folder):
    """Of another name, the index is none that anybody looks into."""
    weights = load_file(folder / "model.safetensors")
    torch.save({"weight": Hostile(folder.parent / "it_ran")}, folder / "pytorch_model.bin")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, "pytorch_model.bin")}
    (folder / "other.safetensors.index.json").write_text(json.dumps(index))
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"transformers_weights": "other.safetensors.index.json"}))


def is_an_adapter(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))


@pytest.mark.parametrize("make", [names_its_weights, is_an_adapter], ids=lambda make: make.__name__)
def test_weights_of_another_name_and_of_another_model_are_refused(make, model_folder, tmp_path):
    make(model_folder)
    make(write_bert(tmp_path / "encoder"))
    for open_folder in (load_model, check_weight_files):
        with pytest.raises(ValueError, match=r"call them model\.safetensors|give a whole model"):
            open_folder(str(model_folder))
    with pytest.raises(ValueError, match=r"call them model\.safetensors|give a whole model"):
        encode_names(["cat"], str(tmp_path / "encoder"))
    assert not (tmp_path / "it_ran").exists()


@every_index
def test_an_image_classifier_whose_index_names_another_file_is_refused(name, model_folder, tmp_path):
    with pytest.raises(ValueError, match="which is no safetensors file beside it"):
        load_image_classifier_head("auto", str(with_index(model_folder, name)))
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("source", ["hf-hub:them/theirs", "timm/local-dir:here", "timm/hf-hub:a/b", "here"])
def test_weights_of_timm_are_taken_by_their_name_alone(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    backbone = SimpleNamespace(backbone=None)  # timm need not be installed
    config = SimpleNamespace(backbone_config=TimmBackboneConfig(backbone="resnet18"))
    with pytest.raises(ValueError, match="taken from nowhere else"):
        LOADERS["auto"](SimpleNamespace(backbone=backbone, config=config), source)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": 1}', "[" * 100_000], ids=range(6))
def test_a_damaged_index_is_named(content, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(ValueError, match=f"{INDEX} is damaged"):
        check_weight_files(str(tmp_path))


def test_an_index_of_files_beside_it_is_taken(tmp_path):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    check_weight_files(str(tmp_path))


def test_an_encoder_with_pickled_weights_alone_is_refused(tmp_path):
    folder = write_bert(tmp_path / "encoder")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Hostile(tmp_path / "it_ran")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="not a text encoder that transformers can load"):
        encode_names(["cat"], str(folder))
    assert not (tmp_path / "it_ran").exists()


# Code


CODE = "import os\nos.mkdir({!r})\n"


@pytest.mark.parametrize("part", ["AutoConfig", "AutoModel", "AutoTokenizer"])
def test_an_encoder_s_own_code_is_never_run_nor_asked_about(part, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether code of others may run"))
    folder = write_bert(tmp_path / "encoder")
    (folder / "theirs.py").write_text(CODE.format(str(tmp_path / "it_ran")))
    name = "tokenizer_config.json" if part == "AutoTokenizer" else "config.json"
    fields = json.loads((folder / name).read_text())
    fields["auto_map"] = {part: ["theirs.Theirs", None] if part == "AutoTokenizer" else "theirs.Theirs"}
    if part == "AutoConfig":
        fields["model_type"] = "theirs"
    (folder / name).write_text(json.dumps(fields))
    try:
        encode_names(["cat"], str(folder))
    except ValueError:
        assert part != "AutoModel"
    assert not (tmp_path / "it_ran").exists()


def test_a_model_folder_s_own_code_is_never_run(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether code of others may run"))
    for path in model_folder.glob("*.py"):
        path.write_text(CODE.format(str(tmp_path / "it_ran")))
    load_model(str(model_folder))
    assert not (tmp_path / "it_ran").exists()


# Archives and texts


def tar_of(path, sizes, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, size in sizes.items():
            member = tarfile.TarInfo(name)
            member.size = size
            tar.addfile(member, io.BytesIO(bytes(size)))
    return path


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_has_a_limit_in_total(mode, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 1 << 20)
    path = tar_of(tmp_path / f"bomb.tar.{mode[2:]}", {f"images/{i}.jpg": 1 << 20 for i in range(40)}, mode)
    with pytest.raises(ValueError, match="would unpack to more than"):
        open_source(path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_thousands_of_folders_deep_are_refused(kind, tmp_path):
    name = "a/" * 5000 + "one.jpg"
    path = tmp_path / f"deep.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, "x")
    else:
        tar_of(path, {name: 1}, "w")
    with pytest.raises(ValueError, match="folders deep"):
        open_source(path)


@pytest.mark.parametrize("text", ["[" * 20_000, "{a: " * 20_000, "- " * 20_000, "2001-99-99"], ids=range(4))
def test_texts_that_yaml_cannot_bear_are_no_yaml(text):
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)


def bomb(last):
    """Ten lines that stand for ten thousand million values; `last` is what the last line does with them."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join([*lines, last])


MERGED = "\n".join(
    ["m0: &m0 {k: v}"] + [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}" for i in range(1, 10)]
)


@pytest.mark.parametrize("text", [bomb("classes: *a9"), bomb("? *a9\n: 1"), MERGED], ids=["values", "keys", "merged"])
def test_aliases_of_aliases_are_never_written_out(text, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"aliases repeat more than 10,000 values"):
        load_recipe(str(tmp_path / "recipe.yaml"))
    with pytest.raises(ValueError, match=r"^classes\.yaml: not YAML: aliases repeat more than 10,000 values$"):
        parse_class_table(text, "classes.yaml", "farm")


@pytest.mark.parametrize("text", ["&a [*a]", "a: &a {b: *a}", "&a {<<: *a}"])
def test_an_alias_of_what_is_around_it_is_no_yaml(text):
    with pytest.raises(yaml.YAMLError, match="an alias stands for what is around the alias"):
        parse_yaml(text)


def test_a_dataset_card_of_aliases_is_refused_before_anything_reads_the_card(tiny_dataset, tmp_path):
    shutil.copytree(tiny_dataset, tmp_path / "scenes")
    (tmp_path / "scenes" / "README.md").write_text(f"---\n{bomb('configs: *a9')}\n---\n")
    with pytest.raises(ValueError, match=r"README\.md: not YAML at its head: aliases repeat"):
        open_prepared(tmp_path / "scenes", split="test")


def test_a_few_aliases_are_read():
    assert parse_yaml("a: &a [1, 2]\nb: *a\nc: {<<: {d: *a}, e: 3}") == {
        **{"a": [1, 2], "b": [1, 2]},
        "c": {"d": [1, 2], "e": 3},
    }


# Own folders


def test_a_list_of_test_images_has_whole_lines(tmp_path):
    for stem in ("IMG", "IMG 002", "IMG.v2", "other"):
        write_jpeg(tmp_path / "images" / f"{stem}.jpg")
        write_png(tmp_path / "masks" / f"{stem}.png", IDS)
    (tmp_path / "classes.yaml").write_text(CLASSES)
    (tmp_path / "test.txt").write_text("IMG 002\nIMG.v2\nimages/other.jpg\n\n")
    examples, _ = folder_examples(tmp_path)
    assert [example.image_id for example in examples["test"]] == ["IMG 002", "IMG.v2", "other"]
    assert [example.image_id for example in examples["train"]] == ["IMG"]


@pytest.mark.parametrize("name", ["test.txt", "metadata.jsonl"])
def test_a_list_that_is_no_text_is_named(name, tmp_path):
    for stem in ("one", "two"):
        write_jpeg(tmp_path / "images" / f"{stem}.jpg")
        write_png(tmp_path / "masks" / f"{stem}.png", IDS)
    (tmp_path / "classes.yaml").write_text(CLASSES)
    (tmp_path / name).write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match=f"{name}: not a text file of UTF-8"):
        folder_examples(tmp_path)


# Addresses


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "file:///etc/passwd", "data:,x", "gopher://127.0.0.1/"])
def test_a_redirect_to_another_protocol_is_not_followed(target, server):
    with pytest.raises(OSError, match="cannot be fetched"):
        RemoteFile(f"{server}/to/{target}").read_bytes()


def test_a_redirect_to_http_is_followed(server):
    assert RemoteFile(f"{server}/to/{server}/photo.jpg").read_bytes() == b"/photo.jpg"


@pytest.mark.parametrize("path", ["/schöne kuh.jpg", "/牛.jpg", "/a%20b.jpg?größe=1"])
def test_an_address_beyond_ascii_is_fetched(path, server):
    assert RemoteFile(server + path).read_bytes().isascii()


def test_a_host_beyond_ascii_is_refused_in_words():
    with pytest.raises(OSError, match="cannot be fetched") as refused:
        RemoteFile("http://bücher.invalid/a.jpg").read_bytes()
    assert "codec" not in str(refused.value)


# The page


def test_the_page_takes_uploads_alone(tmp_path):
    folder = str(tmp_path / "uploads")
    (tmp_path / "uploads").mkdir()
    inside, outside = tmp_path / "uploads" / "a.png", tmp_path / "private.png"
    for path in (inside, outside):
        path.write_bytes(b"")
    (tmp_path / "uploads" / "link.png").symlink_to(outside)
    assert demo._uploaded(str(inside), folder) == str(inside)
    assert demo._uploaded(None, folder) is None
    made_up = [outside, tmp_path / "uploads" / ".." / "private.png", tmp_path / "uploads" / "link.png", "/etc/passwd"]
    for path in made_up:
        with pytest.raises(ValueError, match="no image that was uploaded"):
            demo._uploaded(str(path), folder)


@pytest.mark.parametrize("host", ["localhost:7860", "LOCALHOST", "127.0.0.1:7860", "[::1]:7860", "192.168.1.7"])
def test_the_page_answers_to_its_own_names(host):
    assert demo._is_own_host(host)


@pytest.mark.parametrize(
    "host", ["attacker.example", "localhost.attacker.example:7860", "", "127.0.0.1.nip.io", "a@b"]
)
def test_the_page_answers_to_no_other_name(host):
    assert not demo._is_own_host(host)


def test_a_request_to_another_name_gets_no_page():
    import asyncio

    sent = []

    async def page(*_):
        pytest.fail("the page was served")

    async def send(event):
        sent.append(event)

    headers = [(b"host", b"attacker.example")]
    asyncio.run(demo._OwnServerOnly(page)({"type": "http", "headers": headers}, None, send))
    assert sent[0]["status"] == 421


def test_np_arrays_of_objects_are_never_loaded(tmp_path):
    from cagnet_hf.data.benchmarks import load_benchmark
    from cagnet_hf.vectors.class_embeddings import load_class_embeddings

    np.save(tmp_path / "v.npy", np.array([Hostile(tmp_path / "it_ran")], object), allow_pickle=True)
    with pytest.raises(ValueError, match="object arrays are refused"):
        load_class_embeddings(str(tmp_path / "v.npy"), load_benchmark("scenes"))
    assert not os.path.exists(tmp_path / "it_ran")
