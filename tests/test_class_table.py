"""A dataset's own class table: what it says, and what is wrong with others."""

from dataclasses import replace
from pathlib import Path

import pytest

from cagnet_hf.data.benchmarks import Benchmark, benchmark_names, format_class_table, load_benchmark, parse_class_table
from cagnet_hf.data.sources import check_classes_of_dataset, open_with_classes
from cagnet_hf.training.recipe_files import load_recipe
from cagnet_hf.training.setup import dataset_of

FARM = """\
name: farm
classes:
- {id: 0, name: nothing}
- {id: 3, name: sheep}
- {id: 7, name: cow}
- {id: 2, name: dog}
seen: [dog, 3]
unseen: [cow]
ignored: [nothing]
tuning: [sheep]
"""


def parse(text: str):
    return parse_class_table(text, "classes.yaml", "folder")


def test_a_table_names_the_classes_in_its_order_of_seen_and_unseen():
    benchmark = parse(FARM)
    assert benchmark == Benchmark(
        name="farm",
        label_names=("nothing", "", "dog", "sheep", "", "", "", "cow"),
        seen_ids=(2, 3),
        unseen_ids=(7,),
        ignored_ids=(0,),
        seen_ids_for_tuning=(3,),
    )
    assert benchmark.class_names == ("dog", "sheep", "cow")
    assert benchmark.colors == {}


def test_colors_are_read_by_id():
    text = (
        "classes: [{id: 1, name: a, color: [255, 0, 1]}, {id: 2, name: b, color: [0, 0, 0]}]\nseen: [a]\nunseen: [b]"
    )
    assert parse(text).colors == {1: (255, 0, 1), 2: (0, 0, 0)}
    assert parse(text).name == "folder"
    assert parse(format_class_table(parse(text))) == parse(text)


@pytest.mark.parametrize("name", benchmark_names())
def test_a_written_table_says_the_same(name):
    benchmark = load_benchmark(name)
    assert parse(format_class_table(benchmark)) == benchmark


@pytest.mark.parametrize("what", ["farm", "farm/classes.yaml"])
def test_a_benchmark_is_loaded_from_a_folder_or_its_table(tmp_path, what):
    (tmp_path / "farm").mkdir()
    (tmp_path / "farm" / "classes.yaml").write_text(FARM.replace("name: farm\n", ""))
    assert load_benchmark(tmp_path / what) == load_benchmark(str(tmp_path / what)) == parse(FARM)


def test_a_folder_without_a_table_is_refused(tmp_path):
    with pytest.raises(ValueError) as refused:
        load_benchmark(str(tmp_path))
    assert str(refused.value) == (
        f"{tmp_path}: no classes.yaml in it; `cagnet-hf prepare_data` makes folders that have one"
    )


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (FARM, "- sheep", "not a mapping of name, classes, seen, unseen, ignored, tuning, unannotated, origin"),
        ("unseen: [cow]", "", "no unseen; a class table has classes, seen and unseen"),
        ("unseen: [cow]", "unseen: []", "no unseen; a class table has classes, seen and unseen"),
        ("unseen: [cow]", "unseen: cow", "unseen is a list, got 'cow'"),
        ("ignored:", "ignore:", "unknown key 'ignore'; did you mean 'ignored'?"),
        ("ignored:", "zzz: 1\nignored:", "unknown key 'zzz'; known: name, classes, seen, unseen, ignored, tuning, "
         "unannotated, origin"),
        ("ignored:", "ignore_index: 0\nignored:", "ignore_index: pixels without a label are 255 in every mask"),
        ("id: 7", "id: 3", "id 3 is both 'sheep' and 'cow'"),
        ("id: 7", "id: 255", "id 255 of class 'cow': an id is a number from 0 to 254"),
        ("id: 7", "id: seven", "id 'seven' of class 'cow': an id is a number from 0 to 254"),
        ("name: cow", "name: sheep", "two classes are called 'sheep'"),
        ("name: cow", "name: no", "name False of id 7: a name is a text (in quotes where YAML needs them)"),
        ("name: cow", "color: [0, 0, 0]", "{'id': 7, 'color': [0, 0, 0]} is no class: write {id: 1, name: sheep}, "
         "with color: [r, g, b] if need be"),
        ("name: cow", "name: cow, color: [0, 0, 256]", "color [0, 0, 256] of class 'cow': write [r, g, b], each from "
         "0 to 255"),
        ("name: cow", "name: cow, color: [0, 0, 0]", "class 'nothing' has no color: give one to every class or to "
         "none"),
        ("[dog, 3]", "[dgo, 3]", "seen: 'dgo' is no class; did you mean 'dog'?"),
        ("[dog, 3]", "[dog, 4]", "seen: 4 is no class"),
        ("[dog, 3]", "[dog]", "class 'sheep' is neither seen, unseen nor ignored"),
        ("[dog, 3]", "[dog, 3, cow]", "class 'cow' is in several of seen, unseen, ignored"),
        ("tuning: [sheep]", "tuning: [cow]", "tuning: 'cow' is no seen class"),
        ("seen: [dog", "seen: [dog, [sheep]", "seen: ['sheep'] is no class; did you mean 'sheep'?"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused(old, new, reason):
    with pytest.raises(ValueError) as refused:
        parse(FARM.replace(old, new, 1))
    assert str(refused.value) == f"classes.yaml: {reason}"


def test_a_table_that_is_no_yaml_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^classes\.yaml: not YAML: [^\n]+$"):
        parse("classes: [")


# A prepared folder whose classes are others than the benchmark's


@pytest.fixture
def folder(tmp_path):
    """`folder(old, new)`: a folder with the class table of `scenes`, in which a text stands for another."""

    def write(old: str = "", new: str = "") -> str:
        (tmp_path / "classes.yaml").write_text(format_class_table(load_benchmark("scenes")).replace(old, new))
        return str(tmp_path)

    return write


def test_other_classes_than_the_benchmark_s_are_refused_by_name(folder):
    other = folder("red striped disc", "zebra")
    recipe = load_recipe("scenes/spnet", [f"dataset={other}"])
    for refuse in (lambda: dataset_of(recipe, "train"), lambda: open_with_classes(other, "test", benchmark="scenes")):
        with pytest.raises(ValueError) as refused:
            refuse()
        stored_id = load_benchmark("scenes").label_names.index("red striped disc")
        assert str(refused.value) == (
            f"{other} has other classes than benchmark scenes: id {stored_id} is 'zebra' there and 'red striped disc' "
            f"here: say benchmark={other}, or give a label_map"
        )
    with pytest.raises(ValueError, match=r"id 0 is 'background' there and .*; and 1\d more: say"):
        check_classes_of_dataset(other, load_benchmark("coco_stuff"))


def test_other_unseen_classes_than_the_benchmark_s_are_warned_about(folder, caplog):
    scenes = load_benchmark("scenes")
    check_classes_of_dataset(folder(), scenes)
    check_classes_of_dataset("nowhere", scenes)
    assert caplog.text == ""
    own = folder()
    table = load_benchmark(own)
    moved = replace(table, seen_ids=(*table.seen_ids, table.unseen_ids[0]), unseen_ids=table.unseen_ids[1:])
    (Path(own) / "classes.yaml").write_text(format_class_table(moved))
    check_classes_of_dataset(own, scenes)
    assert f"not those of {own}/classes.yaml, which benchmark={own} takes" in caplog.text


def test_a_prepared_folder_alone_is_its_own_benchmark(folder, tmp_path):
    own = folder()
    assert load_recipe("scenes/spnet", ["benchmark=null", f"dataset={own}"]).benchmark == own
    assert load_recipe("scenes/spnet", [f"dataset={own}"]).benchmark == "scenes"
    (tmp_path / "recipe.yaml").write_text(
        f"{{dataset: '{own}', method: spnet, stages: {{one: {{iterations: 1, batch_size: 1, crop_size: 8}}}}}}"
    )
    assert load_recipe(str(tmp_path / "recipe.yaml")).benchmark == own
