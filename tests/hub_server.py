"""A Hub on this machine: an HTTP server that keeps repositories in memory and speaks the part of the Hub's API that
`huggingface_hub`, `transformers`, `datasets` and `evaluate` use to push and to open.

with HubServer() as hub:
    subprocess.run(..., env=os.environ | hub.environment(home))   # another process
    hub.stand_in(monkeypatch, home)                                # this one, whose libraries are imported already
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

OWNER, WRITE_TOKEN = "your-name", "hf_write"
READ_TOKEN = "hf_read"  # the owner's, too: it may look at private repositories, and change none
STRANGER_TOKEN = "hf_stranger"
USERS = {WRITE_TOKEN: (OWNER, "write"), READ_TOKEN: (OWNER, "read"), STRANGER_TOKEN: ("stranger", "write")}
LFS_SUFFIXES = {".safetensors", ".parquet", ".png"}


@dataclass(frozen=True)
class Blob:
    """A file of a commit."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """What git calls it: the hash of the file, or of the pointer that stands for it."""
        content = self.content
        if self.lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n"
            content = pointer.encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def entry(self, path: str) -> dict:
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.oid}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}
        return entry


@dataclass
class Repository:
    """Snapshots by commit, oldest first; `main` is the last."""

    private: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)

    def commit(self, files: dict[str, Blob]) -> str:
        names = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(files.items()))
        oid = hashlib.sha1(f"{len(self.commits)}\n{names}".encode()).hexdigest()
        self.commits[oid] = files
        return oid

    @property
    def head(self) -> str:
        return next(reversed(self.commits))

    def resolve(self, revision: str) -> str:
        oid = self.head if revision in ("main", "HEAD") else revision
        if oid not in self.commits:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid


class RefusedError(Exception):
    """An answer that is an error, as the Hub words it."""

    def __init__(self, status: int, code: str, message: str):
        self.status, self.code, self.message = status, code, message


class HubServer:
    """The repositories, and the server in a thread of its own while the `with` block runs."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}  # (models | datasets | spaces, owner/name)
        self.large_files: dict[str, bytes] = {}  # by SHA-256
        self.unknown: list[str] = []  # requests outside the API that is spoken here
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, home: Path, token: str | None = WRITE_TOKEN) -> dict[str, str]:
        """Variables of a process that takes this server for the Hub; `home` holds its caches."""
        variables = {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
        variables |= {"HF_HUB_ETAG_TIMEOUT": "600", "HF_HUB_DOWNLOAD_TIMEOUT": "600"}  # seconds, on a busy machine
        variables |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
        return variables | ({"HF_TOKEN": token} if token else {})

    def stand_in(self, monkeypatch, home: Path, token: str | None = WRITE_TOKEN) -> None:
        """The same for `huggingface_hub`, `transformers` and `datasets` in this process, until the test ends."""
        for name, value in self.environment(home, token).items():
            monkeypatch.setenv(name, value)
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
        template = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        read_on_import = {"ENDPOINT": self.url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_DISABLE_XET": True}
        read_on_import |= {"HF_HUB_ETAG_TIMEOUT": 600, "HF_HUB_DOWNLOAD_TIMEOUT": 600}
        read_on_import |= {"HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(home / "hub")}
        read_on_import |= {"HF_TOKEN_PATH": str(home / "token"), "HF_STORED_TOKENS_PATH": str(home / "tokens")}
        for name, value in read_on_import.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", self.url)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home / "datasets")

    def files(self, repo_id: str, kind: str = "models") -> dict[str, bytes]:
        """The files of a repository on `main`."""
        repository = self.repositories[kind, repo_id]
        return {path: blob.content for path, blob in repository.commits[repository.head].items()}


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self) -> None:
        body = self._read_body()
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for verb, pattern, answer in _ROUTES:
                match = re.fullmatch(pattern, unquote(url.path))
                if verb == method and match:
                    answer(self, body, **match.groupdict())
                    return
            self.hub.unknown.append(f"{self.command} {self.path}")
            raise RefusedError(404, "", f"no answer to {self.command} {url.path}")
        except RefusedError as refusal:
            headers = {"X-Error-Code": refusal.code} if refusal.code else {}
            self._send_json({"error": refusal.message}, refusal.status, headers | {"X-Error-Message": refusal.message})

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - named by http.server

    # The request

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _user(self) -> tuple[str | None, str]:
        """(name, role) of whoever asks; nobody without a token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in USERS:
            raise RefusedError(401, "", "Invalid credentials in Authorization header")
        return USERS.get(token, (None, "read"))

    def _repository(self, kind: str, repo_id: str, *, write: bool = False) -> Repository:
        """The repository, if whoever asks may see it (or change it); a private one looks absent to others."""
        (user, role), owner = self._user(), repo_id.partition("/")[0]
        repository = self.hub.repositories.get((kind, repo_id))
        if repository is None or (repository.private and user != owner):
            raise RefusedError(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and (user, role) != (owner, "write"):
            raise RefusedError(403, "", "You don't have the rights to create a commit on this repository")
        return repository

    # The answer

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_json(self, value, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    # Who, and which repositories

    def whoami(self, body) -> None:
        name, role = self._user()
        if name is None:
            raise RefusedError(401, "", "Invalid username or password.")
        token = {"displayName": "token", "role": role}
        self._send_json({"type": "user", "name": name, "orgs": [], "auth": {"accessToken": token}})

    def create(self, body) -> None:
        asked = json.loads(body)
        user, role = self._user()
        owner, kind = asked.get("organization") or user, f"{asked.get('type') or 'model'}s"
        repo_id = f"{owner}/{asked['name']}"
        if user is None:
            raise RefusedError(401, "", "Invalid username or password.")
        if (owner, "write") != (user, role):
            raise RefusedError(
                403, "", f"You don't have the rights to create a {kind[:-1]} under the namespace {owner!r}"
            )
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{repo_id}"
        if (kind, repo_id) in self.hub.repositories:
            self._send_json({"error": "You already created this repo", "url": url}, 409)
            return
        repository = Repository(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        repository.commit({})
        self.hub.repositories[kind, repo_id] = repository
        self._send_json({"url": url, "name": repo_id})

    def validate_yaml(self, body) -> None:
        self._send_json({"errors": [], "warnings": []})

    def agent_harnesses(self, body) -> None:
        raise RefusedError(404, "", "a list that huggingface_hub does without")

    # Pushing

    def preupload(self, body, kind, repo_id, revision) -> None:
        self._repository(kind, repo_id, write=True)
        modes = [
            {"path": file["path"], "uploadMode": "lfs" if Path(file["path"]).suffix in LFS_SUFFIXES else "regular"}
            for file in json.loads(body)["files"]
        ]
        self._send_json({"files": [mode | {"shouldIgnore": False} for mode in modes]})

    def lfs_batch(self, body, prefix, repo_id) -> None:
        self._repository((prefix or "models").rstrip("/"), repo_id, write=True)
        objects = [
            {"oid": entry["oid"], "size": entry["size"]}
            | ({} if entry["oid"] in self.hub.large_files else {"actions": {"upload": self._upload(entry["oid"])}})
            for entry in json.loads(body)["objects"]
        ]
        self._send_json({"transfer": "basic", "objects": objects})

    def _upload(self, oid: str) -> dict:
        return {"href": f"{self.hub.url}/upload/{oid}"}

    def upload(self, body, oid) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusedError(400, "", "the content is not what was announced")
        self.hub.large_files[oid] = body
        self._send(b"")

    def commit(self, body, kind, repo_id, revision) -> None:
        repository = self._repository(kind, repo_id, write=True)
        files = dict(repository.commits[repository.resolve(revision)])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header" and value.get("parentCommit", repository.head) != repository.head:
                raise RefusedError(412, "", "A commit has happened since. Please refresh and try again.")
            if item["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif item["key"] == "lfsFile":
                files[value["path"]] = Blob(self.hub.large_files[value["oid"]], lfs=True)
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(files)
        self._send_json({"commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}", "commitOid": oid, "success": True})

    # Opening

    def info(self, body, kind, repo_id, revision=None) -> None:
        repository = self._repository(kind, repo_id)
        oid = repository.resolve(revision or "main")
        siblings = [{"rfilename": path} for path in sorted(repository.commits[oid])]
        facts = {"id": repo_id, "sha": oid, "private": repository.private, "siblings": siblings, "tags": []}
        self._send_json(facts | {"lastModified": "2026-01-01T00:00:00.000Z", "downloads": 0, "likes": 0})

    def tree(self, body, kind, repo_id, revision, folder=None) -> None:
        repository = self._repository(kind, repo_id)
        prefix = f"{folder.strip('/')}/" if folder and folder.strip("/") else ""
        files = repository.commits[repository.resolve(revision)]
        inside = {path: blob for path, blob in sorted(files.items()) if path.startswith(prefix)}
        if prefix and not inside:
            raise RefusedError(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        parents = {str(parent) for path in inside for parent in Path(path).parents if str(parent) != "."}
        entries = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(parents)]
        entries = [entry for entry in entries if entry["path"].startswith(prefix)]
        entries += [blob.entry(path) for path, blob in inside.items()]
        if self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(prefix)]
        self._send_json(entries)

    def paths_info(self, body, kind, repo_id, revision) -> None:
        repository = self._repository(kind, repo_id)
        files = repository.commits[repository.resolve(revision)]
        form = "json" not in self.headers.get("Content-Type", "")
        paths = parse_qs(body.decode())["paths"] if form else json.loads(body)["paths"]
        entries = [files[path].entry(path) for path in paths if path in files]
        folders = {str(parent) for path in files for parent in Path(path).parents}
        entries += [
            {"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in paths if path in folders
        ]
        self._send_json(entries)

    def refs(self, body, kind, repo_id) -> None:
        head = self._repository(kind, repo_id).head
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": head}
        self._send_json({"branches": [main], "converts": [], "tags": []})

    def resolve(self, body, prefix, repo_id, revision, path) -> None:
        repository = self._repository((prefix or "models").rstrip("/"), repo_id)
        oid = repository.resolve(revision)
        headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        blob = repository.commits[oid].get(path)
        if blob is None:
            raise RefusedError(404, "EntryNotFound", f"{path} does not exist on {revision}")
        headers["ETag"] = f'"{blob.etag}"'
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            self._send(blob.content, headers=headers)
            return
        start, last = int(wanted[1]), int(wanted[2] or len(blob.content) - 1)
        part = blob.content[start : last + 1]
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(blob.content)}"
        self._send(part, 206, headers)


_KIND, _ID, _REVISION = r"(?P<kind>models|datasets|spaces)", r"(?P<repo_id>[^/]+(/[^/]+)?)", r"(?P<revision>[^/]+)"
_PREFIX = r"(?P<prefix>datasets/|spaces/)?"
_ROUTES = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("GET", "/api/agent-harnesses", _Handler.agent_harnesses),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", f"/api/{_KIND}/{_ID}/preupload/{_REVISION}", _Handler.preupload),
    ("POST", f"/{_PREFIX}{_ID}\\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", "/upload/(?P<oid>[0-9a-f]{64})", _Handler.upload),
    ("POST", f"/api/{_KIND}/{_ID}/commit/{_REVISION}", _Handler.commit),
    ("GET", f"/api/{_KIND}/{_ID}(/revision/{_REVISION})?", _Handler.info),
    ("GET", f"/api/{_KIND}/{_ID}/tree/{_REVISION}(/(?P<folder>.*))?", _Handler.tree),
    ("POST", f"/api/{_KIND}/{_ID}/paths-info/{_REVISION}", _Handler.paths_info),
    ("GET", f"/api/{_KIND}/{_ID}/refs", _Handler.refs),
    ("GET", f"/{_PREFIX}{_ID}/resolve/{_REVISION}/(?P<path>.+)", _Handler.resolve),
]
