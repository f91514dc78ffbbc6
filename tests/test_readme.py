"""The README.md of every room is run: every block of code, section by section, with the files it names in miniature.

A new block needs nothing here, unless something must be true afterwards (say so in `RESULTS`), the block names a file
that must be there first (add the file to `FILES`), takes long (add what shortens the command to `shortened`) or calls
a program that is no script of ours (add the program to `PROGRAMS`). The commands of the study (`READ`) take hours, so
these are only read: scripts, options and recipe keys must exist.
"""

import argparse
import gzip
import json
import re
import shlex
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from datasets import Dataset, Features, Image
from hub_server import HubServer
from miniature_archives import write_devkit, write_jpeg, write_png, write_sbd, write_tar
from test_new_class_embeddings import model_of
from tiny_encoders import write_bert
from word_tables import write_vec, write_word2vec

from cagnet_hf.apps.demo import build_page
from cagnet_hf.commands import COMMANDS
from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data.sources import open_prepared
from cagnet_hf.hub.cards import MODEL_ID
from cagnet_hf.model.image_processing_cagnet import CaGNetImageProcessor
from cagnet_hf.training.recipe_files import load_recipe
from cagnet_hf.vectors.text_encoders import encode_names
from cagnet_hf.weights.folders import load_model

RUN = ("README.md", "cagnet_hf/README.md", "scripts/README.md", "tests/README.md")
READ = ("model_cards/README.md", "model_cards/speed/README.md")
TEXTS = {name: (REPOSITORY / name).read_text("utf-8") for name in (*RUN, *READ) if (REPOSITORY / name).is_file()}
_SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTIONS = {
    f"{name}: {title}": _BLOCK.findall(body) for name in RUN for title, body in _SECTION.findall(TEXTS.get(name, ""))
}
NOT_CODE = ("text", "mermaid")  # listings and drawings


class Sandbox:
    """The current folder, in which the blocks of one section run."""

    def __init__(self, folder: Path, load_script, trained_run: Path, tiny_dataset: Path):
        self.folder, self.load_script = folder, load_script
        self.trained_run, self.tiny_dataset = trained_run, tiny_dataset
        self.blocks: list[tuple[str, str]] = []
        self.names: dict = {}  # what the last block of Python defined

    def place(self, blocks: list[tuple[str, str]]) -> None:
        """Put the files there that the blocks of a section name."""
        self.blocks, text = blocks, "\n".join(text for _, text in blocks)
        for name, make in FILES.items():
            if name in text and not (self.folder / name).exists():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                make(self, self.folder / name)

    def run(self, language: str, text: str) -> None:
        if language == "python":
            self.names = {"__name__": "readme"}
            exec(compile(text, "README.md", "exec"), self.names)
        elif language == "bash":
            for command in re.split(r"&&|\n", text.replace("\\\n", " ")):
                self._command(shlex.split(command, comments=True))
        elif language == "yaml":
            assert text in {made.read_text() for made in self.folder.rglob("*.yaml")}, "no file of FILES is this block"
        elif language not in NOT_CODE:
            pytest.fail(f"a block of a README.md in {language or 'no language'!r}: say here how it is run")

    def _command(self, words: list[str]) -> None:
        if words[:2] == ["accelerate", "launch"]:
            words = words[1:]
        if words[:1] in (["python"], ["launch"]) and words[1].startswith("scripts/"):
            self._own_command(Path(words[1]).stem, words[2:])
        elif words[:1] == ["cagnet-hf"]:
            self._own_command(words[1], words[2:])
        elif words:
            assert words[0] in PROGRAMS, f"a README.md calls {words[0]!r}: say in PROGRAMS how it is tested"
            PROGRAMS[words[0]](words)

    def _own_command(self, name: str, arguments: list[str]) -> None:
        assert self.load_script(name).main(shortened(self, name, arguments)) == 0, shlex.join([name, *arguments])


def shortened(sandbox: Sandbox, script: str, arguments: list[str]) -> list[str]:
    """The arguments of a command, and what makes it short: two images an iteration, one iteration a stage; and a few
    images of the synthetic benchmark where the command scores on all of them."""
    if script != "train":
        short = [str(sandbox.tiny_dataset) if re.fullmatch(r"scenes:\d+", word) else word for word in arguments]
        return [*short, "--benchmark", "scenes"] if "min_score" in short else short
    given = sandbox.load_script("train").build_parser().parse_intermixed_args(arguments)
    recipe = load_recipe(given.recipe, getattr(given, "overrides", []))
    keys = [f"stages.{stage}.{key}" for stage in recipe.stages for key in ("iterations=1", "batch_size=2")]
    keys += ["num_workers=0", "trackers=[]"]
    if recipe.benchmark == "scenes":
        return [*arguments, *keys, f"dataset={sandbox.tiny_dataset}"]
    return [*arguments, *keys, "processor.size={longest_edge: 64}"]


# Files that blocks name, and how they are made


def _trained_run(sandbox: Sandbox, model: Path) -> None:
    shutil.copytree(
        sandbox.trained_run, model.parent, ignore=shutil.ignore_patterns("checkpoints"), dirs_exist_ok=True
    )


def _model_of_an_encoder(sandbox: Sandbox, folder: Path) -> None:
    """Its configuration names the encoder of its class embeddings, which makes vectors of any name."""
    encoder = str(write_bert(sandbox.folder))
    record = {"source": "table.safetensors", "encoder": encoder, "pooling": "mean", "prompt": "{}"}
    model_of(encode_names(["cat", "dog", "train"], encoder, pooling="mean"), record).save_pretrained(folder)
    CaGNetImageProcessor().save_pretrained(folder)


def _image(sandbox: Sandbox, path: Path) -> None:
    open_prepared(sandbox.tiny_dataset, split="test")[0]["image"].save(path)


def _voc_archive(sandbox: Sandbox, path: Path) -> None:
    write_devkit(
        sandbox.folder / "voc", "VOC2012", sets="Segmentation", train=["a", "b", "c"], val=["d"], more=["e", "f"]
    )
    write_tar(sandbox.folder / "voc", path)


def _sbd_archive(sandbox: Sandbox, path: Path) -> None:
    write_sbd(sandbox.folder / "sbd", train=["e"], val=["f"])
    write_tar(sandbox.folder / "sbd", path, "w:gz")


def _photos(sandbox: Sandbox, folder: Path) -> None:
    for number in range(10):
        write_jpeg(folder / "images" / f"{number}.jpg", (40, 30))
        write_png(folder / "masks" / f"{number}.png", np.arange(4, dtype=np.uint8).repeat(300).reshape(30, 40))
    blocks = [*sandbox.blocks, *(block for blocks in SECTIONS.values() for block in blocks)]
    (folder / "classes.yaml").write_text(next(text for language, text in blocks if language == "yaml"))


def _word_vectors() -> dict[str, np.ndarray]:
    words = {word for name in load_benchmark("pascal_voc").label_names for word in re.split(r"[ _]", name) if word}
    return {word: np.random.default_rng(len(word)).normal(size=4) + len(word) for word in sorted(words)}


def _zipped_vectors(sandbox: Sandbox, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(write_vec(sandbox.folder / "words.vec", _word_vectors()), path.stem)


def _gzipped_vectors(sandbox: Sandbox, path: Path) -> None:
    table = write_word2vec(sandbox.folder / "words.bin", _word_vectors())
    path.write_bytes(gzip.compress(Path(table).read_bytes()))


def _text_encoder(sandbox: Sandbox, folder: Path) -> None:
    folder.mkdir()
    write_bert(folder)


def _dataset_of_the_hub(sandbox: Sandbox, folder: Path) -> None:
    """A folder opens as a dataset of the Hub does."""
    write_devkit(sandbox.folder / "voc", "VOC2012", sets="Segmentation", train=["a", "b"], val=["c"], more=[])
    features = Features({"image": Image(), "mask": Image()})
    for split, names in (("train", "ab"), ("val", "c")):
        files = [next((sandbox.folder / "voc").rglob(f"{kind}/{name}.*")) for name in names for kind in KINDS]
        cells = [{"bytes": file.read_bytes(), "path": None} for file in files]
        rows = Dataset.from_dict({"image": cells[::2], "mask": cells[1::2]}, features=features)
        rows.to_parquet(folder / f"{split}.parquet")
    splits = [{"split": split, "path": f"{split}.parquet"} for split in ("train", "val")]
    card = json.dumps({"configs": [{"config_name": "default", "data_files": splits}]})  # which is YAML, too
    (folder / "README.md").write_text(f"---\n{card}\n---\n")


KINDS = ("JPEGImages", "SegmentationClass")
FILES: dict[str, Callable[[Sandbox, Path], None]] = {
    "sentence-transformers/all-MiniLM-L6-v2": _text_encoder,
    "nateraw/pascal-voc-2012": _dataset_of_the_hub,
    "outputs/scenes/model": _trained_run,
    "outputs/voc/model": _model_of_an_encoder,
    "image.png": _image,
    "VOCtrainval_11-May-2012.tar": _voc_archive,
    "benchmark.tgz": _sbd_archive,
    "photos": _photos,
    "crawl-300d-2M.vec.zip": _zipped_vectors,
    "GoogleNews-vectors-negative300.bin.gz": _gzipped_vectors,
}


# Programs that are not run here


def _pip(words: list[str]) -> None:
    """What is installed exists; CI installs it on a clean clone."""
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert words[1] == "install"
    if "-c" in words:
        assert (REPOSITORY / words[words.index("-c") + 1]).is_file()
    for extras in re.findall(r"\[(.+)\]", " ".join(words)):
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()


def _in_ci(words: list[str]) -> None:
    assert shlex.join(words) in (REPOSITORY / ".ci" / "run").read_text()


PROGRAMS: dict[str, Callable[[list[str]], None]] = {"pip": _pip, "ruff": _in_ci, "pytest": _in_ci}


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


def build_instead(model_path: str, *, port=None, **options) -> None:
    """Build the page of `serve`, which would wait for its visitors."""
    pytest.importorskip("gradio")
    if model_path != MODEL_ID:
        build_page(model_path, **options)


def _has_learnt_other_classes(sandbox: Sandbox) -> None:
    assert sandbox.names["scores"]["eval_mIoU"] > 0.8  # a guess has less than 0.5
    model, _ = load_model("outputs/coast/model")
    assert model.config.id2label == {0: "sand", 1: "sea"}
    assert (model.config.seen_ids, model.config.unseen_ids) == ([0, 1], [])


# What must be true once a section has run.
RESULTS: dict[str, Callable[[Sandbox], None]] = {
    "scripts/README.md: Fine-tune with transformers' Trainer": _has_learnt_other_classes,
}


@pytest.mark.parametrize("section", [title for title, blocks in SECTIONS.items() if blocks])
def test_a_section_runs(section, hub, load_script, trained_run, tiny_dataset, one_thread, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    hub.stand_in(monkeypatch, tmp_path / "hf")
    monkeypatch.setattr("cagnet_hf.apps.demo.serve", build_instead)  # test_demo serves, in a browser
    sandbox = Sandbox(tmp_path, load_script, trained_run, tiny_dataset)
    sandbox.place(SECTIONS[section])
    for language, text in SECTIONS[section]:
        sandbox.run(language, text)
    RESULTS.get(section, lambda sandbox: None)(sandbox)


def test_every_room_has_a_readme():
    assert set(TEXTS) == {*RUN, *READ}


@pytest.mark.parametrize("name", [name for name in RUN if name in TEXTS])
def test_every_block_is_in_a_section_that_runs(name):
    in_sections = sum(len(blocks) for title, blocks in SECTIONS.items() if title.startswith(f"{name}: "))
    assert in_sections == len(_BLOCK.findall(TEXTS[name])) == TEXTS[name].count("\n```") // 2


# Commands within sentences and tables, and those of the study


def _options(parser: argparse.ArgumentParser) -> set[str]:
    options = {option for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            options |= set().union(*map(_options, action.choices.values()))
    return options


def _options_of(program: str, load_script) -> set[str]:
    """The options of a command, of a script, or of a file that no test imports, which spells them out."""
    folder, _, name = program.rpartition("/")
    if folder in ("", "scripts"):
        return _options(load_script(name).build_parser())
    return set(re.findall(r'"(--\w+)"', (REPOSITORY / f"{program}.py").read_text("utf-8")))


# `scripts/train.py …`, `tests/stress/soak.py …` and `cagnet-hf train …`; what is in capitals stands for a name.
_OWN = re.compile(r"(?:((?:scripts|tests/stress)/[a-z_/]+)\.py|cagnet-hf ([a-z_]+))(.*)", re.DOTALL)


def commands_in(code: str) -> list[tuple[str, str]]:
    """The commands of this package in a piece of text: what is called, and the arguments."""
    found = map(_OWN.search, re.split(r"&&|\n", re.sub(r"\\\n", " ", code)))
    return [(match[1] or match[2], match[3]) for match in found if match]


def _inline(text: str) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", _BLOCK.sub("", text))]


SHOWN = [
    *((name, code) for name, text in TEXTS.items() for code in _inline(text) if "--" in code and commands_in(code)),
    *((name, code) for name in READ for _, code in _BLOCK.findall(TEXTS.get(name, ""))),
]


@pytest.mark.parametrize(("name", "code"), SHOWN)
def test_commands_that_are_not_run_have_options_that_exist(name, code, load_script):
    for program, arguments in commands_in(code):
        assert set(re.findall(r"(?<!\S)\[?(--\w+)", arguments)) <= _options_of(program, load_script), program


@pytest.mark.parametrize("name", [name for name in READ if name in TEXTS])
def test_training_commands_that_are_not_run_name_recipes_and_keys_that_exist(name, load_script):
    for _, code in _BLOCK.findall(TEXTS[name]):
        for program, arguments in commands_in(code):
            if program == "scripts/train":
                parser = load_script("train").build_parser()
                given = parser.parse_intermixed_args(shlex.split(arguments, comments=True))
                load_recipe(given.recipe, getattr(given, "overrides", []))


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_named_is_there(name):
    """Python files of this repository, and the files and folders that links lead to."""
    named = re.findall(r"(?<![\w/])(?:cagnet_hf|scripts|tests)/[a-z\d_/]+\.py\b", TEXTS[name])
    links = re.findall(r"\]\(([^)#\s]+)", _BLOCK.sub("", TEXTS[name]))
    paths = [REPOSITORY / path for path in named]
    paths += [(REPOSITORY / name).parent / link for link in links if "://" not in link]
    assert [path for path in paths if not path.exists()] == []


def test_every_command_is_in_the_table_of_commands():
    commands = re.findall(r"^\| `cagnet-hf ([a-z_]+)", TEXTS["scripts/README.md"], re.MULTILINE)
    assert sorted(commands) == sorted(COMMANDS)
    scripts = set(re.findall(r"scripts/([a-z_]+)\.py", TEXTS["scripts/README.md"]))
    assert scripts == {path.stem for path in (REPOSITORY / "scripts").glob("*.py")}
