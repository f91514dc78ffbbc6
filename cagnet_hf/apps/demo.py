"""A web page to play with a trained model: an image in, its classes out, a slider and new classes by name.

Gradio serves it (`pip install 'cagnet-hf[demo]'`). Everything the page needs comes from this machine. `serve` opens
it; an `app.py` that calls `serve("DIR_OR_ID")` makes it a Space of the Hub.
"""

import copy
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from html import escape
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

from ..data.names import is_background, printable
from ..data.samples import read_image
from ..model.configuration_cagnet import NONE_OF_THESE, unlabelled_id
from ..model.decoding_cagnet import rgb_image
from ..vectors.new_classes import embed_new_classes
from ..weights.folders import load_model
from .pictures import class_palette, overlay
from .prediction import Prediction, segment

MAX_BYTES, MAX_PIXELS = 20 * 2**20, 50_000_000  # of an image file that the page accepts
MAX_SIDE = 2048  # of what it keeps of one
SHOWN_SIDE = 480  # a smaller image is enlarged by whole pixels
MAX_NEW_CLASSES = 20
FORGOTTEN_AFTER = 1800  # seconds after which a visitor's image and classes are dropped

# The browser itself refuses whatever is not from the page's own server.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


class Visit:
    """A visitor's image and classes.

    The network is everybody's; what new classes change (class head, embeddings, configuration) is a copy.
    """

    def __init__(self, model, processor, class_embeddings: str | None = None, encoder: str | None = None):
        self.original, self.model, self.processor = model, model, processor
        self.source = {"source": class_embeddings, "encoder": encoder}
        self.image: Image.Image | None = None
        self.prediction: Prediction | None = None

    def open(self, path: str | None) -> None:
        """Take an image file, or none.

        Raises:
            ValueError: It is larger than the page accepts, no image, or damaged.
        """
        self.image = self.prediction = None
        if path is not None:
            self.image = open_image(Path(path))

    def segment(self, gamma: float, min_score: float = 0.0) -> None:
        if self.image is not None:
            options = {"gamma": gamma, "min_score": min_score}
            (self.prediction,) = segment(self.model, self.processor, [self.image], **options)

    def add_class(self, name: str) -> None:
        """Teach this visitor's model a class by its name.

        Raises:
            ValueError: The name is empty or taken, or has no vector from the source of the model's own.
        """
        name = name.strip()
        if not name:
            raise ValueError("type the name of a class")
        if len(self.model.config.id2label) - len(self.original.config.id2label) >= MAX_NEW_CLASSES:
            raise ValueError(f"{MAX_NEW_CLASSES} new classes are enough here: forget them to go on")
        vectors = embed_new_classes(self.model, [name], **self.source)
        generator = self.original.generator
        # Of a generator its layers: it may keep statistics of every class.
        shared = (self.original.cagnet, *(() if generator is None else generator.children()))
        model = copy.deepcopy(self.model, {id(part): part for part in shared})
        model.add_classes([name], vectors)
        self.model = model

    def forget_classes(self) -> None:
        self.model = self.original

    def shown(self) -> Image.Image | None:
        """The overlay, enlarged where it is small."""
        if self.prediction is None:
            return None
        picture = self.prediction.picture
        factor = self._enlargement()
        size = (factor * picture.width, factor * picture.height)
        config = self.prediction.config
        return overlay(
            picture.resize(size, Image.Resampling.NEAREST),
            self.prediction.painted(size),
            class_palette(config.num_labels),
            unseen_ids=config.unseen_ids,
        )

    def _enlargement(self) -> int:
        return max(1, SHOWN_SIDE // max(self.prediction.picture.size))

    def describe_pixel(self, x: int, y: int) -> str:
        """The class and score at a position of `shown`, as HTML."""
        height, width = self.prediction.label_map.shape
        factor = self._enlargement()
        row, column = min(y // factor, height - 1), min(x // factor, width - 1)
        label, score = int(self.prediction.label_map[row, column]), float(self.prediction.scores[row, column])
        config = self.prediction.config
        shown = f"{_swatch(config, label)} <b>{escape(printable(config.id2label[label]))}</b>"
        if label == unlabelled_id(config.num_labels):
            return f"{shown}, the likeliest class has the score {score:.2f}"
        group = "unseen" if label in config.unseen_ids else "seen"
        return f"{shown}, {group}, score {score:.2f}"

    def legend(self) -> str:
        """The classes that occur, seen and unseen apart, with area and mean score, as HTML."""
        if self.prediction is None:
            return ""
        config, groups = self.prediction.config, {"Seen classes": [], "Unseen classes": [], "No class": []}
        of = {True: "Seen classes", False: "Unseen classes", None: "No class"}
        for found in self.prediction.classes:
            swatch = _swatch(config, config.label2id.get(found.name, unlabelled_id(config.num_labels)))
            share = "&lt; 1 %" if found.area < 0.01 else f"{found.area:.0%}".replace("%", " %")
            groups[of[found.seen]].append(
                f"<tr><td>{swatch} {escape(printable(found.name))}</td><td>{share}</td><td>{found.score:.2f}</td></tr>"
            )
        heads = "<th>area</th><th>score</th></tr>"
        tables = [f"<tr><th>{name}</th>{heads}{''.join(rows)}" for name, rows in groups.items() if rows]
        return f"<table>{''.join(tables)}</table>"


def open_image(path: Path) -> Image.Image:
    """An image file as RGB, upright, its longer side no more than `MAX_SIDE`; its header is judged before its pixels.

    Raises:
        ValueError: It has more than `MAX_BYTES` or `MAX_PIXELS`, is no image, or damaged.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.name}: larger than {MAX_BYTES // 2**20} MB; make it smaller")
    try:
        with Image.open(path) as header:
            width, height = header.size
    except Image.DecompressionBombError:
        width, height = MAX_PIXELS, 2
    except OSError as error:
        raise ValueError(f"{path.name}: not an image that can be read") from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"{path.name}: more than {MAX_PIXELS // 10**6} megapixels; make it smaller")
    try:
        image = rgb_image(read_image(path))
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), path.name)) from None
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image


def build_page(model_path: str, *, class_embeddings: str | None = None, encoder: str | None = None):
    """The page as `gradio.Blocks`, not yet served.

    Args:
        model_path: A model folder or Hub id.
        class_embeddings, encoder: Where the vectors of typed names come from (see `embed_new_classes`).
    """
    model, processor = load_model(model_path)

    import gradio as gr  # seconds, so after what may be refused

    def answer(change):
        """The page's handler of a change that a visitor asked for: `change(visit, how, *values)` -> message."""

        def handler(gamma: float, min_score: float, visit: Visit | None, *values):
            visit = visit or Visit(model, processor, class_embeddings, encoder)
            try:
                tone, message = "note", change(visit, (gamma, min_score), *values)
            except (ValueError, OSError) as error:
                tone, message = "error", escape(printable(error))
            told = f'<p class="{tone}" role="status">{message}</p>'
            views = visit, visit.shown(), visit.legend(), told
            return views if change is not added else (*views, "" if tone == "note" else gr.skip())

        return handler

    def opened(visit, how, path):
        visit.open(_uploaded(path, upload.GRADIO_CACHE))
        visit.segment(*how)
        return "Click a pixel to see its class and score." if visit.prediction else ""

    def moved(visit, how):
        visit.segment(*how)
        return ""

    def added(visit, how, name):
        started = time.monotonic()
        visit.add_class(name)
        seconds = time.monotonic() - started
        visit.segment(*how)
        message = f"Learnt <b>{escape(printable(name.strip()))}</b> from its vector in {seconds:.1f} s."
        if visit.prediction and name.strip() not in {found.name for found in visit.prediction.classes}:
            message += " It is nowhere in this image."
        return message

    def forgotten(visit, how):
        visit.forget_classes()
        visit.segment(*how)
        return "The model has its own classes again."

    def point(visit, event: gr.SelectData):
        told = visit.describe_pixel(*event.index) if visit else "Forgotten meanwhile: drop the image again."
        return f'<p class="note" role="status">{told}</p>'

    config = model.config
    limits = f"up to {MAX_BYTES // 2**20} MB and {MAX_PIXELS // 10**6} megapixels"
    known = "It will know only by a vector of their name"
    if config.unseen_ids:
        known = f"It knows {len(config.unseen_ids)} more only by a vector of their name, as it will know"
    introduction = (
        f"# Zero-shot segmentation\nThis model learnt {len(config.seen_ids)} classes from labelled pixels. "
        f"{known} the ones you add. These are **hatched**."
    )
    with gr.Blocks(title="Zero-shot segmentation", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        state = gr.State(time_to_live=FORGOTTEN_AFTER)
        gr.Markdown(introduction)
        with gr.Row():
            accepted = {"sources": ["upload", "clipboard"], "placeholder": f"# Drop an image\n{limits}"}
            with gr.Column():
                upload = gr.Image(label="Image", type="filepath", image_mode=None, elem_id="upload", **accepted)
                # Unread: gradio would decode an image of any size before `open_image` judges it.
                upload.preprocess = lambda payload: None if payload is None else payload.path
            with gr.Column():  # on a phone the legend follows the picture, and the controls come last
                shown = {"label": "Classes", "interactive": False, "format": "png", "buttons": ["download"]}
                result = gr.Image(**shown, elem_id="overlay")
                message = gr.HTML(elem_id="message")
                legend = gr.HTML(elem_id="legend")
        with gr.Row():
            with gr.Column():
                hint = "Left: fewer pixels go to unseen classes. Right: more. (The calibration γ.)"
                gamma = gr.Slider(
                    -1, 1, config.calibration, step=0.05, label="Unseen classes", info=hint, elem_id="gamma"
                )
                hint = "Left: every pixel has a class. Right: only pixels whose class is this probable have one."
                min_score = gr.Slider(
                    0, 1, config.min_score, step=0.01, label=NONE_OF_THESE, info=hint, elem_id="min_score"
                )
            with gr.Column():
                hint = "The model learns it from a vector of its name, without an image."
                name = gr.Textbox(label="New class", info=hint, placeholder="zebra", max_length=60, elem_id="name")
                with gr.Row():
                    add = gr.Button("Add class", variant="primary", size="md", elem_id="add")
                    reset = gr.Button("Forget new classes", size="md", elem_id="forget")
        inputs, outputs = [gamma, min_score, state], [state, result, legend, message]
        hidden = {"api_visibility": "private", "show_progress": "minimal"}
        upload.change(answer(opened), [*inputs, upload], outputs, **hidden)
        for slider in (gamma, min_score):
            slider.change(answer(moved), inputs, outputs, trigger_mode="always_last", **hidden)
        gr.on([add.click, name.submit], answer(added), [*inputs, name], [*outputs, name], **hidden)
        reset.click(answer(forgotten), inputs, outputs, **hidden)
        result.select(point, [state], [message], **hidden)
    return page


def serve(
    model_path: str,
    *,
    class_embeddings: str | None = None,
    encoder: str | None = None,
    port: int | None = None,
    block: bool = True,
):
    """Serve the page until interrupted; uploads lie in a temporary folder that goes with it.

    Args:
        model_path, class_embeddings, encoder: See `build_page`.
        port: Where to listen; the first free one from 7860 when None.
        block: Come back only when interrupted; else return the page at once, to be closed with `close()`.

    Raises:
        ValueError: Gradio is not installed, or there is no such model.
    """
    if find_spec("gradio") is None:
        raise ValueError("the page needs Gradio: pip install 'cagnet-hf[demo]'")
    uploads = tempfile.TemporaryDirectory(prefix="cagnet_demo_")
    if block and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # an exit in good order, which removes the uploads
    # Gradio reads these when it is imported.
    os.environ.update(GRADIO_TEMP_DIR=uploads.name, GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    page = build_page(model_path, class_embeddings=class_embeddings, encoder=encoder)
    page.uploads = uploads  # as long as the page

    from gradio.themes import Default
    from starlette.middleware import Middleware

    try:
        page.launch(
            server_port=port,
            max_file_size=MAX_BYTES,
            state_session_capacity=100,
            ssr_mode=False,
            share=False,
            pwa=False,
            footer_links=[],
            enable_monitoring=False,
            theme=Default(primary_hue="blue", neutral_hue="gray", font=["system-ui", "sans-serif"]),
            css=_STYLE,
            app_kwargs={"middleware": [Middleware(_OwnServerOnly)]},
            prevent_thread_lock=not block,
        )
    finally:
        if block:
            uploads.cleanup()
    return page


def _uploaded(path: str | None, folder: str) -> str | None:
    """The path of an upload; any other path is one that a client made up.

    Raises:
        ValueError: The path leads out of the folder of uploads.
    """
    if path is not None and not Path(path).resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError("this is no image that was uploaded: drop one on the page")
    return path


def _is_own_host(host: str) -> bool:
    """Whether a browser that names this host means this server: a page of others can name only hosts of its own."""
    name = urlsplit(f"//{host}").hostname or ""
    machine = socket.gethostname().lower()
    own = {"localhost", machine, f"{machine}.local", os.environ.get("SPACE_HOST", "").lower()}
    try:
        ip_address(name)
    except ValueError:
        return name != "" and (name in own or name.endswith(".localhost"))
    return True  # an address is nobody's name


class _OwnServerOnly:
    """Answers to this server's own names alone, and adds `_POLICY` to every answer (an ASGI middleware)."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        hosts = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"host"]
        if scope["type"] in ("http", "websocket") and not (len(hosts) == 1 and _is_own_host(hosts[0])):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            headers = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 421, "headers": headers})
            await send({"type": "http.response.body", "body": b"This server has another name.\n"})
            return

        async def send_with_policy(event):
            if event["type"] == "http.response.start":
                event["headers"] = [*event["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(event)

        await self.app(scope, receive, send_with_policy)


def _swatch(config, label: int) -> str:
    if label == unlabelled_id(config.num_labels) or is_background(config.id2label[label]):
        return '<span class="swatch none"></span>'
    colour = "#" + bytes(class_palette(config.num_labels)[label]).hex()
    kind = "swatch unseen" if label in config.unseen_ids else "swatch"
    return f'<span class="{kind}" style="background-color: {colour}"></span>'


_STYLE = """
.gradio-container { max-width: 1040px !important; margin: auto; }
:is(#upload, #overlay) :is(div, button):has(img) { width: 100% !important; }
:is(#upload, #overlay) img { display: block; width: 100%; height: auto; max-height: 80vh; object-fit: contain; }
@media (max-width: 640px) { :is(#upload, #overlay) img { max-height: none; } }
#upload img { image-rendering: pixelated; }
#overlay img { cursor: crosshair; }
#message, #message > div, #legend { padding: 0 !important; }
#message p { min-height: 1.6em; margin: 0; }
#message .error { color: #b42318; }
#legend table { width: 100%; border-collapse: collapse; }
#legend :is(table, tr, th, td) { border: none; background: none; }
#legend th { text-align: left; padding: 0.7em 0 0.2em; font-weight: 600; }
#legend td { padding: 0.15em 0; }
#legend tr > :not(:first-child) { text-align: right; width: 5em; font-weight: 400; }
#legend td:not(:first-child) { font-variant-numeric: tabular-nums; }
.swatch { display: inline-block; width: 1.5em; height: 0.9em; vertical-align: -0.05em; margin-right: 0.4em; }
.swatch.none { border: 1px solid currentcolor; box-sizing: border-box; }
.swatch.unseen { background-image: repeating-linear-gradient(135deg, transparent 0 3px, white 3px 4.5px); }
"""
