"""Archives read where they lie: their files look like those of a folder, and nothing is unpacked.

A `.zip` and an uncompressed `.tar` give any file at once. A compressed tar can only be read from its start: it is gone
through once, and what is wanted of it waits in a nameless temporary file that ends with the program. (The file systems
of `fsspec` would follow links, and read a compressed tar from its start for every file.)
"""

import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from threading import Lock

from tqdm.auto import tqdm

TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
MAX_MEMBER_BYTES = 1 << 30  # a member is read whole: a list, an image, a mask
MAX_TOTAL_BYTES = 1 << 38  # of what waits in the temporary file
MAX_RATIO = 200  # of that to the bytes of a compressed tar; photographs hardly shrink, masks do
MAX_DEPTH = 100  # folders in folders
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")  # how gzip, bzip2 and xz files begin
_ROOT = PurePosixPath()


@dataclass(frozen=True, eq=False)
class ArchivePath:
    """A file or folder in an archive, used like a `pathlib.Path`; `str(path)` names archive and member.

    Attributes:
        source: The archive.
        files: By their place in it, how the content of each is read.
        folders: By their place, what is in each.
        at: The place of this one.
    """

    source: Path
    files: Mapping[PurePosixPath, Callable[[], bytes]]
    folders: Mapping[PurePosixPath, Iterable[PurePosixPath]]
    at: PurePosixPath = _ROOT

    def __truediv__(self, part: str) -> "ArchivePath":
        return replace(self, at=self.at / part)

    def __str__(self) -> str:
        return str(self.source / self.at)

    @property
    def name(self) -> str:
        return self.at.name

    @property
    def stem(self) -> str:
        return self.at.stem

    @property
    def suffix(self) -> str:
        return self.at.suffix

    def is_file(self) -> bool:
        return self.at in self.files

    def is_dir(self) -> bool:
        return self.at in self.folders

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator["ArchivePath"]:
        return (replace(self, at=place) for place in self.folders[self.at])

    def read_bytes(self) -> bytes:
        if not self.is_file():
            raise FileNotFoundError("No such file in the archive")
        try:
            return self.files[self.at]()
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise OSError(f"damaged in its archive ({error})") from error

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)


AnyPath = Path | ArchivePath
Members = Iterator[tuple[str, int, Callable[[], bytes]]]  # name, size, and how the content is read


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
    files, folders = {}, {_ROOT: {}}
    try:
        members = _zip_members(path) if path.suffix.lower() == ".zip" else _tar_members(path, wanted)
        for name, size, read in members:
            place = PurePosixPath(name)  # which also drops a leading `./`
            if place.is_absolute() or ".." in place.parts:
                raise ValueError(f"{path}: member {name!r} points out of the archive; get the official one")
            if size > MAX_MEMBER_BYTES:
                raise ValueError(f"{path}: member {name!r} would unpack to {size >> 20:,} MB, no image does")
            if len(place.parts) > MAX_DEPTH:
                raise ValueError(f"{path}: a member lies more than {MAX_DEPTH} folders deep; get the official one")
            files[place] = read
            for inner in (place, *place.parents[:-1]):
                folders.setdefault(inner.parent, {})[inner] = None
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: truncated or damaged ({error}); get it anew") from None
    return ArchivePath(path, files, folders)


def _zip_members(path: Path) -> Members:
    archive = zipfile.ZipFile(path)
    return ((m.filename, m.file_size, partial(archive.read, m)) for m in archive.infolist() if not m.is_dir())


def _tar_members(path: Path, wanted: Callable[[str], bool]) -> Members:
    file, lock = path.open("rb"), Lock()

    def read(start: int, size: int) -> bytes:
        with lock:
            file.seek(start)
            data = file.read(size)
        if len(data) < size:
            raise EOFError("it ends early")
        return data

    compressed = file.read(6).startswith(_COMPRESSED)
    file.seek(0)
    if not compressed:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            yield from ((m.name, m.size, partial(read, m.offset_data, m.size)) for m in tar if m.isreg())
        return
    packed, file = file, tempfile.TemporaryFile()
    progress = tqdm.wrapattr(packed, "read", total=path.stat().st_size, desc=f"reading {path.name}")
    most = min(MAX_TOTAL_BYTES, max(MAX_MEMBER_BYTES, MAX_RATIO * path.stat().st_size))
    with packed, progress as stream, tarfile.open(fileobj=stream, mode="r|*") as tar:
        for member in tar:
            if member.isreg() and wanted(member.name):
                if file.tell() + member.size > most:
                    raise ValueError(f"{path}: it would unpack to more than {most >> 20:,} MB; get the official one")
                yield member.name, member.size, partial(read, file.tell(), member.size)
                shutil.copyfileobj(tar.extractfile(member), file)


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


def read_list(path: AnyPath) -> list[str]:
    """Image ids, one a line; a line may also be `/JPEGImages/ID.jpg /SegmentationClassAug/ID.png`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    ids = [Path(line.split()[0]).stem for line in lines if line.strip()]
    if not ids:
        raise ValueError(f"{path} lists no images")
    return ids


def refuse_shared(where: AnyPath, ids: Mapping[str, Iterable[str]], called: Mapping[str, str]) -> None:
    """Refuse test images that are trained on: ids by split, and what the splits are called there."""
    shared = sorted(set(ids["train"]) & set(ids["test"]))
    if shared:
        raise ValueError(
            f"{where}: {len(shared)} images are in both {called['train']} and {called['test']} (first: {shared[0]}); "
            "remove them from one"
        )
