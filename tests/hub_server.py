"""A hub on 127.0.0.1: the parts of the Hugging Face Hub's API that its client uses for files, revisions and commits."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

LFS_BYTES = 1_000  # files from here on have their SHA-256 as ETag, as large files on the Hub; smaller ones have git's SHA-1


@dataclass
class Repository:
    """Commits (hash -> files), and the branches and tags that name them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        content = {**self.commits.get(self.refs.get(branch, ""), {}), **files}
        tree = repr(sorted((name, hashlib.sha1(data).hexdigest()) for name, data in content.items()))
        commit = hashlib.sha1(f"{len(self.commits)} {tree}".encode()).hexdigest()
        self.commits[commit], self.refs[branch] = content, commit
        return commit


class HubServer(ThreadingHTTPServer):
    """
    :param token: token that uploads and private repositories need
    """

    def __init__(self, token: str = "hf_secret") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token, self.repositories = token, dict[str, Repository]()
        self.requests: list[str] = []
        self.cuts = 0  # so many answers break off half way through
        self.errors = 0  # so many requests are answered with 500
        self.creating_fails = False
        self.hostile: Callable[[_Handler], bool] | None = None  # answers a request in place of the hub; False: it did not

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def publish(self, repo_id: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        return self.repositories.setdefault(repo_id, Repository()).commit(files, branch)


@contextlib.contextmanager
def running_hub() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        close_session()  # the client's connections stay open otherwise, and are answered even now
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: Any) -> None:
        pass

    # --- answers ---
    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        if self.server.hostile is not None:  # its connections are closed: a client that is not told meets a closed one
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def missing(self, code: str, commit: str = "") -> None:
        self.answer(404, b"", {"X-Error-Code": code, "X-Error-Message": code, **({"X-Repo-Commit": commit} if commit else {})})

    @property
    def is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def is_failing(self) -> bool:
        self.server.requests.append(f"{self.command} {self.path}")
        if self.server.errors > 0:
            self.server.errors -= 1
            self.answer(500)
            return True
        return False

    def find(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files; None: the answer was sent."""
        repository = self.server.repositories.get(repo_id)
        if repository is not None and repository.gated:
            told = f"Access to model {repo_id} is restricted. Visit {self.server.url}/{repo_id} to ask for access."
            self.answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": told})
            return None
        if repository is None or (repository.private and not self.is_known):
            self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})  # the Hub does not tell which of them
            return None
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits and revision != "main":
            self.missing("RevisionNotFound")
            return None
        return commit, repository.commits.get(commit, {})

    # --- requests ---
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.is_failing():
            return
        if self.server.hostile is not None and self.server.hostile(self):
            self.close_connection = True
            return
        path = urlsplit(self.path).path
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.send_info(match[1], unquote(match[2] or "main"))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self.send_tree(match[1], unquote(match[2]))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.send_file(match[1], unquote(match[2]), unquote(match[3]))
        else:
            self.answer(404)

    def send_info(self, repo_id: str, revision: str) -> None:
        if (found := self.find(repo_id, revision)) is not None:
            commit, files = found
            self.json({"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": [{"rfilename": name} for name in files]})

    def send_tree(self, repo_id: str, revision: str) -> None:
        if (found := self.find(repo_id, revision)) is not None:
            files = found[1].items()
            self.json([{"type": "file", "path": name, "oid": etag(data), "size": len(data)} for name, data in files])

    def send_file(self, repo_id: str, revision: str, name: str) -> None:
        if (found := self.find(repo_id, revision)) is None:
            return
        commit, files = found
        if name not in files:
            self.missing("EntryNotFound", commit)
            return
        content = files[name]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag(content)}"', "Accept-Ranges": "bytes"}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        offset = int(start[1]) if start else 0
        if start:
            headers["Content-Range"] = f"bytes {offset}-{len(content) - 1}/{len(content)}"
        if self.command == "GET" and self.server.cuts > 0:
            self.server.cuts -= 1
            self.cut_off(content[offset:], headers)
            return
        self.answer(206 if start else 200, content[offset:], headers)

    def cut_off(self, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(206 if "Content-Range" in headers else 200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.close_connection = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.is_failing():
            return
        path = urlsplit(self.path).path
        if path == "/api/validate-yaml":
            self.json({"errors": [], "warnings": []})
        elif not self.is_known:
            self.answer(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(body)["files"]
            ]
            if self.find(match[1], unquote(match[2])) is not None:
                self.json({"files": files})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            self.commit(match[1], unquote(match[2]), body)
        else:
            self.answer(404)

    def create(self, wanted: Mapping[str, Any]) -> None:
        repo_id = f"{wanted['organization']}/{wanted['name']}"
        if self.server.creating_fails:
            self.answer(403, b"", {"X-Error-Message": "You do not have the rights to create a model under this namespace"})
            return
        if repo_id in self.server.repositories:
            self.answer(409, json.dumps({"url": f"{self.server.url}/{repo_id}", "name": repo_id}).encode())
            return
        self.server.repositories[repo_id] = Repository(private=wanted.get("visibility") == "private")
        self.json({"url": f"{self.server.url}/{repo_id}", "name": repo_id})

    def commit(self, repo_id: str, branch: str, body: bytes) -> None:
        if self.find(repo_id, branch) is None:
            return
        lines = [json.loads(line) for line in body.splitlines()]
        assert lines[0]["key"] == "header" and lines[0]["value"]["summary"]
        files = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines[1:] if one["key"] == "file"}
        assert len(files) == len(lines) - 1
        commit = self.server.repositories[repo_id].commit(files, branch)
        self.json({"commitUrl": f"{self.server.url}/{repo_id}/commit/{commit}", "commitOid": commit})


def etag(content: bytes) -> str:
    if len(content) >= LFS_BYTES:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def point_client_at(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in (
        ("ENDPOINT", url),
        ("HUGGINGFACE_CO_URL_TEMPLATE", template),
        ("HF_HUB_CACHE", str(cache)),
        ("HF_TOKEN_PATH", str(cache / "token")),
        ("HF_HUB_DISABLE_TELEMETRY", True),
    ):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # of the client between two attempts
    monkeypatch.chdir(cache.parent)
