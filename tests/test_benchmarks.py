"""The facts of the benchmarks, and the map between stored ids and model order."""

from dataclasses import replace

import numpy as np
import pytest

from cagnet_hf import CaGNetConfig
from cagnet_hf.data.benchmarks import Benchmark, load_benchmark
from cagnet_hf.data.label_space import UNLABELLED, LabelSpace


@pytest.mark.parametrize(
    ("name", "num_seen", "unseen"),
    [
        ("pascal_voc", 15, "potted_plant sheep sofa train tv"),
        ("pascal_context", 29, "cow motorbike sofa cat"),
        (
            "coco_stuff",
            167,
            "cow giraffe suitcase frisbee skateboard carrot scissors cardboard clouds grass playingfield river road "
            "tree wall-concrete",
        ),
    ],
)
def test_splits_are_the_published_ones(name, num_seen, unseen):
    benchmark = load_benchmark(name)
    assert len(benchmark.seen_ids) == num_seen
    assert benchmark.class_names[num_seen:] == tuple(unseen.split())


def test_coco_stuff_has_annotations_of_156_seen_classes():
    benchmark = load_benchmark("coco_stuff")
    assert len(set(benchmark.seen_ids) - set(benchmark.unannotated_ids)) == 156


def test_model_order_is_seen_then_unseen():
    context = load_benchmark("pascal_context")
    assert context.class_ids == context.seen_ids + context.unseen_ids
    assert context.class_names[-1] == "cat"


def test_an_unknown_benchmark_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'pascal'.*pascal_voc"):
        load_benchmark("pascal")


def test_a_class_cannot_be_seen_and_unseen():
    with pytest.raises(ValueError, match=r"\[1\] are both seen and unseen"):
        Benchmark("mine", ("a", "b"), seen_ids=(0, 1), unseen_ids=(1,))


@pytest.mark.parametrize("name", ["pascal_voc", "pascal_context", "coco_stuff"])
def test_model_order_and_back_gives_the_stored_ids(name):
    benchmark = load_benchmark(name)
    stored = np.array([benchmark.class_ids], dtype=np.uint8)
    model_order = benchmark.label_space.to_model_order(stored)
    assert model_order.tolist() == [list(range(len(benchmark.class_ids)))]
    assert (benchmark.label_space.to_stored_ids(model_order) == stored).all()


def test_background_and_255_are_ignored():
    mask = np.array([[0, 255, 1]], dtype=np.uint8)
    assert load_benchmark("pascal_voc").label_space.to_model_order(mask).tolist() == [[UNLABELLED, UNLABELLED, 0]]


def test_unseen_classes_are_hidden_on_request_only():
    labels = load_benchmark("pascal_voc").label_space
    mask = np.array([[15, 16, 20]], dtype=np.uint8)
    assert labels.to_model_order(mask).tolist() == [[14, 15, 19]]
    assert labels.to_model_order(mask, hide_unseen=True).tolist() == [[14, UNLABELLED, UNLABELLED]]


def test_masks_are_not_changed():
    mask = np.array([[0, 16, 255]], dtype=np.uint8)
    load_benchmark("pascal_voc").label_space.to_model_order(mask, hide_unseen=True)
    assert mask.tolist() == [[0, 16, 255]]


def test_an_unknown_id_is_refused_with_file_and_value():
    mask = np.array([[1, 21]], dtype=np.uint8)
    with pytest.raises(ValueError, match=r"2007_000033\.png: label 21"):
        load_benchmark("pascal_voc").label_space.to_model_order(mask, source="2007_000033.png")


def test_an_unknown_id_is_refused_even_where_unseen_classes_are_hidden():
    mask = np.array([[21]], dtype=np.uint8)
    with pytest.raises(ValueError, match="label 21"):
        load_benchmark("pascal_voc").label_space.to_model_order(mask, hide_unseen=True)


def test_a_colour_mask_is_refused():
    with pytest.raises(ValueError, match=r"2-d uint8"):
        load_benchmark("pascal_voc").label_space.to_model_order(np.zeros((4, 4, 3), np.uint8))


def test_the_tuning_split_plays_seen_classes_as_unseen():
    voc = load_benchmark("pascal_voc")
    tuning = voc.for_tuning()
    assert tuning.unseen_ids == voc.seen_ids_for_tuning
    assert set(tuning.seen_ids) | set(tuning.unseen_ids) == set(voc.seen_ids)


@pytest.mark.parametrize(("seen", "unseen", "held_out"), [(2, 3, [1]), (7, 1, [3]), (9, 2, [2, 6]), (9, 5, [1, 4, 7])])
def test_a_benchmark_that_names_no_tuning_classes_holds_out_some(seen, unseen, held_out):
    names = tuple(f"class {i}" for i in range(seen + unseen))
    benchmark = Benchmark("farm", names, tuple(range(seen)), tuple(range(seen, seen + unseen)))
    tuning = benchmark.for_tuning()
    assert list(tuning.unseen_ids) == held_out
    assert set(tuning.seen_ids) == set(range(seen)) - set(held_out)
    assert tuning.ignored_ids == benchmark.unseen_ids


def test_one_seen_class_cannot_play_an_unseen_one():
    with pytest.raises(ValueError, match="benchmark farm has one seen class, so that none can play an unseen one"):
        Benchmark("farm", ("sheep", "cow"), (0,), (1,)).for_tuning()


def test_the_tuning_split_ignores_the_truly_unseen_classes():
    voc = load_benchmark("pascal_voc")
    mask = np.array([voc.unseen_ids], dtype=np.uint8)
    assert (voc.for_tuning().label_space.to_model_order(mask) == UNLABELLED).all()


@pytest.mark.parametrize(
    ("ignore_index", "dtype"), [(255, np.uint8), (254, np.uint8), (-100, np.int64), (1000, np.int64)]
)
def test_a_pixel_without_a_class_may_be_called_by_any_number(ignore_index, dtype):
    labels = replace(load_benchmark("pascal_voc").label_space, ignore_index=ignore_index)
    mask = np.array([[0, 255, 15, 16]], dtype=np.uint8)
    assert labels.to_model_order(mask).tolist() == [[ignore_index, ignore_index, 14, 15]]
    assert labels.to_model_order(mask, hide_unseen=True).tolist() == [[ignore_index, ignore_index, 14, ignore_index]]
    assert labels.to_model_order(mask).dtype == dtype


def test_a_model_calls_pixels_without_a_class_as_its_configuration_says():
    fields = load_benchmark("pascal_voc").config_fields()
    labels = LabelSpace.of(CaGNetConfig(**fields, ignore_index=1000))
    assert labels.to_model_order(np.array([[0, 20]], np.uint8)).tolist() == [[1000, 19]]
    assert labels.to_stored_ids(np.array([[0, 19]])).tolist() == [[1, 20]]
