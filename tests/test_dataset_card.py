"""The card of a prepared dataset: where it comes from, what it holds, which classes are unseen."""

import pytest
from huggingface_hub import DatasetCard
from miniature_voc import MiniatureVoc

from cagnet_hf.data.benchmarks import Origin, load_benchmark
from cagnet_hf.data.builders import BUILDERS
from cagnet_hf.data.report import SplitReport, dataset_card

VOC = load_benchmark("pascal_voc")


@pytest.fixture
def reports() -> dict[str, SplitReport]:
    train, test = SplitReport(["a", "b", "c"], skipped=["d.jpg: not an image"]), SplitReport(["e"])
    train.num_pixels[[0, 1, 255]] = 500, 1200, 7
    test.num_pixels[20] = 9
    return {"train": train, "test": test}


@pytest.mark.parametrize("name", BUILDERS)
def test_official_data_name_their_source_licence_and_papers(name, reports):
    card = DatasetCard(dataset_card(VOC, reports, load_benchmark(name).origin))
    assert (card.data.license, card.data.task_categories) == ("other", ["image-segmentation"])
    assert "- Source: http" in card.text and "Flickr" in card.text
    assert "@inproceedings{" in card.text and "```bibtex" in card.text


def test_the_header_tells_the_files_of_each_split(reports):
    card = DatasetCard(dataset_card(VOC, reports, VOC.origin))
    (config,) = card.data.configs
    assert config["data_files"] == [
        {"split": "train", "path": "data/train-*"},
        {"split": "test", "path": "data/test-*"},
    ]


def test_splits_are_counted(reports):
    text = dataset_card(VOC, reports, VOC.origin)
    assert "| train | 3 | 1,200 | 1 |\n| test | 1 | 9 | 0 |" in text  # background and borders have no label


def test_labels_are_marked_as_seen_unseen_or_ignored(reports):
    text = dataset_card(VOC, reports, VOC.origin)
    assert "Of 20 classes 15 are seen, 5 unseen." in text
    assert "| 0 | background | ignored |" in text
    assert "| 1 | aeroplane | seen |" in text
    assert all(f"| {i} | {VOC.label_names[i]} | unseen |" in text for i in VOC.unseen_ids)


def test_what_an_owner_does_not_say_is_not_invented(reports):
    card = DatasetCard(dataset_card(VOC, reports, Origin("Photographs of sheep.")))
    assert card.data.license == "unknown"
    assert "not stated by its owner" in card.text and "Its owner names none." in card.text


def test_the_card_lies_beside_the_data(tmp_path, load_script, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    voc = MiniatureVoc(tmp_path / "source")
    argv = ["pascal_voc", "--source", str(voc.folder), "--output", str(tmp_path / "out")]
    assert load_script("prepare_data").main(argv) == 0
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.pretty_name == "pascal_voc" and "hariharan2011semantic" in card.text
