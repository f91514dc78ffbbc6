"""Pseudo-labels: the reference's choices, and what must never change."""

import numpy as np
import pytest
import torch
from golden import recipe as golden
from golden_weights import GOLDEN

from cagnet_hf.methods.pseudo_labels import confident_labels, top_k_labels

ARRAYS = np.load(GOLDEN / "self_training.npz")
CASES = sorted({name.partition("/")[0] for name in ARRAYS.files})
UNSEEN = [3, 4]


def golden_case(case: str):
    """(logits, labels, unseen ids, k, expected); only the order of the logits is given, the last is no class."""
    outputs, num_unseen, k = ARRAYS[f"{case}/params"].tolist()
    bits = golden._bits(f"gtst:{case}", 2 * 11 * 13 * outputs).reshape(2, 11, 13, outputs)
    ranking = np.argsort(bits, -1, kind="stable")  # classes, best first
    ranks = torch.from_numpy(np.argsort(ranking, -1)).movedim(-1, 1)
    labels, expected = (torch.from_numpy(ARRAYS[f"{case}/{name}"]).long() for name in ("gt", "out"))
    return 0.5 - ranks.double(), labels, [*range(outputs - 1 - num_unseen, outputs - 1)], k, expected


@pytest.mark.parametrize("case", CASES)
def test_top_k_labels_are_the_reference_s(case):
    logits, labels, unseen_ids, k, expected = golden_case(case)
    assert (labels == 255).any()
    no_padding = torch.zeros_like(labels, dtype=torch.bool)
    assert torch.equal(top_k_labels(logits, labels, no_padding, unseen_ids, k), expected)


@pytest.mark.parametrize("case", CASES)
def test_padding_stays_ignored_and_the_rest_does_not_mind(case):
    logits, labels, unseen_ids, k, expected = golden_case(case)
    padding = torch.zeros_like(labels, dtype=torch.bool)
    padding[:, :, 9:] = True
    given = top_k_labels(logits, labels, padding, unseen_ids, k)
    assert torch.equal(given, torch.where(padding, labels, expected))


def one_row(scores: list[list[float]]) -> torch.Tensor:
    """Logits `(1, N, 1, P)` of P pixels."""
    return torch.tensor(scores).t()[None, :, None]


def nothing_known(logits):
    """(labels, padding) of images without a label and without padding."""
    labels = torch.full((len(logits), *logits.shape[2:]), 255)
    return labels, torch.zeros_like(labels, dtype=torch.bool)


@pytest.mark.parametrize(("k", "expected"), [(1, [255, 4]), (2, [3, 4]), (5, [3, 4])])
def test_an_unseen_class_must_be_among_the_top_k(k, expected):
    logits = one_row([[9.0, 0, 0, 8, 7], [0, 1, 2, 3, 4]])
    assert top_k_labels(logits, *nothing_known(logits), UNSEEN, k).flatten().tolist() == expected


def test_the_most_confident_share_of_unseen_pixels_is_labelled():
    # confident in unseen, in seen, less confident in unseen, least confident in unseen
    logits = one_row([[0.0, 0, 0, 9, 0], [9, 0, 0, 0, 0], [0, 0, 0, 0, 4], [0, 0, 0, 1, 0]])
    for share, expected in ((0, [255] * 4), (0.25, [3, 255, 255, 255]), (0.5, [3, 255, 4, 255]), (1, [3, 255, 4, 3])):
        assert confident_labels(logits, *nothing_known(logits), UNSEEN, share).flatten().tolist() == expected


def test_every_image_labels_its_own_share():
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 20, 20)
    logits[1] *= 0.01  # an image the model is unsure of
    unseen_argmax = (logits.argmax(dim=1) >= 3).sum(dim=(1, 2))
    given = confident_labels(logits, *nothing_known(logits), UNSEEN, 0.25)
    assert (given != 255).sum(dim=(1, 2)).tolist() == (unseen_argmax / 4).ceil().tolist()
    assert (unseen_argmax > 0).all()


@pytest.fixture
def scene():
    """(logits, labels, padding) of two images with labelled, ignored and padded pixels."""
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 12, 15), torch.randint(0, 3, (2, 12, 15))
    labels[:, 4:] = 255
    padding = torch.zeros(2, 12, 15, dtype=torch.bool)
    padding[:, 9:] = True
    return logits, labels, padding


RULES = [(top_k_labels, 2), (confident_labels, 0.5)]


@pytest.mark.parametrize(("rule", "amount"), RULES)
def test_labelled_and_padded_pixels_are_unchanged_and_only_unseen_classes_are_given(scene, rule, amount):
    logits, labels, padding = scene
    before = [values.clone() for values in scene]
    given = rule(logits, labels, padding, UNSEEN, amount)
    assert torch.equal(given[:, :4], labels[:, :4])
    assert (given[padding] == 255).all()
    assert set(given[:, 4:9].unique().tolist()) == {*UNSEEN, 255}
    assert all(torch.equal(values, copy) for values, copy in zip(scene, before, strict=True))


@pytest.mark.parametrize(("rule", "amount"), RULES)
def test_padded_pixels_do_not_count(scene, rule, amount):
    logits, labels, padding = scene
    logits[:, 4, 9:] = 100  # the most confident of all
    cropped = rule(logits[:, :, :9], labels[:, :9], padding[:, :9], UNSEEN, amount)
    assert torch.equal(rule(logits, labels, padding, UNSEEN, amount)[:, :9], cropped)


@pytest.mark.parametrize(("rule", "amount"), RULES)
def test_no_value_is_read_back(scene, rule, amount):
    """On the meta device there are no values: reading one would wait for the GPU, and fails here."""
    given = rule(*(values.to("meta") for values in scene), UNSEEN, amount)
    assert (given.shape, given.dtype) == ((2, 12, 15), torch.int64)


@pytest.mark.parametrize(("rule", "amount"), RULES)
def test_the_ignore_index_is_a_choice(scene, rule, amount):
    logits, labels, padding = scene
    other = labels.where(labels != 255, -1)
    given = rule(logits, other, padding, UNSEEN, amount, ignore_index=-1)
    assert torch.equal(given.where(given != -1, 255), rule(logits, labels, padding, UNSEEN, amount))


@pytest.mark.parametrize(
    ("rule", "amount", "message"),
    [
        (top_k_labels, 0, "k=0: choose from 1 to the number of classes, 5"),
        (top_k_labels, 6, "k=6: choose from 1"),
        (confident_labels, 25, "share=25: choose from 0 to 1"),
    ],
)
def test_an_amount_out_of_range_is_refused(scene, rule, amount, message):
    with pytest.raises(ValueError, match=message):
        rule(*scene, UNSEEN, amount)


@pytest.mark.parametrize(("rule", "amount"), RULES)
def test_maps_of_another_size_are_refused(scene, rule, amount):
    logits, labels, padding = scene
    with pytest.raises(ValueError, match=r"labels of shape \(2, 6, 15\) for logits of shape \(2, 5, 12, 15\)"):
        rule(logits, labels[:, ::2], padding, UNSEEN, amount)
    with pytest.raises(ValueError, match=r"padding of shape \(1, 12, 15\)"):
        rule(logits, labels, padding[:1], UNSEEN, amount)
