"""Classes and values that are given when a configuration or a model is loaded, as transformers' users give them."""

import json
import warnings

import pytest
import torch
from test_modeling import SPNET, TINY, build, images
from transformers import AutoConfig, AutoModelForSemanticSegmentation

from cagnet_hf import CaGNetConfig, CaGNetForSemanticSegmentation

OTHERS = dict(enumerate(["road", "sky", "tree", "car", "sea", "house", "grass"]))
GAUSSIAN = {"classifier": "linear", "generator": "gaussian", "contextual": False}


@pytest.fixture
def folder(tmp_path):
    model = build(dataset_ids=(7, 3, 9, 1, 2), ignored_dataset_ids=(0,))
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def classes_of(config):
    return list(config.seen_ids), list(config.unseen_ids), list(config.dataset_ids), list(config.ignored_dataset_ids)


def given_anew(number):
    return list(range(number)), [], list(range(number)), []


# The classes of a configuration


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"num_labels": 3}, {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}),
        ({"id2label": OTHERS}, OTHERS),
        ({"id2label": {str(i): name for i, name in OTHERS.items()}}, OTHERS),
        ({"label2id": {name: i for i, name in OTHERS.items()}}, OTHERS),
        ({"num_labels": 7, "id2label": OTHERS, "label2id": {name: i for i, name in OTHERS.items()}}, OTHERS),
        ({"label2id": {name: str(i) for i, name in OTHERS.items()}}, OTHERS),
    ],
    ids=["number", "names", "names as JSON has them", "ids", "the official example", "ids as strings"],
)
def test_classes_given_at_loading_are_all_seen(folder, given, names):
    for config in (AutoConfig.from_pretrained(folder, **given), CaGNetConfig.from_pretrained(folder, **given)):
        assert config.id2label == names
        assert config.label2id == {name: i for i, name in names.items()}
        assert classes_of(config) == given_anew(len(names))


def test_the_number_or_the_names_that_a_model_has_change_nothing(folder):
    stored = CaGNetConfig.from_pretrained(folder)
    for given in ({"num_labels": 5}, {"id2label": stored.id2label}, {"label2id": stored.label2id}):
        assert CaGNetConfig.from_pretrained(folder, **given).to_dict() == stored.to_dict()


def test_a_split_that_is_given_beside_the_names_counts(folder):
    config = CaGNetConfig.from_pretrained(folder, id2label=OTHERS, unseen_ids=[5, 6], dataset_ids=list(range(1, 8)))
    assert classes_of(config) == ([0, 1, 2, 3, 4], [5, 6], [1, 2, 3, 4, 5, 6, 7], [])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_labels": 3, "id2label": OTHERS}, "num_labels=3, but id2label names 7 classes"),
        ({"id2label": OTHERS, "label2id": {"road": 1}}, "id2label and label2id name different classes"),
        ({"id2label": {1: "road", 2: "sky"}}, r"number them from 0, got \[1, 2\]"),
        ({"label2id": ["road"]}, r"label2id=\['road'\]: give a dictionary"),
        ({"label2id": {"road": "first"}}, "id2label={'first': 'road'}: give a dictionary"),
        ({"num_labels": "3"}, "num_labels='3': give a whole number"),
        ({"num_labels": 0}, "num_labels=0: a model has at least one class"),
        ({"num_labels": 300}, "ignore_index=255 is a class: choose one beyond 299, or a negative one"),
        ({"unseen_ids": [1]}, "classes .* are both seen and unseen|every class is one or the other"),
        ({"seen_ids": [0, 1]}, "every class is one or the other"),
        ({"dataset_ids": [1, 2]}, "dataset_ids has 2 entries for 5 classes"),
        ({"calibration": float("nan")}, "calibration=nan"),
        ({"image_prior": float("nan")}, "image_prior=nan"),
        ({"image_prior": -1}, "image_prior=-1"),
        ({"feature_size": 0}, "feature_size=0: choose whole numbers above 0"),
        ({"feature_size": "twelve"}, "'feature_size'.* expected int, got str"),
    ],
)
def test_contradictions_at_loading_are_refused_in_one_line(folder, given, message):
    for kind in (AutoConfig, CaGNetConfig):
        with pytest.raises(ValueError, match=message) as refusal:
            kind.from_pretrained(folder, **given)
        assert "\n" not in str(refusal.value)


def test_more_classes_than_a_byte_holds(folder):
    config = CaGNetConfig.from_pretrained(folder, num_labels=300, ignore_index=-100)
    assert (config.num_labels, config.dataset_ids[-1]) == (300, 299)


def test_names_that_are_set_later_reach_label2id(folder):
    config = CaGNetConfig.from_pretrained(folder)
    config.id2label = dict(enumerate("abcde"))
    assert config.label2id == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}


def test_a_calibration_that_is_set_later_is_a_number():
    config = CaGNetConfig(**TINY)
    with pytest.raises(ValueError, match=r"^calibration=nan: it is subtracted from probabilities"):
        config.calibration = float("nan")
    with pytest.raises(ValueError, match="'calibration'"):
        config.update({"calibration": "0.3"})
    assert config.calibration == 0


def test_a_number_that_is_set_later_is_refused_where_a_model_is_built():
    config = CaGNetConfig(**TINY)
    config.num_labels = 3
    with pytest.raises(ValueError, match=r"seen_ids and unseen_ids name 3 \+ 2 classes, id2label names 3"):
        CaGNetForSemanticSegmentation(config)


# Values


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"feature_size": "12"}, "'feature_size'.* expected int, got str"),
        ({"calibration": None}, "'calibration'"),
        ({"calibration": float("nan")}, "calibration=nan"),
        ({"calibration": float("inf")}, "calibration=inf"),
        ({"aspp_dilations": ()}, "aspp_dilations is empty"),
        ({"aspp_dilations": (0,)}, "aspp_dilations"),
        ({"feature_size": 0}, "feature_size=0"),
        ({"embedding_size": -1}, "embedding_size=-1"),
        ({"stem_size": 0}, "stem_size=0"),
        ({"hidden_sizes": (2, 8, 16, 16)}, "hidden_sizes"),
        ({"classifier_dropout": 1.5}, "classifier_dropout=1.5: choose numbers from 0 to 1"),
        ({"generator_dropout": (0.1, float("nan"))}, "generator_dropout"),
        ({"generator_embedding_scale": float("inf")}, "generator_embedding_scale=inf"),
        ({"dataset_ids": (0, 1, 2, 3, 1000)}, "dataset_ids holds 1000: stored masks have classes from 0 to 254"),
        ({"dataset_ids": (0, 1, 2, 3, 255)}, "dataset_ids holds 255"),
        ({"dataset_ids": (-1, 1, 2, 3, 4)}, "dataset_ids holds -1"),
        ({"ignored_dataset_ids": (300,)}, "ignored_dataset_ids holds 300"),
        ({"test_scales": (1.0, float("inf"))}, "test_scales must start with 1.0 and be positive"),
        ({"test_scales": (1.0, float("nan"))}, "test_scales must start with 1.0 and be positive"),
        ({"num_labels": 3}, "num_labels=3, but id2label names 5 classes"),
        ({"known_classes": -1}, "known_classes=-1"),
        ({"id2label": ["a", "b"]}, r"id2label=\['a', 'b'\]: give a dictionary"),
        ({"id2label": {"first": "a"}}, "id2label={'first': 'a'}: give a dictionary"),
        ({"id2label": {0: "a", 1: None}}, "id2label: class 1 has the name None, which is no text"),
        ({"num_labels": 5.0}, "num_labels=5.0: give a whole number"),
        ({"id2label": {}}, "id2label must name at least one class"),
        ({"id2label": {0: "a", 2: "b"}, "unseen_ids": ()}, "number them from 0"),
    ],
)
def test_values_are_refused_in_one_line_wherever_they_come_from(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message) as refusal:
        CaGNetConfig(**(TINY | wrong))
    assert "\n" not in str(refusal.value)
    if "num_labels" in wrong:
        return
    fields = json.loads(CaGNetConfig(**TINY).to_json_string(use_diff=False)) | wrong
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=message) as refusal:
        AutoConfig.from_pretrained(tmp_path)
    assert "\n" not in str(refusal.value)


class Counted(int):
    """A class id that counts how often it is compared with another one."""

    comparisons = 0

    def __eq__(self, other):
        Counted.comparisons += 1
        return int.__eq__(self, other)

    __hash__ = int.__hash__


def test_many_classes_are_checked_in_linear_time():
    number, before = 5000, Counted.comparisons
    ids = [Counted(number) for number in range(number)]
    config = CaGNetConfig(num_labels=number, unseen_ids=ids[number // 2 :], ignore_index=-100)
    config.check()
    assert len(config.seen_ids) == number // 2
    with pytest.raises(ValueError, match="are both seen and unseen") as refusal:
        CaGNetConfig(num_labels=number, seen_ids=ids, unseen_ids=ids[: number // 2], ignore_index=-100)
    assert len(str(refusal.value)) < 300
    assert Counted.comparisons - before < 50 * number  # each with each would be thousands of times their number


# Models


@pytest.mark.parametrize("options", [{}, {"classifier": "linear"}, {"patch_size": 3}, GAUSSIAN], ids=str)
@pytest.mark.parametrize("names", [OTHERS, dict(enumerate("abcde"))], ids=["other number", "same number"])
def test_other_classes_make_a_consistent_model(tmp_path, options, names):
    stored = build(**options)
    stored.save_pretrained(tmp_path / "model")
    with pytest.warns(UserWarning, match="no class vectors, which zero-shot use needs"):
        model = AutoModelForSemanticSegmentation.from_pretrained(
            tmp_path / "model", id2label=names, ignore_mismatched_sizes=True
        )
    number = len(names)
    assert classes_of(model.config) == given_anew(number)
    assert model(images()).logits.shape[1] == number
    assert not model.class_embeddings.any()
    old, new = stored.classifier.class_head.weight, model.classifier.class_head.weight
    assert len(new) == number and new.isfinite().all() and new.std() > 0
    assert not torch.equal(old, new)
    trunk = stored.cagnet.state_dict()
    assert all(torch.equal(values, trunk[name]) for name, values in model.cagnet.state_dict().items())
    model(images(), labels=torch.full((2, 33, 49), number - 1)).loss.backward()
    model.save_pretrained(tmp_path / "again")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = CaGNetForSemanticSegmentation.from_pretrained(tmp_path / "again")
    assert torch.equal(again.classifier.class_head.weight, new)
    assert classes_of(again.config) == given_anew(number)


def test_other_classes_need_a_class_head_of_another_size(folder):
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        CaGNetForSemanticSegmentation.from_pretrained(folder, num_labels=3)


@pytest.mark.parametrize("config_first", [False, True])
def test_the_same_classes_keep_their_weights(folder, config_first):
    stored = CaGNetForSemanticSegmentation.from_pretrained(folder)
    given = {"config": AutoConfig.from_pretrained(folder, num_labels=5)} if config_first else {"num_labels": 5}
    model = CaGNetForSemanticSegmentation.from_pretrained(folder, **given)
    expected = stored.state_dict()
    assert all(torch.equal(values, expected[name]) for name, values in model.state_dict().items())


# Class vectors that are missing


def test_a_projection_without_class_vectors_says_so_once():
    model = build(**SPNET)
    model.class_embeddings.zero_()
    with pytest.warns(UserWarning, match=r"the class vectors of \['cat', .* are zero"):
        model(images())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(images())
    model.class_embeddings.normal_()
    model.class_embeddings[3].zero_()
    with pytest.warns(UserWarning, match=r"the class vectors of \['sofa'\] are zero"):
        model(images())


def test_a_generator_without_class_vectors_says_so():
    model = build()
    model.class_embeddings.zero_()
    model(images())
    with pytest.warns(UserWarning, match="are zero: a projection or a generator cannot tell them apart"):
        model.synthesize_features(torch.zeros(1, 3, 3, dtype=torch.long))
