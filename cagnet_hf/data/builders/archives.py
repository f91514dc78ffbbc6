"""Archives used like folders; nothing is unpacked beside them.

A `.zip` is read where it lies. A tar is gone through once, since a compressed one can only be read from its start;
what is wanted of a tar waits in a nameless temporary file that ends with the program.
"""

import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm

TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
MAX_MEMBER_BYTES = 1 << 30  # a member is read whole: a list, an image, a mask
MAX_TOTAL_BYTES = 1 << 38  # of a tar's members that wait in the temporary file
MAX_RATIO = 200  # of these to the bytes of the tar: photographs hardly shrink, masks do
MAX_DEPTH = 100  # folders in folders

AnyPath = Path | zipfile.Path


def open_source(path: str | Path, wanted: Callable[[str], bool] = lambda name: True) -> AnyPath:
    """A folder as it is, an archive as if it were one.

    Args:
        path: A folder, or a `.zip`, `.tar`, `.tgz` (`.tar.gz`, `.tar.bz2`, `.tar.xz`) file.
        wanted: Whether the member of a name is of use; others of a tar are not kept.

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
        archive = zipfile.ZipFile(path) if path.suffix.lower() == ".zip" else _zip_of_tar(path, wanted)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: truncated or damaged ({error}); get it anew") from None
    for member in archive.infolist():
        _check_member(path, member.filename, member.file_size)
    return zipfile.Path(archive)


def _zip_of_tar(path: Path, wanted: Callable[[str], bool]) -> zipfile.ZipFile:
    """The wanted files of a tar, no links and folders, as they are in a zip."""
    spool = tempfile.TemporaryFile()
    total, most = 0, min(MAX_TOTAL_BYTES, max(MAX_MEMBER_BYTES, MAX_RATIO * path.stat().st_size))
    progress = tqdm.wrapattr(path.open("rb"), "read", total=path.stat().st_size, desc=f"reading {path.name}")
    with progress as stream, tarfile.open(fileobj=stream, mode="r|*") as tar, zipfile.ZipFile(spool, "w") as copy:
        for member in tar:
            if member.isreg() and wanted(member.name):
                _check_member(path, member.name, member.size)
                total += member.size
                if total > most:
                    raise ValueError(f"{path}: it would unpack to more than {most >> 20:,} MB; get the official one")
                with copy.open(str(PurePosixPath(member.name)), "w") as target:  # without a leading `./`
                    shutil.copyfileobj(tar.extractfile(member), target)
    archive = zipfile.ZipFile(spool)
    archive.filename = str(path)
    return archive


def _check_member(path: Path, name: str, size: int) -> None:
    if size > MAX_MEMBER_BYTES:
        raise ValueError(f"{path}: member {name!r} would unpack to {size >> 20:,} MB, no image does")
    if len(PurePosixPath(name).parts) > MAX_DEPTH:
        raise ValueError(f"{path}: a member lies more than {MAX_DEPTH} folders deep; get the official one")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"{path}: member {name!r} points out of the archive; get the official one")


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


def read_lines(path: AnyPath) -> list[str]:
    """The lines of a text file.

    Raises:
        ValueError: The file is no text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file of UTF-8 ({error})") from None


def read_list(path: AnyPath) -> list[str]:
    """Image ids, one a line; a line may also be `/JPEGImages/ID.jpg /SegmentationClassAug/ID.png`."""
    lines = read_lines(path)
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
