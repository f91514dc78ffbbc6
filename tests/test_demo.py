"""The page to play with a model: what a visitor does with it, and, in a real browser, that it does it."""

import json
import os
import shutil
import struct
import tempfile
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_modeling import build

from cagnet_hf.apps.demo import MAX_BYTES, Visit, open_image, serve
from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data.scenes import scenes_class_embeddings, scenes_dataset
from cagnet_hf.weights.folders import load_model

NEW, FORGOTTEN = "yellow striped disc", ["red striped cross", "green dotted disc", "blue dotted cross"]
OPTIONS = (
    *(
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-dev-shm-usage",
    ),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1180,1040"),
)
PATIENCE = 1800  # seconds: bounds a hang, whatever else the machine does


@pytest.fixture(scope="module")
def folder(trained_run, tmp_path_factory) -> Path:
    """A model of the synthetic benchmark that has forgotten its unseen classes."""
    model, processor = load_model(str(trained_run / "model"))
    model.remove_classes([NEW, *FORGOTTEN])
    folder = tmp_path_factory.mktemp("demo") / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "scene.png"
    scenes_dataset(0, "test")[0]["image"].crop((0, 0, 96, 64)).save(path)
    return path


# A visit


@pytest.fixture
def visit(folder) -> Visit:
    return Visit(*load_model(str(folder)))


def test_a_small_image_is_enlarged_by_whole_pixels(visit, photo):
    visit.open(photo)
    visit.segment(0)
    assert visit.shown().size == (480, 320)


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (1000, 30)])
def test_images_of_any_shape(visit, size):
    visit.image = Image.new("RGB", size, "red")
    visit.segment(0)
    assert max(visit.shown().size) <= 1000
    assert visit.shown().width * size[1] == visit.shown().height * size[0]
    assert "score" in visit.describe_pixel(visit.shown().width - 1, visit.shown().height - 1)


def test_every_position_tells_the_class_and_score_of_its_pixel(visit, photo):
    visit.open(photo)
    visit.segment(0)
    row, column = 40, 70
    label = visit.prediction.label_map[row, column]
    text = visit.describe_pixel(5 * column + 2, 5 * row + 4)
    assert f"<b>{visit.model.config.id2label[label]}</b>, seen" in text
    assert text.endswith(f"score {visit.prediction.scores[row, column]:.2f}")


def test_a_new_class_is_segmented_and_belongs_to_one_visitor(visit, photo):
    other = Visit(visit.model, visit.processor)
    visit.add_class(f" {NEW} ")
    assert list(visit.model.config.id2label.values())[-1] == NEW
    assert NEW not in other.model.config.id2label.values()
    for one in (visit, other):
        one.open(photo)
        one.segment(1)
    assert (visit.prediction.label_map == 12).all()  # γ = 1 leaves no pixel to a seen class
    assert "Unseen classes" in visit.legend()
    assert (other.prediction.label_map < 12).all()
    assert visit.model.cagnet is other.model.cagnet  # a copy of the network would cost memory
    visit.forget_classes()
    visit.segment(0)
    assert NEW not in visit.legend()


def test_pixels_of_no_class_are_listed_apart_and_have_no_colour(visit, photo):
    visit.open(photo)
    visit.segment(0, 1)
    assert "No class" in visit.legend() and "None of these" in visit.legend()
    assert "Seen classes" not in visit.legend()
    assert visit.describe_pixel(0, 0).startswith(
        '<span class="swatch none"></span> <b>None of these</b>, the likeliest'
    )
    assert (np.asarray(visit.shown())[2::5, 2::5] == np.asarray(visit.image)).all()


def test_what_is_shown_is_of_the_classes_that_were_predicted(visit, photo):
    """Two events of a page may overlap: classes are forgotten before their prediction is drawn."""
    visit.add_class(NEW)
    visit.open(photo)
    visit.segment(1)
    visit.forget_classes()
    assert NEW in visit.legend() and NEW in visit.describe_pixel(0, 0)
    assert visit.shown() is not None


@torch.no_grad()
def test_statistics_of_a_gaussian_generator_belong_to_one_visitor():
    benchmark = load_benchmark("scenes")
    options = {"contextual": False, "classifier": "linear", "generator": "gaussian"}
    names = [name for name in benchmark.class_names if name != NEW]
    model = build(**options, id2label=dict(enumerate(names)), unseen_ids=(14,), embedding_size=24)
    vectors = dict(zip(benchmark.class_names, torch.from_numpy(scenes_class_embeddings(benchmark)), strict=True))
    model.class_embeddings = torch.stack([vectors[name] for name in names])
    model.generator.observe(torch.randn(300, model.config.feature_size), torch.arange(14).repeat(22)[:300])
    model.generator.fit(model.class_embeddings, ridge=0.1, shrinkage=0.1, covariance_scale=1)
    visit = Visit(model, None)
    visit.add_class(NEW)
    assert (len(visit.model.generator.class_counts), len(model.generator.class_counts)) == (16, 15)
    assert visit.model.generator.deviation is model.generator.deviation


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "type the name"), ("zebra", "no embedding of class 'zebra'"), ("Red striped_disc", "two classes")],
)
def test_a_name_that_cannot_be_added_is_refused(visit, name, message):
    with pytest.raises(ValueError, match=message):
        visit.add_class(name)
    assert visit.model.config.num_labels == 12


def test_names_are_text_and_never_markup(visit, photo):
    visit.model.rename_classes({name: f"<b>{i}" for i, name in visit.model.config.id2label.items()})
    visit.open(photo)
    visit.segment(0)
    assert "<b>" not in visit.legend()
    assert "&lt;b&gt;" in visit.legend()
    assert "&lt;b&gt;" in visit.describe_pixel(0, 0)


@pytest.mark.parametrize("side", [8000, 20000], ids=["large", "beyond what Pillow opens"])
def test_the_pixels_of_a_huge_image_are_never_read(tmp_path, side):
    """There are none: the file is a header."""
    Image.new("1", (8, 8)).save(tmp_path / "huge.bmp")
    header = bytearray((tmp_path / "huge.bmp").read_bytes())
    header[18:26] = struct.pack("<ii", side, side)
    (tmp_path / "huge.bmp").write_bytes(header)
    with pytest.raises(ValueError, match=r"^huge\.bmp: more than 50 megapixels"):
        open_image(tmp_path / "huge.bmp")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"some text", "not an image"),
        (b"", "not an image"),
        (b"\0" * (MAX_BYTES + 1), "larger than 20 MB"),
        (None, "truncated or damaged"),
    ],
)
def test_files_that_are_no_image_are_refused_by_name(photo, tmp_path, content, message):
    (tmp_path / "file.png").write_bytes(photo.read_bytes()[:3000] if content is None else content)
    with pytest.raises(ValueError, match=rf"^file\.png: {message}"):
        open_image(tmp_path / "file.png")


def test_an_image_is_kept_upright_and_of_bounded_size(tmp_path):
    turned = Image.Exif()
    turned[274] = 6  # the camera was held on its side
    Image.new("RGB", (3000, 1500)).save(tmp_path / "photo.jpg", exif=turned)
    assert open_image(tmp_path / "photo.jpg").size == (1024, 2048)


def test_grey_values_of_16_bits_keep_their_brightness(tmp_path):
    Image.fromarray(np.full((4, 4), 257 * 80, np.uint16)).save(tmp_path / "grey.png")
    assert open_image(tmp_path / "grey.png").getpixel((0, 0)) == (80, 80, 80)


def test_a_missing_model_is_refused(load_script, tmp_path, capsys):
    if find_spec("gradio") is None:
        pytest.skip("needs the extra `demo`")
    assert load_script("demo").main(["--model", str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {tmp_path / 'absent'}: no such model folder"


# In a browser


@pytest.fixture(scope="module")
def page(folder, tmp_path_factory):
    if find_spec("gradio") is None:
        pytest.skip("needs the extra `demo`")
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    page = serve(str(folder), block=False)
    yield page
    page.close()
    page.uploads.cleanup()
    assert list(Path.cwd().iterdir()) == []  # all that it wrote lay in its temporary folder
    assert not Path(page.uploads.name).exists()
    os.chdir(before)


@pytest.fixture(scope="module")
def browser(page):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        browser.get(page.local_url)
        yield browser
        browser.quit()


def eventually(found):
    """What `found()` gives once it gives something."""
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if result := found():
                return result
        except WebDriverException:  # not there yet, or redrawn meanwhile
            pass
        time.sleep(0.2)
    raise AssertionError(f"nothing within {PATIENCE} s")


def find(browser, selector):
    return browser.find_element("css selector", selector)


def says(browser, part, *words):
    return eventually(lambda: all(word in find(browser, f"#{part}").text for word in words))


def test_a_session_in_a_browser(browser, page, photo):
    eventually(lambda: find(browser, "#upload input[type=file]")).send_keys(str(photo))
    picture = eventually(lambda: find(browser, "#overlay img"))
    eventually(lambda: picture.get_property("naturalWidth") == 480)
    assert says(browser, "legend", "Seen classes", "%")
    assert any(path.is_file() for path in Path(page.uploads.name).rglob("*"))

    picture.click()
    assert says(browser, "message", "seen, score 0.")

    find(browser, "#name :is(input, textarea)").send_keys("zebra")
    find(browser, "#add").click()
    assert says(browser, "message", "no embedding of class 'zebra'")
    find(browser, "#name :is(input, textarea)").clear()
    find(browser, "#name :is(input, textarea)").send_keys(f"{NEW}\n")
    assert says(browser, "message", f"Learnt {NEW} from its vector in ")

    find(browser, "#gamma input[type=range]").send_keys("\ue010")  # the end key: γ = 1
    assert says(browser, "legend", "Unseen classes", f"{NEW} 100 %")
    assert "Seen classes" not in find(browser, "#legend").text
    find(browser, "#forget").click()
    assert says(browser, "legend", "Seen classes")

    find(browser, "#min_score input[type=range]").send_keys("\ue010")  # a probability of 1, which no pixel has
    assert says(browser, "legend", "No class", "None of these 100 %")
    find(browser, "#min_score input[type=range]").send_keys("\ue011")  # the home key: every pixel has a class
    eventually(lambda: "None of these" not in find(browser, "#legend").text)

    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    eventually(lambda: browser.execute_script("return document.documentElement.scrollWidth") == 390)
    for part in ("upload", "overlay"):
        frame, shown = find(browser, f"#{part}").rect, find(browser, f"#{part} img").rect
        assert frame["width"] - shown["width"] < 4  # no bands beside the picture
        assert shown["height"] == pytest.approx(shown["width"] * 2 / 3, abs=2)  # nor above and below
    places = [find(browser, f"#{part}").rect["y"] for part in ("upload", "overlay", "legend", "gamma", "name")]
    assert places == sorted(places)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    addresses = {request["request"]["url"] for request in requests}
    own = (page.local_url, "data:", "blob:", "chrome")
    assert len(addresses) > 10
    assert not [address for address in addresses if not address.startswith(own)]


def test_the_page_refuses_what_is_not_its_own(page):
    with urllib.request.urlopen(page.local_url) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{page.local_url}gradio_api/file=/etc/hostname")


def test_shown_colours_are_those_of_the_legend(visit, photo):
    visit.open(photo)
    visit.segment(0)
    colour = visit.legend().split("background-color: #")[1][:6]
    wanted = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)])
    largest = visit.prediction.classes[0].name
    where = visit.prediction.label_map == visit.model.config.label2id[largest]
    pixels = np.asarray(visit.image, dtype=float)[where]
    shown = np.asarray(visit.shown(), dtype=float)[2::5, 2::5][where]
    np.testing.assert_allclose(shown, 0.4 * pixels + 0.6 * wanted, atol=1)
