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
MAX_WORD = 4096  # bytes; a longer "word" means that numbers are read as text


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
    try:
        with path.open("rb") as file, _progress(file, path) as counted:
            if path.suffix.lower() == ".gz":
                with gzip.GzipFile(fileobj=counted) as unpacked:
                    yield path.stem, io.BufferedReader(unpacked, BLOCK)
            elif path.suffix.lower() == ".zip":
                with zipfile.ZipFile(counted) as archive:
                    info = _member(path, archive, member)
                    with archive.open(info) as unpacked:
                        yield info.filename, io.BufferedReader(unpacked, BLOCK)
            else:
                yield path.name, counted
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{source}: the archive is damaged or truncated ({error}); fetch it again") from error


class Blocks:
    """A binary stream read forward in blocks; a read beyond its end is refused."""

    def __init__(self, source: str, file: io.BufferedReader):
        self.source = source
        self._file = file
        self._block = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        end = self._at + size
        while len(self._block) < end:
            self._read_on(size)
            end = self._at + size
        self._at, start = end, self._at
        return self._block[start:end]

    def take_until(self, delimiter: bytes) -> bytes:
        """The bytes before the delimiter, which is skipped."""
        end = self._block.find(delimiter, self._at)
        while end < 0:
            if len(self._block) - self._at > MAX_WORD:
                raise ValueError(
                    f"{self.source}: a word of more than {MAX_WORD} bytes; the header does not fit the file"
                )
            self._read_on(1)
            end = self._block.find(delimiter, self._at)
        start, self._at = self._at, end + len(delimiter)
        return self._block[start:end]

    def skip(self, size: int) -> None:
        """Pass over the next `size` bytes, unread where the stream can seek."""
        kept = len(self._block) - self._at
        if size <= kept:
            self._at += size
        else:
            self._file.seek(size - kept, io.SEEK_CUR)
            self._block, self._at = b"", 0

    def rest(self, size: int) -> bytes:
        """At most `size` of the bytes that are left."""
        return (self._block[self._at : self._at + size] + self._file.read(size))[:size]

    def _read_on(self, size: int) -> None:
        more = self._file.read(max(BLOCK, size))
        if not more:
            raise ValueError(f"{self.source}: ends early; it is truncated, or its header does not fit: fetch it again")
        self._block, self._at = self._block[self._at :] + more, 0


@contextmanager
def _progress(file: io.BufferedReader, path: Path) -> Iterator[io.BufferedReader]:
    """The same stream with a bar of the bytes read from the disk; short work shows none."""
    total = path.stat().st_size
    with tqdm(total=total, desc=path.name, unit="B", unit_scale=True, delay=2, leave=False) as bar:
        yield io.BufferedReader(_Counted(file, bar), BLOCK)


class _Counted(io.RawIOBase):
    def __init__(self, file: io.BufferedReader, bar: tqdm):
        self._file = file
        self._bar = bar

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer) -> int:
        size = self._file.readinto(buffer)
        self._bar.update(self._file.tell() - self._bar.n)
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
