"""Files and folders that are whole or absent, and how to tell one file from another."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from tqdm.auto import tqdm


def write_whole(target: Path, write) -> None:
    """Let `write(path)` fill a folder aside, then rename it to `target`, which is never seen half-written.

    Where `write` fails, nothing is left behind; what a kill leaves is removed the next time.
    """
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        write(aside)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):
            raise OSError(f"{target} could not be written: {error}") from error
        raise
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(aside, target)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path aside to write a file to, in a folder that is made if need be; whole, the file gets its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:  # a full disk, a folder of that name, Ctrl-C
        aside.unlink(missing_ok=True)
        raise


def write_text_whole(path: Path, text: str) -> None:
    """Write a text file aside, then rename it."""
    with whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """The SHA-256 of a file of any size, as hexadecimal digits."""
    digest = hashlib.sha256()
    bar = tqdm(
        total=path.stat().st_size, desc=f"SHA-256 of {path.name}", unit="B", unit_scale=True, delay=2, leave=False
    )
    with path.open("rb") as file, bar:
        while block := file.read(1 << 20):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
