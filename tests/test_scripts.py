"""The commands that use a trained model: what they write and what they refuse, in one line and with exit code 2."""

import json
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image
from transformers import BertConfig, BertModel, SegformerConfig, SegformerForSemanticSegmentation

from cagnet_hf.apps.prediction import segment
from cagnet_hf.apps.prediction_files import check_outputs
from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data.image_inputs import RemoteFile
from cagnet_hf.data.label_space import LabelSpace
from cagnet_hf.data.sources import open_prepared
from cagnet_hf.model.image_processing_cagnet import CaGNetImageProcessor
from cagnet_hf.weights.folders import load_model

SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.py")) + sorted((REPOSITORY / "scripts/ablations").glob("*.py"))
SLOW = {"torch", "transformers", "datasets", "accelerate", "evaluate", "pandas", "pyarrow", "matplotlib", "scipy"}
SCENES = load_benchmark("scenes")


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def call(load_script, trained_run, capsys):
    """`call(script, *arguments)`: (exit code, the error lines) of a command on the trained model."""

    def run(script, *arguments, model=trained_run / "model"):
        code = load_script(script).main(["--model", str(model), *map(str, arguments)])
        printed = capsys.readouterr().err.replace("\r", "\n").splitlines()
        return code, [line for line in printed if "error" in line.lower() or "Traceback" in line]

    return run


@pytest.fixture
def evaluate(call, tiny_dataset, tmp_path):
    """`evaluate(*arguments)`: what evaluate.py writes for the test images of the tiny dataset."""

    def run(*arguments, **options) -> dict:
        output = tmp_path / "metrics" / "metrics.json"
        assert call("evaluate", "--dataset", tiny_dataset, "--output", output, *arguments, **options) == (0, [])
        return json.loads(output.read_text())

    return run


@pytest.fixture
def photo(tiny_dataset, tmp_path):
    """A test image, cut to 96 x 64, as a file."""
    image = open_prepared(tiny_dataset, split="test")[0]["image"].crop((0, 0, 96, 64))
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def assert_refused(result, reason: str) -> None:
    code, errors = result
    assert code == 2
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert reason in errors[0]
    assert len(errors[0]) < 600


# Every script


@pytest.mark.parametrize(
    ("path", "argument"),
    [*((path, "--help") for path in SCRIPTS), (REPOSITORY / "scripts/recipes.py", None)],
    ids=lambda value: getattr(value, "name", value),
)
def test_help_answers_at_once(path, argument):
    """Without loading a library that takes long: how long that is depends on what else the machine does."""
    program = (
        "import runpy, sys\n"
        f"sys.argv = {[str(path), *filter(None, [argument])]!r}\n"
        "try:\n"
        f"    runpy.run_path({str(path)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        f"    sys.exit(end.code or ' '.join({SLOW} & sys.modules.keys()) or 0)\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("usage:" if argument else "A recipe is called")


# evaluate.py


def test_evaluation_repeats_the_scores_of_training(evaluate, trained_run):
    trained = json.loads((trained_run / "metrics.json").read_text())
    assert evaluate() == {key: trained[key] for key in trained if key not in ("stages", "seconds")}


@pytest.mark.parametrize("protocol", ["full", "paper"])
def test_the_protocol_is_named(evaluate, protocol):
    metrics = evaluate("--protocol", protocol)
    assert (metrics["protocol"], metrics["num_images"]) == (protocol, 6)
    labelled = sum(entry["pixels"] for entry in metrics["per_class"].values())
    assert labelled > 5000 if protocol == "full" else 0 < labelled < 5000  # at the size of the feature map


def test_batches_change_nothing(evaluate):
    assert evaluate("--batch_size", 1) == evaluate("--batch_size", 5)


def test_calibration_by_one_takes_every_pixel_from_the_seen_classes(evaluate):
    metrics = evaluate("--gamma", 1)
    assert metrics["S-mIoU"] == 0
    assert metrics["U-mIoU"] > evaluate()["U-mIoU"]


def test_without_calibration_nothing_is_taken(evaluate):
    assert evaluate("--gamma", 0) == evaluate()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("--dataset /absent/data", "/absent/data: no such folder"),
        ("--dataset scenes:first", "write scenes:SEED with a number"),
        ("--dataset scenes:0 --split val", "no split 'val'; it has train, test"),
        ("--split val", "no split 'val'; it has train, test"),
        ("--mask_column label", "no column 'label'; it has image, mask, image_id"),
    ],
)
def test_bad_data_are_refused(call, tiny_dataset, wrong, reason):
    assert_refused(call("evaluate", "--dataset", tiny_dataset, *wrong.split()), reason)


def test_an_unknown_protocol_names_the_known_ones(call, tiny_dataset, capsys):
    with pytest.raises(SystemExit) as end:
        call("evaluate", "--dataset", tiny_dataset, "--protocol", "papre")
    assert end.value.code == 2
    assert "'full', 'paper'" in capsys.readouterr().err


# predict.py


def test_prediction_files_hold_stored_ids_at_the_size_of_the_image(call, photo, tmp_path, trained_run):
    assert call("predict", photo, "--output", tmp_path / "out") == (0, [])
    model, processor = load_model(str(trained_run / "model"))
    (prediction,) = segment(model, processor, [Image.open(photo)])
    expected = LabelSpace.of(model.config).to_stored_ids(prediction.label_map)
    with Image.open(tmp_path / "out" / "photo.png") as labels:
        assert (labels.mode, labels.size) == ("P", (96, 64))
        assert (np.asarray(labels) == expected).all()
        assert set(np.unique(labels).tolist()) <= set(SCENES.class_ids)


def test_the_overlay_is_an_enlarged_image_over_a_legend(call, photo, tmp_path):
    assert call("predict", photo, "--output", tmp_path / "out") == (0, [])
    with Image.open(tmp_path / "out" / "photo_overlay.png") as overlay:
        assert overlay.mode == "RGB"
        assert overlay.width == 3 * 96 + 16
        assert overlay.height > 3 * 64 + 16


def test_several_images_are_segmented(call, photo, tmp_path):
    grey = Image.open(photo).convert("L")
    grey.save(tmp_path / "grey.jpg")
    assert call("predict", photo, tmp_path / "grey.jpg", "--output", tmp_path / "out") == (0, [])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    endings = (".png", "_overlay.png", "_confidence.png", ".json")
    assert names == {f"{name}{ending}" for name in ("photo", "grey") for ending in endings}


def test_the_summary_lists_classes_by_area_and_the_confidence_map_their_scores(call, photo, tmp_path):
    assert call("predict", photo, "--output", tmp_path / "out", "--gamma", 0.1) == (0, [])
    summary = json.loads((tmp_path / "out" / "photo.json").read_text())
    labels = np.asarray(Image.open(tmp_path / "out" / "photo.png"))
    scores = np.asarray(Image.open(tmp_path / "out" / "photo_confidence.png")) / 255
    assert (summary["width"], summary["height"]) == (96, 64)
    assert {entry["dataset_id"] for entry in summary["classes"]} == set(np.unique(labels).tolist())
    for entry in summary["classes"]:
        pixels = labels == entry["dataset_id"]
        assert entry["name"] == SCENES.label_names[entry["dataset_id"]]
        assert entry["seen"] == (entry["dataset_id"] in SCENES.seen_ids)
        assert entry["area"] == pytest.approx(pixels.mean())
        assert entry["score"] == pytest.approx(scores[pixels].mean(), abs=0.003)
    areas = [entry["area"] for entry in summary["classes"]]
    assert areas == sorted(areas, reverse=True)


def test_gamma_calibrates_predictions(call, photo, tmp_path):
    assert call("predict", photo, "--output", tmp_path / "out", "--gamma", 1) == (0, [])
    labels = np.asarray(Image.open(tmp_path / "out" / "photo.png"))
    assert set(np.unique(labels).tolist()) <= set(SCENES.unseen_ids)
    result = call("predict", photo, "--output", tmp_path / "out", "--gamma", 2)
    assert_refused(result, "gamma 2.0: it is subtracted from probabilities")


def test_folders_patterns_and_addresses_are_segmented(call, photo, tmp_path):
    (tmp_path / "many").mkdir()
    for name in ("a.png", "b.PNG", ".hidden.png"):
        shutil.copy(photo, tmp_path / "many" / name)
    (tmp_path / "many" / "notes.txt").write_text("no image")
    shutil.copy(photo, tmp_path / "c_1.png")
    handler = partial(QuietHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/photo.png?size=full"
        result = call("predict", tmp_path / "many", tmp_path / "c_*.png", address, "--output", tmp_path / "out")
        missing = call("predict", address.replace("photo", "absent"), "--output", tmp_path / "none")
        server.shutdown()
    assert result == (0, [])
    assert {path.stem for path in (tmp_path / "out").glob("*.json")} == {"a", "b", "c_1", "photo"}
    assert missing[0] == 2


@pytest.mark.parametrize("given", ["empty", "*.jpg"])
def test_a_folder_or_pattern_without_an_image_is_refused(call, tmp_path, given):
    (tmp_path / "empty").mkdir()
    assert_refused(call("predict", tmp_path / given, "--output", tmp_path / "out"), given)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read_is_left_out_and_reported(call, photo, tmp_path, load_script, trained_run, capsys):
    (tmp_path / "note.jpg").write_text("not an image")
    arguments = [tmp_path / "note.jpg", photo, "--output", tmp_path / "out"]
    code = load_script("predict").main(["--model", str(trained_run / "model"), *map(str, arguments)])
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert code == 2
    assert f"left out: {tmp_path / 'note.jpg'}: not an image" in lines
    assert lines[-1].startswith("error: 1 of 2 images left out")
    assert (tmp_path / "out" / "photo.png").is_file()


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (5000, 4000)])
def test_images_of_any_size_are_segmented(call, tmp_path, size):
    Image.new("RGB", size, (200, 60, 50)).save(tmp_path / "plain.png")
    assert call("predict", tmp_path / "plain.png", "--output", tmp_path / "out") == (0, [])
    assert Image.open(tmp_path / "out" / "plain.png").size == size
    assert Image.open(tmp_path / "out" / "plain_confidence.png").size == size


def test_an_image_too_large_to_decode_is_refused(call, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)
    assert_refused(call("predict", photo, "--output", tmp_path / "out"), "too large to be decoded")
    assert not (tmp_path / "out").exists()


def test_a_missing_image_is_refused(call, tmp_path):
    assert_refused(call("predict", tmp_path / "absent.png", "--output", tmp_path / "out"), "absent.png: ")


def test_a_file_that_is_no_image_is_refused(call, tmp_path):
    (tmp_path / "note.jpg").write_text("not an image")
    assert_refused(call("predict", tmp_path / "note.jpg", "--output", tmp_path / "out"), "note.jpg: not an image")


def test_a_truncated_image_is_refused(call, photo, tmp_path):
    (tmp_path / "half.png").write_bytes(photo.read_bytes()[:5000])
    assert_refused(call("predict", photo, tmp_path / "half.png", "--output", tmp_path / "out"), "images left out")


def test_a_damaged_image_is_refused(call, photo, tmp_path):
    data = bytearray(photo.read_bytes())
    data[36] ^= 255  # the length of the first block of pixels; Pillow calls this a SyntaxError
    (tmp_path / "damaged.png").write_bytes(data)
    assert_refused(call("predict", photo, tmp_path / "damaged.png", "--output", tmp_path / "out"), "images left out")


def test_images_of_one_name_are_refused(call, photo, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(photo, tmp_path / "other" / "photo.png")
    result = call("predict", photo, tmp_path / "other" / "photo.png", "--output", tmp_path / "out")
    assert_refused(result, "'photo.png'")
    assert not (tmp_path / "out").exists()


def test_an_overlay_never_overwrites_a_label_map(call, photo, tmp_path):
    shutil.copy(photo, tmp_path / "photo_overlay.png")
    assert_refused(
        call("predict", photo, tmp_path / "photo_overlay.png", "--output", tmp_path / "out"), "photo_overlay"
    )


def test_an_image_is_never_overwritten(call, photo):
    before = photo.read_bytes()
    assert_refused(call("predict", photo, "--output", photo.parent), "photo.png")
    assert photo.read_bytes() == before


# Models that are none of ours


def test_a_missing_model_is_refused(call, photo, tmp_path):
    result = call("predict", photo, "--output", tmp_path / "out", model=tmp_path / "absent")
    assert_refused(result, "absent")


def test_a_segmentation_model_of_another_kind_is_refused(call, photo, tmp_path):
    config = SegformerConfig(hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8)
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "other")
    CaGNetImageProcessor().save_pretrained(tmp_path / "other")
    result = call("predict", photo, "--output", tmp_path / "out", model=tmp_path / "other")
    assert_refused(result, "a 'segformer' model, not a CaGNet one")


def test_a_model_that_segments_nothing_is_refused(call, photo, tmp_path):
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=8)
    BertModel(config).save_pretrained(tmp_path / "other")
    result = call("predict", photo, "--output", tmp_path / "out", model=tmp_path / "other")
    assert_refused(result, "a 'bert' model, not a CaGNet one")


@pytest.mark.parametrize("damage", ["cut", "of another size", "without a layer"])
def test_weights_that_do_not_fit_are_refused(call, photo, tmp_path, trained_run, damage):
    model = tmp_path / "model"
    shutil.copytree(trained_run / "model", model)
    config = json.loads((model / "config.json").read_text())
    weights = (model / "model.safetensors").read_bytes()
    if damage == "cut":
        (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif damage == "of another size":
        (model / "config.json").write_text(json.dumps({**config, "context_hidden_size": 16}))
    else:
        (model / "config.json").write_text(json.dumps({**config, "depths": [1, 1, 1, 2]}))
    assert_refused(call("predict", photo, "--output", tmp_path / "out", model=model), str(model))


@pytest.mark.parametrize(
    ("model", "reason"),
    [("nowhere", "no such model folder"), ("empty", "no model in this folder"), ("run", "did you mean")],
)
@pytest.mark.parametrize("script", ["evaluate", "calibrate"])
def test_a_folder_without_a_model_is_refused(call, script, model, reason, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    assert_refused(call(script, "--dataset", "scenes:0", model=tmp_path / model), reason)


@pytest.mark.parametrize(
    ("address", "stem"),
    [
        ("http://host/a/photo.png?size=full", "photo"),
        ("http://host/", "image"),
        ("http://host", "image"),
        ("http://host/a/%2e%2e%2f%2e%2e", "image"),
        ("http://host/..%5c..%5cphoto.png", "photo"),
        ("http://host/C%3a%5cphoto%00.png", "photo"),
        ("http://host/K%C3%A4se.jpg", "Käse"),
    ],
)
def test_the_prediction_of_an_address_stays_in_its_folder(address, stem):
    assert RemoteFile(address).stem == stem


def test_ten_thousand_images_are_compared_by_name(tmp_path):
    files = [tmp_path / f"{number}.jpg" for number in range(10_000)]
    check_outputs(files, tmp_path / "out")
    with pytest.raises(ValueError, match=r"would be called '7\.png'"):
        check_outputs([*files, tmp_path / "7.png"], tmp_path / "out")
