"""Many visitors of the page at once: each sees the classes that were added in the own visit, and memory stays flat.

    python tests/stress/page_load.py --visitors 20 --minutes 6

Every visitor uploads an image, adds a class, moves the calibration, forgets the class, fetches what is shown, and
comes back as somebody new. The model is small and untrained: with the calibration 1, every pixel is of the class that
was added, so that a class of another visitor would be seen. Memory is the resident set of the server's process, from
the visit on after which the page forgets the oldest visit for each new one: the medians of the first and of the last
third of this time are compared. The exit code is 1 after an error, a class in the visit of another, memory that grows,
or too few visits to tell.
"""

import argparse
import contextlib
import ctypes
import io
import json
import multiprocessing
import random
import socket
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from cagnet_hf.apps.demo import serve
from cagnet_hf.training.recipe_files import load_recipe
from cagnet_hf.training.setup import benchmark_of, build_model, build_processor

TO_ADD = ["yellow striped disc", "red striped cross", "green dotted disc", "blue dotted cross"]
KEPT = 100  # visits that the page remembers
MAX_GROWTH = 1.1  # of the memory in the last third against that in the first
_ARENA_MAX = -8  # M_ARENA_MAX of glibc
PATIENCE = 120  # seconds for one answer


def write_model(folder: Path) -> None:
    """An untrained model of the synthetic benchmark without the classes that visitors add."""
    recipe = load_recipe("scenes")
    model = build_model(recipe, benchmark_of(recipe))
    model.remove_classes(TO_ADD)
    model.save_pretrained(folder)
    build_processor(recipe).save_pretrained(folder)


def served(folder: Path, port: int) -> None:
    # Else every thread of the server keeps free memory of its own, which looks like memory that grows.
    with contextlib.suppress(AttributeError):  # of another C library
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 2)
    serve(str(folder), port=port)


class Page:
    """The page as a browser speaks to it."""

    def __init__(self, address: str):
        self.address = f"{address}/gradio_api"
        config = json.load(urllib.request.urlopen(f"{address}/config", timeout=PATIENCE))
        names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
        self.handlers = {
            names[component]: handler["id"]
            for handler in config["dependencies"]
            for component, event in handler["targets"]
            if event in ("change", "click")
        }

    def upload(self, image: Image.Image) -> dict:
        """What the page is told of an uploaded image."""
        content, boundary = io.BytesIO(), uuid.uuid4().hex
        image.save(content, "PNG")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n'
        body = (
            f"{head}Content-Type: image/png\r\n\r\n".encode() + content.getvalue() + f"\r\n--{boundary}--\r\n".encode()
        )
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        request = urllib.request.Request(f"{self.address}/upload", body, kind)
        (path,) = json.load(urllib.request.urlopen(request, timeout=PATIENCE))
        return {"path": path, "meta": {"_type": "gradio.FileData"}}

    def call(self, session: str, element: str, *data) -> list:
        """What a handler answers; `data` are the calibration and the value of the element, if there is one."""
        gamma, *values = data
        asked = {"data": [gamma, None, *values], "fn_index": self.handlers[element], "session_hash": session}
        request = urllib.request.Request(
            f"{self.address}/queue/join", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=PATIENCE).close()
        answers = urllib.request.urlopen(f"{self.address}/queue/data?session_hash={session}", timeout=PATIENCE)
        with answers:
            for line in answers:
                if line.startswith(b"data: "):
                    told = json.loads(line[6:])
                    if told["msg"] == "process_completed":
                        if not told["success"]:
                            raise OSError(f"{element}: {told['output']}")
                        return told["output"]["data"]
        raise OSError(f"{element}: no answer")

    def fetch(self, shown: dict) -> int:
        """The bytes of a picture that is shown."""
        with urllib.request.urlopen(f"{self.address}/file={shown['path']}", timeout=PATIENCE) as picture:
            return len(picture.read())


class Load:
    """What the visitors found."""

    def __init__(self, page: Page, until: float):
        self.page, self.until = page, until
        self.calls, self.visits, self.errors, self.leaks = 0, 0, [], []
        self.seconds: list[float] = []
        self._lock = threading.Lock()

    def visitor(self, number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < self.until:
            try:
                self.visit(TO_ADD[number % len(TO_ADD)], rng)
            except (OSError, ValueError, KeyError) as error:
                self.errors.append(repr(error))
            with self._lock:
                self.visits += 1

    def visit(self, added: str, rng: random.Random) -> None:
        session, page = uuid.uuid4().hex, self.page
        size = rng.randrange(40, 400), rng.randrange(40, 400)
        picture = page.upload(Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3))))

        def ask(element: str, gamma: float, *values, own: tuple[str, ...] = ()) -> None:
            started = time.monotonic()
            _, shown, legend, _ = page.call(session, element, gamma, *values)[:4]
            with self._lock:
                self.calls += 1
                self.seconds.append(time.monotonic() - started)
            found = [name for name in TO_ADD if name in legend]
            if found != list(own):
                self.leaks.append(f"{element}: {found} in a visit with {list(own)}")
            if not page.fetch(shown):
                raise OSError(f"{element}: an empty picture")

        ask("upload", 0, picture)
        ask("add", 1, added, own=(added,))
        ask("gamma", 1, own=(added,))
        ask("forget", 1)
        ask("upload", 1, picture)


def memory_of(process: psutil.Process) -> float:
    return process.memory_info().rss / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fork = multiprocessing.get_context("fork")
        writing = fork.Process(target=write_model, args=(Path(folder) / "model",))  # this process starts no threads
        writing.start()
        writing.join()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = fork.Process(target=served, args=(Path(folder) / "model", port))
        server.start()
        try:
            found = put_load(f"http://127.0.0.1:{port}", psutil.Process(server.pid), args.visitors, 60 * args.minutes)
        finally:
            server.terminate()
            server.join()
    print(json.dumps(found, indent=1))
    return int(bool(found["errors"] or found["leaks"] or not found["flat"]))


def put_load(address: str, server: psutil.Process, visitors: int, seconds: float) -> dict:
    """The figures of many visitors at once."""
    for _ in range(PATIENCE):
        try:
            page = Page(address)
            break
        except OSError:  # not yet served
            time.sleep(1)
    load = Load(page, time.monotonic() + seconds)
    threads = [threading.Thread(target=load.visitor, args=(number,)) for number in range(visitors)]
    for thread in threads:
        thread.start()
    rows = []
    while any(thread.is_alive() for thread in threads):
        rows.append((load.visits, memory_of(server)))
        time.sleep(1)
    visits, memory = np.array(rows).T
    late = visits > KEPT + visitors
    third = late.sum() // 3
    first, last = (np.median(part) if third > 5 else np.nan for part in (memory[late][:third], memory[-third:]))
    return {
        "visitors": visitors,
        "visits": load.visits,
        "calls": load.calls,
        "errors": load.errors[:5],
        "leaks": load.leaks[:5],
        "median_seconds": round(float(np.median(load.seconds or [0])), 2),
        "MB": {"before": round(memory[0]), "first": round(float(first), 1), "last": round(float(last), 1)},
        "flat": bool(last < MAX_GROWTH * first),
    }


if __name__ == "__main__":
    sys.exit(main())
