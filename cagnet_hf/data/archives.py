"""Archives read where they lie: their files look like those of a folder, and nothing is unpacked.

A `.zip` and an uncompressed `.tar` give any file at once. A compressed tar can only be read from its start: it is gone
through once, and what is wanted of it waits in a nameless temporary file that ends with the program.
"""

import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from threading import Lock

from tqdm.auto import tqdm

TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")  # how gzip, bzip2 and xz files begin


class ArchivePath:
    """A file or folder in an archive, used like a `pathlib.Path`; `str(path)` names archive and member."""

    def __init__(self, archive: "_Archive", at: str = ""):
        self._archive, self._at = archive, at

    def __truediv__(self, part: str) -> "ArchivePath":
        return ArchivePath(self._archive, _plain(PurePosixPath(self._at) / part))

    def __str__(self) -> str:
        return f"{self._archive.source}/{self._at}".rstrip("/")

    @property
    def source(self) -> Path:
        """The archive."""
        return self._archive.source

    @property
    def name(self) -> str:
        return PurePosixPath(self._at).name or self._archive.source.name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def is_file(self) -> bool:
        return self._at in self._archive.files

    def is_dir(self) -> bool:
        return self._at in self._archive.folders

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator["ArchivePath"]:
        return (self / name for name in self._archive.folders[self._at])

    def read_bytes(self) -> bytes:
        if not self.is_file():
            raise FileNotFoundError("No such file in the archive")
        return self._archive.read(self._archive.files[self._at])

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)


AnyPath = Path | ArchivePath
MAX_MEMBER_BYTES = 1 << 30  # a member is read whole: a list, an image, a mask


def _plain(path: PurePosixPath) -> str:
    return "" if path == PurePosixPath() else str(path)


def open_source(path: str | Path, wanted: Callable[[str], bool] = lambda name: True) -> AnyPath:
    """A folder as it is, an archive as if it were one.

    Args:
        path: A folder, or a `.zip`, `.tar`, `.tgz` (`.tar.gz`, `.tar.bz2`, `.tar.xz`) file.
        wanted: Whether the member of a name is of use; others of a compressed tar are not kept.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no archive, is truncated or damaged, or has a member that points out of it.
    """
    path = Path(path)
    if path.is_dir():
        return path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such folder or archive")
    if not path.name.lower().endswith((".zip", *TAR_SUFFIXES)):
        raise ValueError(f"{path}: neither a folder nor an archive (.zip, {', '.join(TAR_SUFFIXES)})")
    try:
        return ArchivePath(_Zip(path) if path.suffix.lower() == ".zip" else _Tar(path, wanted))
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: truncated or damaged ({error}); get it anew") from None


def find_root(source: AnyPath, levels: Iterable[str], part: str, otherwise: str) -> AnyPath:
    """The first of `levels` in `source` that has the folder `part`; else an error that ends with `otherwise`."""
    for level in levels:
        if (source / level / part).is_dir():
            return source / level
    raise FileNotFoundError(f"{source}: {otherwise}")


def require(path: AnyPath, what: str) -> AnyPath:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: expected {what}")
    return path


class _Archive:
    """`files`: where the content of each lies; `folders`: the names in each."""

    def __init__(self, source: Path):
        self.source = source
        self.files: dict[str, object] = {}
        self.folders: dict[str, list[str]] = {"": []}
        self.lock = Lock()

    def add(self, name: str, where: object, size: int) -> None:
        if size > MAX_MEMBER_BYTES:
            raise ValueError(f"{self.source}: member {name!r} would unpack to {size >> 20:,} MB, no image does")
        path = PurePosixPath(name)  # which also drops a leading `./`
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{self.source}: member {name!r} points out of the archive; get the official one")
        if _plain(path) not in self.files:
            self._list(path)
        self.files[_plain(path)] = where

    def _list(self, path: PurePosixPath) -> None:
        parent = _plain(path.parent)
        if parent not in self.folders:
            self.folders[parent] = []
            self._list(path.parent)
        self.folders[parent].append(path.name)


class _Zip(_Archive):
    def __init__(self, source: Path):
        super().__init__(source)
        self.zip = zipfile.ZipFile(source)
        for member in self.zip.infolist():
            if not member.is_dir():
                self.add(member.filename, member, member.file_size)

    def read(self, member: zipfile.ZipInfo) -> bytes:
        try:
            return self.zip.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise OSError(f"damaged in its archive ({error})") from error


class _Tar(_Archive):
    def __init__(self, source: Path, wanted: Callable[[str], bool]):
        super().__init__(source)
        self.file = source.open("rb")
        compressed = self.file.read(6).startswith(_COMPRESSED)
        self.file.seek(0)
        if not compressed:
            with tarfile.open(fileobj=self.file, mode="r:") as tar:
                for member in tar:
                    if member.isreg():
                        self.add(member.name, (member.offset_data, member.size), member.size)
            return
        spool = tempfile.TemporaryFile()
        size = source.stat().st_size
        with (
            tqdm.wrapattr(self.file, "read", total=size, desc=f"reading {source.name}") as stream,
            tarfile.open(fileobj=stream, mode="r|*") as tar,
        ):
            for member in tar:
                if member.isreg() and wanted(member.name):
                    self.add(member.name, (spool.tell(), member.size), member.size)
                    shutil.copyfileobj(tar.extractfile(member), spool)
        self.file.close()
        self.file = spool

    def read(self, where: tuple[int, int]) -> bytes:
        start, size = where
        with self.lock:
            self.file.seek(start)
            data = self.file.read(size)
        if len(data) < size:
            raise OSError("damaged in its archive (it ends early)")
        return data
