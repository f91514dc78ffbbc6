"""The images that a user names: files, folders, patterns and addresses."""

import glob
import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from .samples import File

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_MOST_BYTES, _SECONDS = 1 << 28, 30


@dataclass(frozen=True)
class RemoteFile:
    """A file behind an http(s) address."""

    url: str

    @property
    def stem(self) -> str:
        """The last name of its path, less the suffix: what no system takes for a folder."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.url).path)
        return PureWindowsPath(path.replace("\0", "").replace(":", "_")).stem.strip(".") or "image"

    def read_bytes(self) -> bytes:
        """Its content; raises `OSError` when it cannot be fetched, or is larger than 256 MiB."""
        try:
            with _OPENER.open(_ascii(self.url), timeout=_SECONDS) as answer:
                data = answer.read(_MOST_BYTES + 1)
        except (urllib.error.URLError, http.client.HTTPException, ValueError) as error:
            raise OSError(f"cannot be fetched ({getattr(error, 'reason', None) or error})") from error
        if len(data) > _MOST_BYTES:
            raise OSError(f"larger than {_MOST_BYTES >> 20} MiB")
        return data

    def __str__(self) -> str:
        return self.url


class _SameProtocols(urllib.request.HTTPRedirectHandler):
    """Follows a server to http(s) addresses only."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not newurl.lower().startswith(("http://", "https://")):
            raise urllib.error.URLError(f"the server sends on to {newurl!r}, which is no http(s) address")
        return super().redirect_request(req, fp, code, msg, headers, _ascii(newurl))


_OPENER = urllib.request.build_opener(_SameProtocols)


def _ascii(url: str) -> str:
    """An address as servers understand it: the host in Punycode, all else that is not ASCII in percents."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    path, query = (urllib.parse.quote(part, safe="/%:=&?~#+!$,;'@()*[]") for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))


def find_images(inputs: Sequence[str]) -> list[File]:
    """The images that each input names, in order: a file, the images of a folder, a pattern, or an address.

    Raises:
        ValueError: An input names nothing, or a folder or pattern holds no image.
    """
    found = []
    for given in inputs:
        path = Path(given)
        if given.startswith(("http://", "https://")):
            found.append(RemoteFile(given))
        elif path.is_dir():
            found += _images(path.iterdir(), f"{given}: no images in this folder ({', '.join(IMAGE_SUFFIXES)})")
        elif path.exists():
            found.append(path)
        elif glob.has_magic(given):
            found += _images(map(Path, glob.glob(given, recursive=True)), f"{given}: matches no image")
        else:
            raise ValueError(f"{given}: no such file")
    return list(dict.fromkeys(found))


def _images(paths, complaint: str) -> list[Path]:
    images = sorted(
        path
        for path in paths
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    if not images:
        raise ValueError(complaint)
    return images
