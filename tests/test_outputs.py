"""What a command writes never replaces a file or a folder that the command did not write, nor anything it reads."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from conftest import REPOSITORY
from miniature_archives import write_jpeg, write_png
from PIL import Image
from test_bad_input import IDS, Place, assert_one_line, contents
from trained import arguments

from cagnet_hf.files import DATASET_FOLDER, MODEL_FOLDER, check_output, made_by, write_whole
from cagnet_hf.methods.options import RecipeError
from cagnet_hf.training.checkpoints import checkpoints
from cagnet_hf.training.recipe_files import load_recipe
from cagnet_hf.training.run_folder import RunFolder

MARK = made_by("evaluate")


@pytest.fixture
def place(tmp_path, trained_run, tiny_dataset, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "work").mkdir()
    return Place(tmp_path / "work", trained_run, tiny_dataset)


# The one function that decides


def test_an_absent_file_an_absent_folder_and_an_empty_folder_may_be_written(tmp_path):
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "new" / "file.json", MARK)
    check_output(tmp_path / "new", MODEL_FOLDER)
    check_output(tmp_path / "empty", MODEL_FOLDER, overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_without_the_mark_stays(tmp_path, overwrite):
    file = tmp_path / "notes.json"
    file.write_text('{"made_by": "me"}')
    with pytest.raises(FileExistsError, match="notes"):
        check_output(file, MARK, overwrite=overwrite)


@pytest.mark.parametrize("filling", [0, 5 << 20], ids=["small", "large"])
def test_a_file_with_the_mark_at_either_end_may_be_replaced(tmp_path, filling):
    for name, content in {"first": MARK + " " * filling, "last": " " * filling + MARK}.items():
        (tmp_path / name).write_text(content)
        check_output(tmp_path / name, MARK)
        with pytest.raises(FileExistsError, match="exists; choose another or pass --overwrite"):
            check_output(tmp_path / name, MARK, overwrite=False)


def test_a_mark_of_another_command_is_no_mark(tmp_path):
    (tmp_path / "scores.json").write_text(made_by("calibrate"))
    with pytest.raises(FileExistsError, match="was not written by this command"):
        check_output(tmp_path / "scores.json", MARK)


def test_a_link_stays_whatever_it_leads_to(tmp_path):
    (tmp_path / "own.json").write_text(MARK)
    for name, target in {"link.json": "own.json", "dangling.json": "absent"}.items():
        (tmp_path / name).symlink_to(tmp_path / target)
        with pytest.raises(FileExistsError, match="is a link"):
            check_output(tmp_path / name, MARK)


@pytest.mark.parametrize("kind", [MARK, MODEL_FOLDER], ids=["file", "folder"])
def test_a_link_to_itself_is_refused_in_words(tmp_path, kind):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(FileExistsError, match="is a link and stays as it is"):
        check_output(tmp_path / "loop", kind)
    with pytest.raises(NotADirectoryError, match="loop is a link to itself, not a folder"):
        check_output(tmp_path / "loop" / "output", kind)
    check_output(tmp_path / "new", kind, inputs=[tmp_path / "loop"])


def test_a_folder_for_a_file_and_a_file_for_a_folder_are_refused(tmp_path):
    (tmp_path / "file").write_text(MARK)
    with pytest.raises(IsADirectoryError, match="name the file to write"):
        check_output(tmp_path, MARK)
    with pytest.raises(FileExistsError, match="no model folder of this package"):
        check_output(tmp_path / "file", MODEL_FOLDER)
    for kind in (MARK, MODEL_FOLDER):
        with pytest.raises(NotADirectoryError, match="file is a file, not a folder"):
            check_output(tmp_path / "file" / "output", kind)


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="you may not write to"):
        check_output(tmp_path / "out", MODEL_FOLDER)


def model_like(folder):
    folder.mkdir()
    (folder / "config.json").write_text('{\n  "model_type": "cagnet"\n}')
    (folder / "model.safetensors").write_text("")
    return folder


def test_a_model_folder_may_be_replaced_unless_it_holds_anything_else(tmp_path):
    folder = model_like(tmp_path / "model")
    check_output(folder, MODEL_FOLDER)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="stays as it is"):
        check_output(folder, MODEL_FOLDER)


def test_a_link_in_a_folder_is_the_user_s(tmp_path):
    folder = model_like(tmp_path / "model")
    (folder / "README.md").symlink_to(tmp_path / "elsewhere.md")
    with pytest.raises(FileExistsError, match="stays as it is"):
        check_output(folder, MODEL_FOLDER)


@pytest.mark.parametrize("kind", [MODEL_FOLDER, DATASET_FOLDER], ids=lambda kind: kind.name)
def test_a_folder_without_marks_stays(tmp_path, kind):
    for name in ("config.json", "id2label.json", "README.md"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileExistsError, match=f"is no {kind.name} of this package"):
        check_output(tmp_path, kind)


def test_an_input_is_never_the_output_nor_in_it(tmp_path):
    folder = model_like(tmp_path / "model")
    (tmp_path / "link").symlink_to(folder)
    for given in (folder, folder / "model.safetensors", tmp_path / "link" / "model.safetensors"):
        with pytest.raises(ValueError, match="is read, and would be replaced"):
            check_output(folder, MODEL_FOLDER, inputs=[given])
    check_output(folder, MODEL_FOLDER, inputs=["owner/name", None, tmp_path / "absent"])


def test_a_folder_that_came_during_the_work_stays(tmp_path):
    def write(aside):
        (aside / "config.json").write_text("new")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")

    with pytest.raises(FileExistsError, match="stays as it is"):
        write_whole(tmp_path / "out", write, MODEL_FOLDER)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_what_a_kill_between_two_renamings_left_is_put_back(tmp_path):
    model_like(tmp_path / ".out.old")

    def fail(aside):
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_whole(tmp_path / "out", fail, MODEL_FOLDER)
    assert (tmp_path / "out" / "config.json").is_file()


def test_of_a_link_to_a_model_folder_the_folder_is_replaced(tmp_path):
    folder = model_like(tmp_path / "disk")
    (tmp_path / "link").symlink_to(folder)
    write_whole(tmp_path / "link", lambda aside: (aside / "config.json").write_text("new"), MODEL_FOLDER)
    assert (tmp_path / "link").is_symlink()
    assert (folder / "config.json").read_text() == "new"


# The commands


def checkpoint_in_its_output(place):
    folder = model_like(place.folder / "work")
    torch.save({"weight": torch.zeros(1)}, folder / "ckpt.pth")
    return ["convert_checkpoint", str(folder / "ckpt.pth"), "--output", str(folder), "--overwrite"]


def foreign_folder_for_a_checkpoint(place):
    place.write("work/notes.txt", "mine")
    torch.save({"weight": torch.zeros(1)}, place.folder / "ckpt.pth")
    output = ["--output", str(place.folder / "work"), "--overwrite"]
    return ["convert_checkpoint", str(place.folder / "ckpt.pth"), *output]


def source_in_its_output(place):
    source = place.photographs()
    out = place.folder / "out"
    out.mkdir()
    source.rename(out / "raw")
    return ["prepare_data", "folder", "--source", str(out / "raw"), "--output", str(out), "--overwrite"]


def file_for_a_dataset(place):
    output = place.write("taken", "mine")
    return ["prepare_data", "folder", "--source", str(place.photographs()), "--output", str(output), "--overwrite"]


def dataset_of_others(place):
    """As the Hub has many: id2label.json, a card, Parquet files."""
    out = place.folder / "theirs"
    for name in ("README.md", "id2label.json", "data/train-00000-of-00001.parquet"):
        place.write(f"theirs/{name}", "{}")
    return ["prepare_data", "folder", "--source", str(place.photographs()), "--output", str(out), "--overwrite"]


def mask_of_the_user(place):
    place.photographs()
    images = str(place.folder / "farm/images/one.jpg")
    return ["predict", "--model", str(place.model), images, "--output", str(place.folder / "farm/masks")]


def mask_of_the_user_through_a_link(place):
    place.photographs()
    (place.folder / "link").symlink_to(place.folder / "farm/masks")
    images = str(place.folder / "farm/images/one.jpg")
    return ["predict", "--model", str(place.model), images, "--output", str(place.folder / "link")]


def link_for_a_prediction(place):
    write_jpeg(place.folder / "c.jpg")
    write_png(place.folder / "elsewhere.png", IDS)
    (place.folder / "c.png").symlink_to(place.folder / "elsewhere.png")
    return ["predict", "--model", str(place.model), str(place.folder / "c.jpg"), "--output", str(place.folder)]


def annotation_of_the_user(place):
    write_jpeg(place.folder / "c.jpg")
    place.write("c.json", '{"annotation": 1}')
    return ["predict", "--model", str(place.model), str(place.folder / "c.jpg"), "--output", str(place.folder)]


def file_for_predictions(place):
    write_jpeg(place.folder / "c.jpg")
    output = place.write("taken", "mine")
    return ["predict", "--model", str(place.model), str(place.folder / "c.jpg"), "--output", str(output)]


def weights_for_a_graph(place):
    model = place.copied_model()
    return ["export_onnx", "--model", str(model), "--output", str(model / "model.safetensors")]


def configuration_for_scores(place):
    model = place.copied_model()
    output = ["--output", str(model / "config.json")]
    return ["evaluate", "--model", str(model), "--dataset", str(place.dataset), *output]


def metrics_of_a_run_for_scores(place):
    output = ["--output", str(place.run / "metrics.json")]
    return ["evaluate", "--model", str(place.model), "--dataset", str(place.dataset), *output]


def scores_below_a_file(place):
    output = ["--output", str(place.write("taken", "mine") / "scores.json")]
    return ["evaluate", "--model", str(place.model), "--dataset", str(place.dataset), *output]


def notes_for_a_curve(place):
    output = ["--output", str(place.write("notes.json", "{}"))]
    return ["calibrate", "--model", str(place.model), "--dataset", str(place.dataset), *output]


def picture_for_a_contact_sheet(place):
    dataset = place.copied_dataset()
    Image.new("RGB", (2, 2)).save(dataset / "contact_sheet.png")
    return ["prepare_data", "check", str(dataset), "--benchmark", "scenes"]


def link_to_itself_for_a_prediction(place):
    write_jpeg(place.folder / "c.jpg")
    (place.folder / "c.png").symlink_to(place.folder / "c.png")
    return ["predict", "--model", str(place.model), str(place.folder / "c.jpg"), "--output", str(place.folder)]


def run_in_a_model_folder(place):
    return ["train", *arguments(place.dataset, place.copied_model())]


def run_in_its_dataset(place):
    return ["train", *arguments(place.dataset, place.dataset)]


def scores_in_the_model_to_come(place):
    given = ["--class", "zebra", "--dataset", str(place.dataset), "--scores", str(place.out / "scores.json")]
    return ["add_classes", "--model", str(place.model), *given, "--output", str(place.out)]


def notes_for_a_script(script, *options):
    def make(place):
        given = [option.format(model=place.model, dataset=place.dataset) for option in options]
        return [script, *given, "--output", str(place.write("notes.json", "{}"))]

    make.__name__ = f"notes_for_{script}"
    return make


def notes_beside_a_measurement(place):
    place.write("bench.md", "mine")
    return ["benchmark", "--output", str(place.folder / "bench.json")]


def notes_for_scores_of_new_classes(place):
    given = ["--class", "zebra", "--dataset", str(place.dataset), "--scores", str(place.write("notes.json", "{}"))]
    return ["add_classes", "--model", str(place.model), *given, "--output", str(place.out)]


def folder_of_the_user_for_an_edited_model(place):
    output = str(place.write("taken/notes.txt", "mine").parent)
    return ["add_classes", "--model", str(place.model), "--remove", "zebra", "--output", output]


def model_of_names_below_a_file(place):
    return ["from_names", "dog", "--output", str(place.write("taken", "mine") / "model")]


def vectors_in_place_of_their_source(place):
    words = place.write("words.safetensors", "red 1 2\n")
    given = ["--word_vectors", str(words), "--names", "red", "--output", str(words), "--overwrite"]
    return ["prepare_embeddings", *given]


def weights_for_a_table(place):
    output = place.copied_model() / "model.safetensors"
    given = ["--word_vectors", str(place.write("words.vec", "1 2\nred 1 2\n")), "--names", "red"]
    return ["prepare_embeddings", *given, "--output", str(output), "--overwrite"]


def table_of_the_user_for_a_comparison(place):
    place.write("out/comparison.md", "mine")
    return ["compare", "--benchmark", "scenes", "--rows", "spnet", "--output_dir", str(place.out)]


def foreign(name):
    def make(place):
        place.write(f"out/{name}", "mine")
        return ["train", *arguments(place.dataset, place.out, resume=True)]

    make.__name__ = f"a_run_beside_a_foreign_{name}"
    return make


def run_with_notes_in_its_model(place):
    run = place.folder / "run"
    shutil.copytree(place.run, run)
    (run / "model" / "notes.txt").write_text("mine")
    return ["train", *arguments(place.dataset, run, resume=True)]


COMMANDS = [
    checkpoint_in_its_output,
    foreign_folder_for_a_checkpoint,
    source_in_its_output,
    file_for_a_dataset,
    dataset_of_others,
    mask_of_the_user,
    mask_of_the_user_through_a_link,
    link_for_a_prediction,
    annotation_of_the_user,
    file_for_predictions,
    weights_for_a_graph,
    configuration_for_scores,
    metrics_of_a_run_for_scores,
    scores_below_a_file,
    notes_for_a_curve,
    picture_for_a_contact_sheet,
    link_to_itself_for_a_prediction,
    run_in_a_model_folder,
    run_in_its_dataset,
    scores_in_the_model_to_come,
    notes_for_scores_of_new_classes,
    folder_of_the_user_for_an_edited_model,
    model_of_names_below_a_file,
    vectors_in_place_of_their_source,
    weights_for_a_table,
    table_of_the_user_for_a_comparison,
    notes_beside_a_measurement,
    notes_for_a_script("benchmark"),
    notes_for_a_script("ablations/context_latent", "--model", "{model}", "--dataset", "{dataset}"),
    notes_for_a_script("ablations/patch_layouts", "--recipe", "scenes/cagnet_pa"),
    notes_for_a_script("prepare_imagenet_names", "--synsets", "{dataset}", "--encoder", "{model}"),
    notes_for_a_script("prepare_mean_posteriors", "--model", "{model}"),
    *map(
        foreign,
        ("model/notes.txt", "metrics.json", "figures/mine.png", "checkpoints/step-00-00000004/x", "recipe.yaml"),
    ),
    run_with_notes_in_its_model,
]


@pytest.mark.parametrize("make", COMMANDS, ids=lambda make: make.__name__)
def test_a_command_leaves_what_it_did_not_write(make, place, load_script, one_thread, capsys):
    command, *argv = make(place)
    before = contents(place.folder, place.run, place.dataset)
    capsys.readouterr()
    code = load_script(command).main(argv)
    assert_one_line(code, capsys.readouterr().err, "")
    assert contents(place.folder, place.run, place.dataset) == before


@pytest.mark.parametrize("name", ["spnet_seed0.md", "seen_unseen.png", "per_class.png"])
def test_the_tables_of_the_study_replace_no_file_of_others(name, load_script, tmp_path):
    script = load_script("results_table")
    for own in (*script.CARDS.glob("*/*_seed*.md"), *script.CARDS.glob("*/*.png")):
        script.check_outputs([own] if own.suffix == ".md" else [], [own.parent])
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="was not written by this command"):
        script.check_outputs([tmp_path / "spnet_seed0.md"], [tmp_path])


def test_predictions_are_replaced_by_predictions_of_the_same_command(place, load_script):
    write_jpeg(place.folder / "c.jpg")
    argv = ["--model", str(place.model), str(place.folder / "c.jpg"), "--output", str(place.out)]
    assert load_script("predict").main(argv) == 0
    assert load_script("predict").main(argv) == 0
    assert sorted(path.name for path in place.out.iterdir()) == [
        *("c.json", "c.png", "c_confidence.png", "c_overlay.png")
    ]


def test_an_image_whose_name_is_no_text_is_predicted(place, load_script):
    name = os.fsdecode(b"\xff")
    write_jpeg(place.folder / "c.jpg")
    (place.folder / "c.jpg").rename(place.folder / f"{name}.jpg")
    argv = ["--model", str(place.model), str(place.folder / f"{name}.jpg"), "--output", str(place.out)]
    assert load_script("predict").main(argv) == 0
    assert json.loads((place.out / f"{name}.json").read_text())["image"].endswith("\ufffd.jpg")


# Runs


def test_a_checkpoint_of_another_run_is_not_taken_up(place, load_script, capsys):
    output = place.folder / "run"
    shutil.copytree(place.run, output)
    record = json.loads((output / "run.json").read_text())
    assert record["run"]
    (output / "run.json").write_text(json.dumps(record | {"run": "0" * 32}))
    code = load_script("train").main(arguments(place.dataset, output, resume=True))
    assert_one_line(code, capsys.readouterr().err, "is a checkpoint of another run")


def test_every_checkpoint_names_its_run(trained_run):
    run = json.loads((trained_run / "run.json").read_text())["run"]
    states = [
        json.loads((path / "trainer_state.json").read_text()) for path in checkpoints(trained_run / "checkpoints")
    ]
    assert {state["run"] for state in states} == {run}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"made_with": 1}', "[" * 100_000], ids=range(5))
def test_a_damaged_record_of_a_run_is_named(content, place, load_script, capsys):
    output = place.folder / "run"
    shutil.copytree(place.run, output)
    (output / "run.json").write_text(content)
    code = load_script("train").main(arguments(place.dataset, output, resume=True))
    assert_one_line(code, capsys.readouterr().err, "run.json: damaged")


@pytest.mark.parametrize("content", ["[", "- 1", "seed: {", "a: " + "[" * 10_000], ids=range(4))
def test_a_damaged_recipe_of_a_run_is_named(content, place, load_script, capsys):
    output = place.folder / "run"
    shutil.copytree(place.run, output)
    (output / "recipe.yaml").write_text(content)
    code = load_script("train").main(arguments(place.dataset, output, resume=True))
    assert_one_line(code, capsys.readouterr().err, "recipe.yaml")


def _hold(folder, ready):
    RunFolder(folder).enter(load_recipe("scenes"), resume=True)
    held = RunFolder(folder)
    held._keep_others_out()
    ready.set()
    time.sleep(600)


def test_a_second_run_is_kept_out_until_the_first_process_dies(tmp_path):
    recipe, folder = load_recipe("scenes"), tmp_path / "run"
    RunFolder(folder).write(recipe, {"run": "1", "made_with": []})
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(folder, ready))
    process.start()
    assert ready.wait(300)
    with pytest.raises(RecipeError, match="another process is training in"):
        RunFolder(folder).enter(recipe, resume=True)
    os.kill(process.pid, 9)
    process.join()
    RunFolder(folder).enter(recipe, resume=True)


def test_a_training_that_could_not_draw_is_refused_before_it_starts(place, load_script, capsys, monkeypatch):
    find = "cagnet_hf.apps.charts.find_spec"
    monkeypatch.setattr(find, lambda name: None)
    code = load_script("train").main(arguments(place.dataset, place.out))
    assert_one_line(code, capsys.readouterr().err, "pip install 'cagnet-hf[train]'")
    assert not place.out.exists()


def test_the_model_is_saved_before_anything_is_drawn(place, load_script, monkeypatch, capsys):
    output = place.folder / "run"
    shutil.copytree(place.run, output)
    shutil.rmtree(output / "model")
    shutil.rmtree(output / "figures")
    (output / "metrics.json").unlink()

    def fail(*_, **__):
        raise OSError("no font")

    monkeypatch.setattr("cagnet_hf.apps.report.loss_curves", fail)
    assert load_script("train").main(arguments(place.dataset, output, resume=True)) == 2
    assert (output / "model" / "model.safetensors").read_bytes() == (place.model / "model.safetensors").read_bytes()
    assert not (output / "metrics.json").exists()


def test_sigterm_while_figures_are_drawn_is_told(place, load_script, monkeypatch, capsys):
    output = place.folder / "run"
    shutil.copytree(place.run, output)
    (output / "metrics.json").unlink()
    monkeypatch.setattr("cagnet_hf.apps.report.loss_curves", lambda *_, **__: os.kill(os.getpid(), 15))
    assert load_script("train").main(arguments(place.dataset, output, resume=True)) == 0
    assert "Stopped; to go on: " in capsys.readouterr().out
    assert not (output / "metrics.json").exists()


def test_two_runs_at_once_in_one_folder_are_one_run(tiny_dataset, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment["HF_DATASETS_CACHE"] = str(tmp_path / "cache")
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), *arguments(tiny_dataset, tmp_path / "run")]
    started = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in started]
    assert sorted(process.returncode for process in started) == [0, 2]
    refused = next(text for text, process in zip(errors, started, strict=True) if process.returncode)
    assert "choose another --output_dir" in refused.strip().splitlines()[-1]
