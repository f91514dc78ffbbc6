"""Pictures: what is coloured, what is left alone, and that unseen classes can be told from seen ones."""

import re

import numpy as np
import pytest
from conftest import REPOSITORY
from matplotlib.axes import Axes
from PIL import Image

from cagnet_hf.apps.charts import class_comparison, loss_curves, per_class_bars
from cagnet_hf.apps.pictures import (
    class_palette,
    contact_sheet,
    legend,
    overlay,
    overlay_with_legend,
    prediction_grid,
)
from cagnet_hf.methods import LOSSES

pytestmark = pytest.mark.usefixtures("charts")
NAMES = ["cat", "car", "sofa"]


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def label_map():
    """Class 0 on the left, 2 on the right, a band without labels at the bottom."""
    labels = np.zeros((64, 96), np.uint8)
    labels[:, 48:] = 2
    labels[48:] = 255
    return labels


@pytest.mark.parametrize("num_classes", [3, 20, 182])
def test_palette_colors_are_distinct(num_classes):
    palette = class_palette(num_classes)
    assert (palette.shape, palette.dtype) == ((num_classes, 3), np.uint8)
    assert len(np.unique(palette, axis=0)) == num_classes


def test_palette_does_not_depend_on_the_number_of_classes():
    assert (class_palette(182)[:20] == class_palette(20)).all()


def test_palette_does_not_remember_changes():
    class_palette(3)[:] = 0
    assert class_palette(3).any()


def test_overlay_leaves_unlabelled_pixels_as_they_are(image, label_map):
    picture = overlay(image, label_map, class_palette(3), unseen_ids=[2])
    assert (np.array(picture)[label_map == 255] == np.array(image)[label_map == 255]).all()


def test_overlay_at_full_opacity_shows_the_colors(image, label_map):
    picture = np.array(overlay(image, label_map, class_palette(3), alpha=1))
    assert (picture[label_map == 2] == class_palette(3)[2]).all()


def test_an_unseen_region_looks_different_from_a_seen_one(image, label_map):
    seen = np.array(overlay(image, label_map, class_palette(3)))
    unseen = np.array(overlay(image, label_map, class_palette(3), unseen_ids=[2]))
    differs = (seen != unseen).any(-1)
    assert differs[label_map == 2].any()
    assert not differs[label_map != 2].any()


def test_overlay_changes_neither_image_nor_labels(image, label_map):
    pixels, labels = np.array(image), label_map.copy()
    overlay(image, label_map, class_palette(3), unseen_ids=[2])
    assert (np.array(image) == pixels).all()
    assert (label_map == labels).all()


def test_overlay_takes_grey_images(image, label_map):
    assert overlay(image.convert("L"), label_map, class_palette(3)).mode == "RGB"


def test_overlay_refuses_a_label_map_of_another_size(image, label_map):
    with pytest.raises(ValueError, match=r"shape \(32, 96\) over an image of shape \(64, 96\)"):
        overlay(image, label_map[:32], class_palette(3))


def test_overlay_refuses_a_label_without_a_color(image, label_map):
    with pytest.raises(ValueError, match="label 2 has no colour"):
        overlay(image, label_map, class_palette(2))


def test_legend_shows_the_colors_of_the_classes_asked_for():
    palette = class_palette(3)
    colors = {color for _, color in legend(NAMES, palette, [0], [2]).getcolors(10_000)}
    assert {tuple(palette[0].tolist()), tuple(palette[2].tolist())} <= colors
    assert tuple(palette[1].tolist()) not in colors


def test_overlay_with_legend_enlarges_small_images_by_a_whole_factor(image, label_map):
    picture = overlay_with_legend(image, label_map, NAMES, [0, 1], [2])
    assert picture.width == 3 * 96 + 16
    assert picture.height > 3 * 64 + 16


def test_grid_shows_three_pictures_per_row(image, label_map):
    one = prediction_grid([(image, label_map, label_map)], NAMES, [0, 1], [2])
    two = prediction_grid([(image, label_map, label_map)] * 2, NAMES, [0, 1], [2], title="Two")
    assert one.width == two.width > 3 * 3 * 96
    assert two.height > one.height + 3 * 64


def test_grid_takes_images_of_different_sizes(image, label_map):
    other = image.resize((300, 400)), np.ones((400, 300), np.uint8), np.zeros((400, 300), np.uint8)
    assert prediction_grid([(image, label_map, label_map), other], NAMES, [0, 1], [2]).width > 3 * 300


def test_loss_curves_are_written(tmp_path):
    history = [{"iteration": i, "stage": "pretrain", "loss/classification": 1 / i} for i in range(1, 101)]
    history += [{"iteration": i, "stage": "finetune", "loss/content": 2 / i} for i in range(1, 5)]
    loss_curves(history, tmp_path / "losses.png")
    with Image.open(tmp_path / "losses.png") as picture:
        assert picture.width > picture.height


def test_the_figure_of_losses_says_what_each_of_them_is(tmp_path):
    loss_curves([{"iteration": 1, "stage": "pretrain", "loss/kl": 1.0, "loss/own": 1.0}], tmp_path / "losses.svg")
    drawn = (tmp_path / "losses.svg").read_text()
    assert (
        " ".join(re.findall("<!-- (.*?) -->", drawn)).count("how far the latents of pixels are from a standard") == 1
    )


def test_every_loss_of_a_method_has_a_meaning():
    source = "".join(path.read_text() for path in (REPOSITORY / "cagnet_hf/methods").glob("*.py"))
    terms = re.findall(r'step\.add\("(\w+)"|terms(?: = \{|\[)"(\w+)"|, \{"(\w+)": loss', source)
    assert {name for names in terms for name in names if name} == set(LOSSES)


def test_loss_curves_refuse_a_history_without_losses(tmp_path):
    with pytest.raises(ValueError, match="no loss to draw"):
        loss_curves([{"iteration": 1, "stage": "pretrain"}], tmp_path / "losses.png")


@pytest.mark.parametrize("num_classes", [3, 182])
def test_per_class_bars_are_written(tmp_path, num_classes):
    per_class = {f"class {i}": {"iou": 0.5, "recall": 1.0, "seen": i > 0, "pixels": 1} for i in range(num_classes)}
    per_class["class 1"] |= {"iou": 0.0, "pixels": 0}
    metrics = {"S-mIoU": 0.5, "U-mIoU": 0.5, "per_class": per_class}
    per_class_bars(metrics, tmp_path / "bars.png", title="Bars")
    with Image.open(tmp_path / "bars.png") as picture:
        assert picture.format == "PNG"


def test_a_class_that_no_test_pixel_has_is_told_to_be_absent(tmp_path):
    entry = {"recall": 1.0, "seen": True, "pixels": 1}
    per_class = {"sheep": entry | {"iou": 0.0}, "cow": entry | {"iou": 0.0, "pixels": 0}}
    per_class_bars({"S-mIoU": 0.5, "U-mIoU": None, "per_class": per_class}, tmp_path / "bars.svg")
    assert (tmp_path / "bars.svg").read_text().count("not in this dataset") == 1


def test_figures_leave_pyplot_alone(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    loss_curves([{"iteration": 1, "stage": "pretrain", "loss/kl": 1.0}], tmp_path / "losses.png")
    assert pyplot.get_fignums() == []


def test_a_contact_sheet_shows_each_pair_scaled_to_its_cell(image, label_map):
    plain = Image.new("RGB", image.size, (0, 0, 0))
    pairs = [(plain, label_map, "first"), (plain.rotate(90, expand=True), label_map.T, "second")]
    sheet = np.array(contact_sheet(pairs, NAMES, [0, 1], [2], columns=2, cell=192))
    first, second = sheet[8 : 8 + 128, 8 : 8 + 192], sheet[8 : 8 + 192, 208 : 208 + 128]
    color = np.rint(0.6 * class_palette(3)[0])
    assert (first[:90, :90] == color).all() and (second[:90, :90] == color).all()
    assert (first[100:] == 0).all() and (second[:, 100:] == 0).all()  # without labels
    assert (first[:90, 100:] == 255).all(-1).any()  # the hatch of the unseen class


def test_a_contact_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], NAMES, [0, 1], [2])


def test_systems_are_compared_class_by_class(tmp_path, monkeypatch):
    systems = {"one": {"cat": 0.5, "car": 0.25, "sofa": None}, "other": {"cat": 1.0, "car": 0.0, "sofa": 0.125}}
    drawn, bar = [], Axes.bar
    monkeypatch.setattr(Axes, "bar", lambda *args, **look: drawn.append(list(args[2])) or bar(*args, **look))
    class_comparison(systems, ["sofa"], tmp_path / "classes.png")
    assert drawn == [[0], [0.125], [0.5, 0.25], [1.0, 0.0]]
    with Image.open(tmp_path / "classes.png") as picture:
        assert picture.width > 400
