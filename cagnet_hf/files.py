"""Files and folders that are whole or absent, and how to tell one file from another."""

import hashlib
import os
import shutil
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


def write_text_whole(path: Path, text: str) -> None:
    """Write a file aside, then rename it."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError:  # a full disk, or a folder of that name
        aside.unlink(missing_ok=True)
        raise


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
