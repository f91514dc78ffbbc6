"""Files and folders that are whole or absent, that replace nothing of the user's, and how to tell files apart."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import yaml
from safetensors import SafetensorError
from tqdm.auto import tqdm

_INDEX = "model.safetensors.index.json"
_SEARCHED_BYTES = 1 << 20  # at the beginning and at the end of a file, where a mark is looked for
_MOST_REPEATED = 10_000  # values of a YAML text that stand there by aliases alone


class FolderKind(NamedTuple):
    """A kind of folder that this package writes as a whole, and how such a folder is known again.

    Attributes:
        name: What messages call it.
        marks: Files that every such folder holds, and a text that is in each of them.
        files: Patterns of all files that belong to such a folder. A folder with any other file is not replaced.
    """

    name: str
    marks: Mapping[str, str]
    files: tuple[str, ...]

    def is_at(self, folder: Path) -> bool:
        """Whether all that lies in the folder was written by this package, as a folder of this kind."""
        if not all(holds(folder / name, text) for name, text in self.marks.items()):
            return False
        inside = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
        own = {path for pattern in self.files for path in folder.glob(pattern)}
        return all(path in own and not path.is_symlink() for path in inside)


MODEL_FOLDER = FolderKind(
    "model folder",
    {"config.json": '"model_type": "cagnet"'},
    (
        *("config.json", "preprocessor_config.json", "model.safetensors", "model.safetensors.index.json"),
        *("model-*-of-*.safetensors", "*_cagnet.py", "README.md"),
    ),
)
DATASET_FOLDER = FolderKind(
    "prepared dataset",
    {"classes.yaml": "classes:", "id2label.json": "{"},
    ("README.md", "classes.yaml", "id2label.json", "data/*-of-*.parquet", "contact_sheet.png"),
)


def made_by(command: str) -> str:
    """The mark by which a file that a command wrote is known again; the file carries it as text."""
    return f"made by cagnet-hf {command}"


def check_output(
    path: Path,
    kind: FolderKind | str | Callable[[Path], bool],
    *,
    inputs: Iterable[str | Path | None] = (),
    overwrite: bool = True,
) -> None:
    """Refuse an output, before the work, that would replace something that this package did not write.

    Args:
        path: The file or folder to write.
        kind: The kind of the folder; or the mark of a file (see `made_by`), or what knows such a file again.
        inputs: What the command reads; names that are no files or folders are left alone.
        overwrite: Whether an earlier output of the same kind may be replaced.

    Raises:
        OSError: The output may not or cannot be written.
        ValueError: An input is the output, or lies in it.
    """
    real, is_folder = real_path(path), isinstance(kind, FolderKind)
    for given in inputs:
        place = None if given is None else real_path(Path(given))
        if place is not None and place.exists() and (place == real or (is_folder and real in place.parents)):
            raise ValueError(f"{given} is read, and would be replaced with {path}: choose another output")
    above = next(parent for parent in real.parents if os.path.lexists(parent))
    if not above.is_dir():
        kind_above = "a link to itself" if above.is_symlink() else "a file"
        raise NotADirectoryError(f"{path} cannot be written: {above} is {kind_above}, not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written: you may not write to {above}")
    if real.is_symlink() or (not is_folder and path.is_symlink()):
        raise FileExistsError(f"{path} is a link and stays as it is: name a {'folder' if is_folder else 'file'}")
    if not real.exists() or (is_folder and real.is_dir() and not any(real.iterdir())):
        return
    if not is_folder and path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name the file to write")
    if not overwrite:
        raise FileExistsError(f"{path} exists; choose another or pass --overwrite")
    if is_folder and not (real.is_dir() and kind.is_at(real)):
        raise FileExistsError(
            f"{path} is no {kind.name} of this package, or holds other files, too, and stays as it is: choose another"
        )
    if not is_folder and not (kind(path) if callable(kind) else holds(path, kind)):
        raise FileExistsError(f"{path} was not written by this command and stays as it is: choose another")


def real_path(path: Path) -> Path:
    """Where a path leads through all links. A link that leads to itself stays, which `Path.resolve` cannot bear."""
    return Path(os.path.realpath(path))


def holds(file: Path, text: str) -> bool:
    """Whether a text is at the beginning or the end of a file."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        beginning = stream.read(_SEARCHED_BYTES)
        stream.seek(max(0, file.stat().st_size - _SEARCHED_BYTES))
        return text.encode() in beginning or text.encode() in stream.read()


def check_weight_files(source: str, revision: str | None = None) -> None:
    """Refuse, before the model is opened, a model whose weights are anything but safetensors files of the model.

    Args:
        source: A folder, or an id of the Hub.
        revision: A branch, tag or commit of the Hub.

    Raises:
        ValueError: The index of the weights names another file, or is damaged; the weights have another name; or the
            model is an adapter, which names the model that transformers opens in its place.
    """
    from transformers.utils import cached_file

    missing_is_none = ("missing_entries", "gated_repo", "connection_errors")
    options = {f"_raise_exceptions_for_{case}": False for case in missing_is_none}
    try:
        files = {
            name: cached_file(source, name, revision=revision, **options)
            for name in ("config.json", "adapter_config.json", _INDEX)
        }
    except OSError:  # no such model: who opens it says so best
        return
    if files["adapter_config.json"]:
        raise ValueError(f"{source}: adapter_config.json makes this an adapter of another model: give a whole model")
    if "transformers_weights" in _fields(files["config.json"]):
        raise ValueError(f"{source}: config.json names its weights, transformers_weights: call them model.safetensors")
    if files[_INDEX] is None:
        return
    try:
        names = set(json.loads(Path(files[_INDEX]).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{source}: {_INDEX} is damaged ({type(error).__name__})") from None
    wrong = [name for name in names if not re.fullmatch(r"[^/\\:]+\.safetensors", str(name))]
    if wrong:
        raise ValueError(f"{source}: {_INDEX} names {min(map(str, wrong))!r}, which is no safetensors file beside it")


def _fields(file: str | None) -> dict:
    """The fields of a JSON file; none of one that is damaged, which is told by who opens the file."""
    try:
        fields = {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def parse_yaml(text: str) -> object:
    """The value of a YAML text of plain values.

    Raises:
        yaml.YAMLError: The text is no YAML, is nested too deeply, or repeats values by aliases too often.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_aliases(node)
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except ValueError as error:  # a date that is none
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


def _check_aliases(root: yaml.Node) -> None:
    """Refuse a text of a few lines whose aliases of aliases stand for billions of values, or for one another."""
    sizes: dict[int, int | None] = {}  # of a node whose parts are not yet counted, None

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = None
            parts = [] if isinstance(node, yaml.ScalarNode) else node.value
            sizes[id(node)] = 1 + sum(
                sum(map(size, part)) if isinstance(part, tuple) else size(part) for part in parts
            )
        if sizes[id(node)] is None:
            raise yaml.YAMLError("an alias stands for what is around the alias")
        return sizes[id(node)]

    if size(root) - len(sizes) > _MOST_REPEATED:
        raise yaml.YAMLError(f"aliases repeat more than {_MOST_REPEATED:,} values")


def write_whole(target: Path, write, kind: FolderKind | None = None) -> None:
    """Let `write(path)` fill a folder aside, then rename it to `target`, which is never seen half-written.

    Where `write` fails, nothing is left behind; what a kill leaves is removed the next time. Of a link to a folder,
    the folder is replaced.

    Args:
        target: The folder.
        write: Fills the folder that it is given.
        kind: The kind of folder that may be replaced; None where there must be no folder yet, or an empty one.

    Raises:
        OSError: The folder cannot be written, or a folder of another kind is there.
    """
    target = real_path(target)
    old = target.with_name(f".{target.name}.old")
    if old.is_dir() and not target.exists():  # whoever was killed between the two renamings below
        os.replace(old, target)
    check_output(target, kind or FolderKind("folder", {"": ""}, ()))
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
    check_output(target, kind or FolderKind("folder", {"": ""}, ()))  # somebody may have come meanwhile
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


def lock_file(file: IO) -> bool:
    """Lock an open file until this process closes the file or ends; processes that it starts have no part in this.

    Returns:
        False where another process holds the lock. True on a file system without locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        def lock():
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:

        def lock():
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    try:
        lock()
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


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
