"""Laws that hold for every input, tried on drawn ones: metric, label maps, patches, transforms, MMD, and parsers."""

import string

import evaluate
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from cagnet_hf.data.benchmarks import parse_class_table
from cagnet_hf.data.label_space import UNLABELLED, LabelSpace
from cagnet_hf.data.transforms import Augmentation, TrainingTransform
from cagnet_hf.evaluation import METRIC_PATH
from cagnet_hf.methods.losses import classwise_mmd, moment_matching_loss
from cagnet_hf.methods.options import Recipe, RecipeError
from cagnet_hf.model.image_processing_cagnet import CaGNetImageProcessor
from cagnet_hf.patches.layouts import assemble_patches, cut_patches, fill_ignored
from cagnet_hf.patches.pixel_cnn import PatchPixelCNNConfig
from cagnet_hf.training.recipe_files import load_recipe

settings.register_profile(
    "suite",
    max_examples=25,
    derandomize=True,  # the same inputs in every run
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("suite")

N = 5  # classes, of which the last two are unseen


# The metric


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(METRIC_PATH, num_labels=N, seen_ids=[0, 1, 2], unseen_ids=[3, 4])


sides = st.integers(1, 6)
predictions = st.integers(0, N - 1)
references = st.sampled_from([*range(N), UNLABELLED])


@st.composite
def pairs(draw):
    """A prediction and a reference of one shape."""
    shape = draw(st.tuples(sides, sides))
    return tuple(draw(arrays.arrays(np.uint8, shape, elements=values)) for values in (predictions, references))


def scored(metric, *maps) -> dict:
    for prediction, reference in maps:
        metric.add(prediction=prediction, reference=reference)
    return metric.compute()


@given(pair=pairs())
def test_scores_are_fractions_or_undefined(metric, pair):
    scores = scored(metric, pair)
    assert all(value is None or 0 <= value <= 1 for name, value in scores.items() if name != "per_class")
    counted = sum(entry["pixels"] for entry in scores["per_class"].values())
    assert counted == (pair[1] != UNLABELLED).sum()


@given(pair=pairs())
def test_a_perfect_prediction_scores_one(metric, pair):
    truth = pair[0]
    scores = scored(metric, (truth, truth))
    assert scores["PA"] == scores["mIoU"] == scores["MA"] == 1


@given(batch=st.lists(pairs(), min_size=1, max_size=4), data=st.data())
def test_scores_depend_on_no_order_of_maps_or_pixels(metric, batch, data):
    expected = scored(metric, *batch)
    shuffled = []
    for prediction, reference in data.draw(st.permutations(batch)):
        order = data.draw(st.permutations(range(prediction.size)))
        shuffled.append((prediction.ravel()[order][None], reference.ravel()[order][None]))
    assert scored(metric, *shuffled) == expected


@given(pair=pairs(), other=st.integers(0, N - 1))
def test_what_is_predicted_at_ignored_pixels_changes_nothing(metric, pair, other):
    prediction, reference = pair
    elsewhere = np.where(reference == UNLABELLED, other, prediction).astype(np.uint8)
    assert scored(metric, (elsewhere, reference)) == scored(metric, pair)


# Label maps


@st.composite
def label_spaces(draw):
    """A label space, the ids it knows, and a mask of them."""
    ids = draw(st.lists(st.integers(0, 254), min_size=2, max_size=8, unique=True))
    num_seen = draw(st.integers(1, len(ids) - 1))
    num_ignored = draw(st.integers(0, len(ids) - num_seen - 1))
    classes, ignored = ids[: len(ids) - num_ignored], ids[len(ids) - num_ignored :]
    mask = draw(arrays.arrays(np.uint8, st.tuples(sides, sides), elements=st.sampled_from([*ids, UNLABELLED])))
    return LabelSpace(tuple(classes), num_seen, tuple(ignored)), classes, num_seen, mask


@given(drawn=label_spaces())
def test_a_label_space_goes_there_and_back(drawn):
    labels, classes, num_seen, mask = drawn
    before = mask.copy()
    mapped = labels.to_model_order(mask)
    labelled = mapped != UNLABELLED
    assert (labelled == np.isin(mask, classes)).all()
    assert (labels.to_stored_ids(mapped[labelled]) == mask[labelled]).all()
    hidden = labels.to_model_order(mask, hide_unseen=True)
    assert (hidden == np.where(mapped < num_seen, mapped, UNLABELLED)).all()
    assert (mask == before).all()


@given(drawn=label_spaces(), data=st.data())
def test_an_id_that_is_not_known_is_refused(drawn, data):
    labels, _, _, mask = drawn
    known = {*labels.class_ids, *labels.ignored_ids}
    stranger = data.draw(st.integers(0, 254).filter(lambda i: i not in known))
    mask[-1, -1] = stranger
    with pytest.raises(ValueError, match=f"label {stranger} is not in the label set"):
        labels.to_model_order(mask)


# Patches


@given(
    side=st.integers(1, 4),
    shape=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    data=st.data(),
)
def test_blocks_are_the_pieces_of_their_label_map(side, shape, data):
    labels = data.draw(arrays.arrays(np.int64, shape, elements=st.sampled_from([0, 1, 2, UNLABELLED])))
    if min(shape) < side:
        with pytest.raises(ValueError, match="hold no patch"):
            cut_patches(torch.from_numpy(labels)[None], side)
        return
    blocks = cut_patches(torch.from_numpy(labels)[None], side)
    expected = [
        labels[row : row + side, column : column + side]
        for row in range(0, shape[0] - side + 1, side)
        for column in range(0, shape[1] - side + 1, side)
    ]
    expected = [block for block in expected if (block != UNLABELLED).any()]
    assert len(blocks) == len(expected)
    assert all((block.numpy() == piece).all() for block, piece in zip(blocks, expected, strict=True))


@given(patches=arrays.arrays(np.int64, (3, 3, 3), elements=st.sampled_from([0, 1, 2, UNLABELLED, UNLABELLED])))
def test_ignored_pixels_of_a_patch_are_filled_with_its_own_classes(patches):
    filled, labels = (values.numpy() for values in fill_ignored(torch.from_numpy(patches)))
    for before, after, learnt in zip(patches, filled, labels, strict=True):
        known = before != UNLABELLED
        assert (after[known] == before[known]).all()
        assert set(np.unique(after)) <= set(np.unique(before[known])) if known.any() else (after == before).all()
        assert ((learnt == before) | (learnt == UNLABELLED)).all()


@given(number=st.tuples(st.integers(1, 3), st.integers(1, 3)), side=st.integers(1, 3))
def test_patches_side_by_side_are_cut_into_themselves(number, side):
    patches = torch.arange(2 * number[0] * number[1] * side * side).view(2, *number, side, side)
    assert torch.equal(cut_patches(assemble_patches(patches % UNLABELLED), side), (patches % UNLABELLED).flatten(0, 2))


@given(size=st.integers(-3, 6), unseen=st.lists(st.integers(-2, 8), max_size=4))
def test_a_pixelcnn_has_a_configuration_that_makes_sense_or_is_refused(size, unseen):
    try:
        config = PatchPixelCNNConfig(patch_size=size, num_classes=5, unseen_ids=unseen, embedding_size=4)
    except ValueError:
        return
    assert config.patch_size >= 1
    assert all(0 <= i < 5 for i in config.unseen_ids)


# Transforms


@given(
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    augmentation=st.builds(
        Augmentation, scale=st.floats(0.3, 2), row=st.floats(0, 0.999), column=st.floats(0, 0.999), flip=st.booleans()
    ),
    crop=st.sampled_from([8, 17, 32]),
)
def test_image_and_mask_stay_aligned(size, augmentation, crop):
    """An image whose two halves are its labels: away from the border between them they agree in every crop."""
    labels = np.zeros(size, np.uint8)
    labels[:, size[1] // 2 :] = 1
    image = np.repeat((labels * 100 + 100)[..., None], 3, axis=2)
    processor = CaGNetImageProcessor(size={"longest_edge": 32}, image_mean=[0, 0, 0], image_std=[1, 1, 1])
    example = TrainingTransform(processor, crop)(Image.fromarray(image), labels, augmentation)
    pixels, kept, padding = (example[key] for key in ("pixel_values", "labels", "padding"))
    assert pixels.shape == (3, crop, crop) and kept.shape == padding.shape == (crop, crop)
    assert ((kept == UNLABELLED) == padding).all()
    assert (pixels[:, padding] == 0).all()
    clear = (pixels[0] == 100) | (pixels[0] == 200)
    # Nearest and bilinear differ by a pixel at the border at most, where the image is neither.
    wrong = clear & ~padding & (pixels[0] != kept * 100 + 100)
    assert wrong.sum() <= 2 * crop
    assert clear[~padding].float().mean() > 0.3 or size[1] < 16


# MMD

vectors = arrays.arrays(np.float32, st.tuples(st.integers(2, 7), st.just(3)), elements=st.floats(-4, 4, width=16))


@given(first=vectors, second=vectors)
def test_mmd_is_symmetric(first, second):
    first, second = torch.from_numpy(first), torch.from_numpy(second)
    there, back = moment_matching_loss(first, second), moment_matching_loss(second, first)
    assert there.isfinite() and there >= 0
    torch.testing.assert_close(there, back, atol=1e-3, rtol=1e-3)


@given(values=vectors, data=st.data())
def test_mmd_of_a_set_and_itself_in_any_order_is_zero(values, data):
    shuffled = values[data.draw(st.permutations(range(len(values))))]
    assert moment_matching_loss(torch.from_numpy(values), torch.from_numpy(shuffled)) <= 1e-2


@given(first=vectors, second=vectors, data=st.data())
def test_mmd_depends_on_no_order(first, second, data):
    shuffled = first[data.draw(st.permutations(range(len(first))))]
    second = torch.from_numpy(second)
    expected, found = (moment_matching_loss(torch.from_numpy(rows), second) for rows in (first, shuffled))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)


@given(values=vectors, data=st.data())
def test_mmd_by_class_is_symmetric_zero_on_equal_sets_and_without_order(values, data):
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=len(values), max_size=len(values))))
    order = torch.tensor(data.draw(st.permutations(range(len(values)))))
    first = torch.from_numpy(values).t()[None, :, None]
    second = first.flip(1) * 0.5
    expected = classwise_mmd(first, second, labels, 3)
    assert expected.isfinite() and expected >= 0
    for found in (
        classwise_mmd(second, first, labels, 3),
        classwise_mmd(first[..., order], second[..., order], labels[order], 3),
    ):
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)
    assert classwise_mmd(first, first, labels, 3) <= 1e-2


# Parsers: whatever they are given, they answer with a value or with one line

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 300),
    st.floats(),
    st.text(string.printable, max_size=8),
    st.sampled_from(["id", "name", "sheep", "cow", "color"]),
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["classes", "seen", "unseen", "ignored", "tuning", "id", "name", "color", "stages"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


def answer(parse, *arguments):
    """The value, or None where it was refused in one line."""
    try:
        return parse(*arguments)
    except ValueError as error:
        assert str(error)
        assert "\n" not in str(error)
        return None


@settings(max_examples=150)
@given(tree=trees)
def test_a_class_table_of_anything_is_read_or_refused_in_one_line(tree):
    answer(parse_class_table, yaml.safe_dump(tree), "table", "drawn")


@settings(max_examples=150)
@given(text=st.text(max_size=40))
def test_a_class_table_of_any_text_is_refused_in_one_line(text):
    answer(parse_class_table, text, "table", "drawn")


@settings(max_examples=60)
@given(classes=st.lists(scalars, max_size=4), seen=st.lists(scalars, max_size=3), unseen=st.lists(scalars, max_size=3))
def test_a_class_table_never_puts_a_class_on_both_sides(classes, seen, unseen):
    rows = [{"id": number, "name": name} for number, name in enumerate(classes)]
    found = answer(parse_class_table, yaml.safe_dump({"classes": rows, "seen": seen, "unseen": unseen}), "t", "drawn")
    if found is not None:
        benchmark = found[0]
        assert not set(benchmark.seen_ids) & set(benchmark.unseen_ids)
        assert set(benchmark.class_names) <= set(classes)


recipe_keys = st.sampled_from(
    [*sorted(Recipe.model_fields), "stages.pretrain.network.lr", "stages.finetune", "sead", ""]
)


@settings(max_examples=150)
@given(key=recipe_keys, value=trees)
def test_an_override_of_anything_gives_a_recipe_or_one_line(key, value):
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
    recipe = answer(load_recipe, "scenes", [f"{key}={text}"])
    assert recipe is None or isinstance(recipe, Recipe)


@settings(max_examples=60)
@given(override=st.text(max_size=20))
def test_an_override_of_any_text_gives_a_recipe_or_one_line(override):
    answer(load_recipe, "scenes", [override])


@settings(max_examples=60)
@given(tree=trees)
def test_a_recipe_file_of_anything_is_read_or_refused(tree, tmp_path):
    path = tmp_path / "drawn.yaml"
    path.write_text(yaml.safe_dump(tree))
    try:
        load_recipe(str(path))
    except RecipeError as error:
        assert "\n" not in str(error)
