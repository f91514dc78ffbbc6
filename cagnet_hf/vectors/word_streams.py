"""Files of any size as streams: plain, gzip or a member of a zip archive, with a progress bar on long ones."""

import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

BLOCK = 1 << 18  # bytes in memory at a time


def split_archive(source: str) -> tuple[Path, str | None]:
    """`FILE.zip:MEMBER` -> (`FILE.zip`, `MEMBER`); any other name is the file itself, without a member."""
    parts = re.fullmatch(r"(.+\.zip):(.+)", source, flags=re.IGNORECASE)
    return (Path(parts[1]), parts[2]) if parts else (Path(source), None)


@contextmanager
def open_stream(source: str) -> Iterator[tuple[str, io.BufferedReader]]:
    """The name (without `.gz`) and the bytes of a file; of a zip archive, those of its only or the named member.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: An archive is damaged, truncated or encrypted, or the member is not in it or not named.
    """
    path, member = split_archive(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of word vectors")
    bar = tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, delay=2, leave=False)
    try:
        with bar, io.BufferedReader(_WatchedFile(path, bar), BLOCK) as file:
            if path.suffix.lower() == ".gz":
                yield path.stem, io.BufferedReader(gzip.GzipFile(fileobj=file), BLOCK)
            elif path.suffix.lower() == ".zip":
                with zipfile.ZipFile(file) as archive:
                    info = _member(path, archive, member)
                    yield info.filename, io.BufferedReader(archive.open(info), BLOCK)
            else:
                yield path.name, file
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{source}: the archive is damaged or truncated ({error}); fetch it again") from error


class _WatchedFile(io.FileIO):
    """A file whose bar shows how far it has been read."""

    def __init__(self, path: Path, bar: tqdm):
        super().__init__(path)
        self._bar = bar

    def readinto(self, buffer) -> int:
        size = super().readinto(buffer)
        self._bar.update(self.tell() - self._bar.n)
        return size


def _member(path: Path, archive: zipfile.ZipFile, member: str | None) -> zipfile.ZipInfo:
    files = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    if member is None and len(files) == 1:
        member = next(iter(files))
    if member not in files:
        listed = ", ".join(files)
        raise ValueError(f"{path}: name one of its files, as {path.name}:FILE, for FILE one of: {listed}")
    if files[member].flag_bits & 1:
        raise ValueError(f"{path}: {member} is encrypted; unpack it first")
    return files[member]
