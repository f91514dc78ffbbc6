"""A prepared dataset on the Hub: what is sent, who may send it, and that it opens by its id."""

import numpy as np
import pytest
from datasets import load_dataset
from hub_server import OWNER, READ_TOKEN, STRANGER_TOKEN, WRITE_TOKEN, HubServer
from huggingface_hub import DatasetCard
from test_own_folder import CLASSES, IDS, write_pairs

from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data.builders.own_folder import folder_examples
from cagnet_hf.data.prepared import write_prepared
from cagnet_hf.data.sources import open_dataset
from cagnet_hf.hub.datasets import push_dataset

FARM = f"{OWNER}/farm"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """This process takes a new server for the Hub."""
    with HubServer() as server:
        server.stand_in(monkeypatch, tmp_path / "hf")
        yield server
    assert server.unknown == []


@pytest.fixture
def farm(tmp_path):
    write_pairs(tmp_path / "farm")
    (tmp_path / "farm" / "classes.yaml").write_text(CLASSES)
    return tmp_path / "farm"


@pytest.fixture
def prepare(farm, tmp_path, load_script, capsys):
    """`prepare(repo_id, *arguments)`: (exit code, what was printed, error lines) of prepare_data.py."""

    def run(repo_id=FARM, command=("folder", "--source"), folder=farm, output=True):
        arguments = ["--output", str(tmp_path / "prepared")] if output else []
        code = load_script("prepare_data").main([*command, str(folder), *arguments, "--push_to_hub", repo_id])
        printed = capsys.readouterr()
        return code, printed.out, [line for line in printed.err.replace("\r", "\n").splitlines() if "error" in line]

    return run


def test_a_prepared_dataset_opens_by_its_id(hub, prepare, tmp_path):
    code, printed, _ = prepare("farm")  # of one's own
    assert (code, printed.splitlines()[-1]) == (0, f"Uploaded to {hub.url}/datasets/{FARM}")
    rows = load_dataset(FARM)
    assert {split: len(some) for split, some in rows.items()} == {"train": 8, "test": 2}
    assert (np.asarray(rows["train"][0]["mask"]) == IDS).all()
    here = open_dataset(str(tmp_path / "prepared"), "train")
    for streaming in (False, True):
        there = open_dataset(FARM, "train", streaming=streaming)
        assert [sample.id for sample in there] == [sample.id for sample in here]
    (tmp_path / "classes.yaml").write_bytes(hub.files(FARM, "datasets")["classes.yaml"])
    assert load_benchmark(tmp_path / "classes.yaml").unseen_ids == (4,)
    card = DatasetCard(hub.files(FARM, "datasets")["README.md"].decode())
    assert card.data.task_categories == ["image-segmentation"]


def test_the_files_of_a_dataset_and_no_others_are_sent(hub, prepare, tmp_path):
    assert prepare()[0] == 0
    for stray in ("notes.txt", ".env", "data/.train.parquet.swp"):
        (tmp_path / "prepared" / stray).write_text("secret")
    code, *_ = prepare(command=["check"], folder=tmp_path / "prepared", output=False)  # which draws a contact sheet
    assert code == 0
    assert hub.files(FARM, "datasets").keys() == {
        *("README.md", "classes.yaml", "id2label.json"),
        *(f"data/{split}-00000-of-00001.parquet" for split in ("train", "test")),
    }


def test_rows_of_an_earlier_upload_do_not_stay(hub, farm, tmp_path):
    for size, name in ((1, "many"), (10**9, "few")):
        examples, benchmark = folder_examples(farm)
        write_prepared(examples, tmp_path / name, benchmark, max_file_bytes=size)
        push_dataset(tmp_path / name, FARM)
        assert len(open_dataset(FARM, "train")) == 8
    assert sum(path.endswith(".parquet") for path in hub.files(FARM, "datasets")) == 2


@pytest.mark.parametrize(
    ("repo_id", "token", "reason"),
    [
        ("a/b/c", WRITE_TOKEN, "'a/b/c' is no id for the Hub: write owner/name"),
        (FARM, None, "no token for the Hub: run `hf auth login`, or set HF_TOKEN"),
        (FARM, "hf_forged", "does not accept your token"),
        (FARM, READ_TOKEN, "your token may not write there"),
        (FARM, STRANGER_TOKEN, "your token may not write there"),
    ],
)
def test_who_may_not_push_is_told_before_the_work(hub, prepare, monkeypatch, tmp_path, repo_id, token, reason):
    hub.stand_in(monkeypatch, tmp_path / "hf", token)
    code, _, errors = prepare(repo_id)
    assert (code, len(errors)) == (2, 1)
    assert reason in errors[0]
    assert not (tmp_path / "prepared").exists()


def test_a_check_that_cannot_be_uploaded_is_refused_before_the_work(hub, prepare, monkeypatch, farm, tmp_path):
    hub.stand_in(monkeypatch, tmp_path / "hf", READ_TOKEN)
    code, printed, errors = prepare(command=["check"], folder=farm, output=False)
    assert (code, printed, len(errors)) == (2, "", 1)
    assert "your token may not write there" in errors[0]


def test_an_upload_that_fails_tells_how_to_try_again(hub, prepare, monkeypatch, tmp_path, farm):
    (tmp_path / "prepared").mkdir()
    examples = folder_examples

    def read_and_lose_the_connection(*arguments):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        return examples(*arguments)

    monkeypatch.setattr("cagnet_hf.data.builders.own_folder.folder_examples", read_and_lose_the_connection)
    code, _, errors = prepare()
    assert (code, len(errors)) == (2, 1)
    assert "cannot reach http://127.0.0.1:9" in errors[0]
    again = f"cagnet-hf prepare_data check {tmp_path / 'prepared'} --push_to_hub {FARM}"
    assert errors[0].endswith(again)
    assert len(open_dataset(str(tmp_path / "prepared"), "train")) == 8
