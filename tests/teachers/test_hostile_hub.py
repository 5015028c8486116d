"""A hostile Hub: its answers lead to no path outside the client's cache, and end within limits of time and size."""

import contextlib
import os
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bounds import bounded
from hub_server import HubServer, etag, point_client_at, running_hub
from huggingface_hub import constants
from stable_baselines3 import PPO

from sb3_qpd import TeacherError, load_teacher
from sb3_qpd.publishing.upload import upload
from sb3_qpd.teachers import hub_limits
from sb3_qpd.teachers.hub import list_files, parse_source

SOURCE = "me/ppo-CartPole-v1"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "ppo.zip"
    PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8]}, device="cpu").save(path)
    return path.read_bytes()


@pytest.fixture
def hub(model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub() as server:
        (tmp_path / "a" / "b").mkdir(parents=True)
        point_client_at(server.url, tmp_path / "a" / "b" / "cache", monkeypatch)
        server.publish(
            SOURCE, {"ppo-CartPole-v1.zip": model, "args.yml": b"env: CartPole-v1", "config.yml": b"normalize: false"}
        )
        yield server


def everything(folder: Path) -> set[str]:
    """Every file outside the client's cache."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in found if not name.startswith("a/b/cache")}


def with_headers(model: bytes, **headers: str) -> Callable[[Any], bool]:
    """The model, with other headers."""

    def answer(handler: Any) -> bool:
        usual = {"X-Repo-Commit": "a" * 40, "ETag": f'"{etag(model)}"', "Content-Length": str(len(model))}
        handler.answer(200, model, {**usual, **{name.replace("_", "-"): value for name, value in headers.items()}})
        return True

    return answer


ELSEWHERE = Path(tempfile.gettempdir(), "evil")  # can be written, and lies outside the cache
HEADERS = {
    "an ETag upwards": {"ETag": '"../../../../evil"'},
    "an absolute ETag": {"ETag": f'"{ELSEWHERE}"'},
    "an ETag that is a folder": {"ETag": '".."'},
    "an ETag of Windows": {"ETag": '"C:evil"'},
    "a linked ETag upwards": {"X_Linked_ETag": '"../../evil"'},
    "a commit upwards": {"X_Repo_Commit": "../../../evil"},
    "an absolute commit": {"X_Repo_Commit": str(ELSEWHERE)},
    "an empty commit": {"X_Repo_Commit": "."},
    "a packed answer": {"Content_Encoding": "gzip"},
    "a size below zero": {"X_Linked_Size": "-5"},
    "a size of 10^18": {"X_Linked_Size": str(10**18)},
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_no_hub_sends(hub: HubServer, model: bytes, tmp_path: Path, name: str) -> None:
    hub.hostile = with_headers(model, **HEADERS[name])
    before = everything(tmp_path)
    with pytest.raises(TeacherError, match=r"which no Hub sends: refused|are read: refused"):
        load_teacher(SOURCE)
    assert everything(tmp_path) == before
    assert not list((tmp_path / "a" / "b" / "cache").rglob("blobs/*")) and not ELSEWHERE.exists()


def test_a_missing_file_with_a_commit_upwards(hub: HubServer, tmp_path: Path) -> None:
    """The client notes in its cache what the Hub has not, under the commit's name."""

    def missing(handler: Any) -> bool:
        handler.missing("EntryNotFound", "../../../evil")
        return True

    hub.hostile = missing
    before = everything(tmp_path)
    with pytest.raises(TeacherError, match="X-Repo-Commit|x-repo-commit"):
        load_teacher(SOURCE)
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "source",
    [
        "me/x@../..",
        "me/x@../../../evil",
        "me/x@/etc",
        "me/x@a/../b",
        "me/x@.",
        "me/x@a//b",
        "me/x@a\\..\\b",
        "me/x@" + "a" * 300,
        "me/x@a\0b",
        "me/x@a\nb",
        "hub:me/x/../../evil.zip",
        "hub:me/x/a/../../b.zip",
        "hub:me/x/./a.zip@..",
    ],
)
def test_names_that_lead_out_of_the_cache(hub: HubServer, source: str, tmp_path: Path) -> None:
    before = everything(tmp_path)
    with pytest.raises(TeacherError):
        load_teacher(source)
    assert everything(tmp_path) == before and not hub.requests


def test_honest_names_are_taken() -> None:
    for source in ("me/x@v1.0", "me/x@refs/pr/1", "me/x@feature/a-b_c", f"me/x@{'a' * 40}", "hub:me/x/runs/1/a b.zip@main"):
        assert str(parse_source(source)) == source


def endless(handler: Any, pieces: Iterator[bytes], pause: float = 0) -> bool:
    with contextlib.suppress(OSError):
        for piece in pieces:
            handler.wfile.write(piece)
            handler.wfile.flush()
            if pause:
                threading.Event().wait(pause)  # time.sleep is patched for the client
    return True


def _forever(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


def endless_list(handler: Any) -> bool:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b'[{"type": "file", "path": "')
    return endless(handler, _forever(b"x" * 2**16))


def endless_pages(handler: Any) -> bool:
    handler.answer(200, b"[]", {"Link": f'<{handler.server.url}{handler.path}>; rel="next"'})
    return True


def endless_headers(handler: Any) -> bool:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    return endless(handler, (f"X-{i}: {'x' * 1000}\r\n".encode() for i in range(10**9)))


def dripping_headers(handler: Any) -> bool:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    return endless(handler, (b"X" for _ in range(10**9)), pause=0.1)


def dripping_list(handler: Any) -> bool:
    handler.send_response(200)
    handler.end_headers()
    return endless(handler, _forever(b" "), pause=0.1)


def silent(handler: Any) -> bool:
    threading.Event().wait(30)
    return True


def packed_list(handler: Any) -> bool:
    packed = zlib.compress(b"[" + b" " * 2**26 + b"]")
    handler.answer(200, packed, {"Content-Encoding": "deflate", "Content-Type": "application/json"})
    return True


def deep_list(handler: Any) -> bool:
    handler.answer(200, b"[" * 100_000, {"Content-Type": "application/json"})
    return True


def no_list(handler: Any) -> bool:
    handler.answer(200, b'{"a": [1, 2]}', {"Content-Type": "application/json"})
    return True


def strange_list(handler: Any) -> bool:
    handler.answer(200, b'[1, null, {"type": "file"}]', {"Content-Type": "application/json"})
    return True


LISTS = [endless_list, endless_pages, endless_headers, dripping_headers, dripping_list, silent, packed_list, deep_list]


@pytest.mark.parametrize("answer", [*LISTS, no_list, strange_list])
def test_lists_end(hub: HubServer, answer: Callable[[Any], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_limits, "SECONDS", 1.0)
    monkeypatch.setattr(hub_limits, "READ_SECONDS", 2.0)
    monkeypatch.setattr(hub_limits, "MAX_ANSWERS", 50)
    hub.hostile = answer
    source = parse_source(SOURCE)
    assert source is not None
    with bounded(60, 2**29), pytest.raises(TeacherError, match="."):
        list_files(source)


@pytest.mark.parametrize("is_slow", [False, True])
def test_files_end(hub: HubServer, model: bytes, is_slow: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The size that the Hub has named is the limit, whatever comes."""
    monkeypatch.setattr(hub_limits, "SECONDS", 1.0)
    monkeypatch.setattr(hub_limits, "MAX_LIST_BYTES", 2**20)

    def answer(handler: Any) -> bool:
        if handler.command == "HEAD":
            return with_headers(model)(handler)
        handler.send_response(200)
        handler.send_header("X-Repo-Commit", "a" * 40)
        handler.send_header("ETag", f'"{etag(model)}"')
        handler.end_headers()
        return endless(handler, _forever(b"x" if is_slow else b"x" * 2**16), 0.1 if is_slow else 0)

    hub.hostile = answer
    with (
        bounded(60, 2**29),
        pytest.raises(TeacherError, match="given up as too slow" if is_slow else "answers with more than"),
    ):
        load_teacher(SOURCE)
    assert not [path for path in (tmp_path / "a" / "b" / "cache").rglob("blobs/*") if not path.name.endswith(".incomplete")]


def raw(head: str, body: bytes = b"") -> Callable[[Any], bool]:
    """An answer byte by byte: what a server's library would not write."""

    def answer(handler: Any) -> bool:
        with contextlib.suppress(OSError):
            handler.wfile.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        handler.close_connection = True
        return True

    return answer


def for_the_model(answer: Callable[[Any], bool], method: str = "GET") -> Callable[[Any], bool]:
    """Every other request is answered as the Hub does."""
    return lambda handler: handler.command == method and handler.path.endswith(".zip") and answer(handler)


def lying(head: str, body: Callable[[bytes], bytes] = lambda model: model) -> Callable[[bytes], Callable[[Any], bool]]:
    """An honest answer about the model, and then its bytes with these headers."""

    def build(model: bytes) -> Callable[[Any], bool]:
        usual = f'HTTP/1.1 200 OK\nETag: "{etag(model)}"'
        lengths = {"n": len(model), "more": len(model) + 50, "less": len(model) - 50}
        return for_the_model(raw(f"{usual}\n{head.format(**lengths)}", body(model)))

    return build


def _chunks_without_end(model: bytes) -> bytes:
    return b"1\r\nx\r\n" * len(model)


CONTENTS = {
    "a length that is too large": lying("Content-Length: {more}"),
    "a length that is too small": lying("Content-Length: {less}"),
    "a length below zero": lying("Content-Length: -1"),
    "a length of 10^30": lying(f"Content-Length: {10**30}"),
    "two lengths": lying("Content-Length: {n}\nContent-Length: {less}"),
    "a length that is no number": lying("Content-Length: 1e3"),
    "chunks of other bytes": lying("Transfer-Encoding: chunked", _chunks_without_end),
    "a chunk of 2^63 bytes": lying("Transfer-Encoding: chunked", lambda model: b"7fffffffffffffff\r\n" + model),
    "chunks and a length": lying("Content-Length: {n}\nTransfer-Encoding: chunked", _chunks_without_end),
    "chunks that are packed": lying("Transfer-Encoding: gzip, chunked", _chunks_without_end),
    "gzip by name only": lying("Content-Length: {n}\nContent-Encoding: GZIP"),
    "two encodings": lying("Content-Length: {n}\nContent-Encoding: identity\nContent-Encoding: gzip"),
    "a header of 1 MB": lying("Content-Length: {n}\nX-Long: " + "x" * 10**6),
    "other bytes": lying("Content-Length: {n}", lambda model: bytes(len(model))),
    "a file": lying("Location: file:///etc/passwd\nContent-Length: 0", lambda model: b""),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_contents_that_are_not_what_was_named(
    hub: HubServer, model: bytes, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of them is taken for the model."""
    monkeypatch.setattr(hub_limits, "SECONDS", 1.0)
    monkeypatch.setattr(hub_limits, "READ_SECONDS", 2.0)
    hub.hostile = CONTENTS[name](model)
    before = everything(tmp_path)
    with bounded(60, 2**29), pytest.raises(TeacherError):
        load_teacher(SOURCE)
    assert everything(tmp_path) == before


REDIRECTS = {
    "a file": "file:///etc/passwd",
    "itself": "/me/ppo-CartPole-v1/resolve/main/ppo-CartPole-v1.zip",
    "a host that does not exist": "http://host.invalid/x",
    "another protocol": "gopher://127.0.0.1/x",
    "no address": "http://[::1",
    "a line break": "http://127.0.0.1:1/%0d%0aX-Repo-Commit:%20..",
}


@pytest.mark.parametrize("name", REDIRECTS)
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_redirects_end(hub: HubServer, tmp_path: Path, name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_limits, "SECONDS", 1.0)

    def answer(handler: Any) -> bool:
        handler.answer(302, b"", {"Location": REDIRECTS[name]})
        return True

    hub.hostile = for_the_model(answer, method)
    before = everything(tmp_path)
    with bounded(60, 2**29), pytest.raises(TeacherError):
        load_teacher(SOURCE)
    assert everything(tmp_path) == before


def test_another_host_gets_no_token(hub: HubServer, model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub itself sends the client to another host for large files, and so may a hostile one."""
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    tokens: list[str | None] = []
    with running_hub() as other:

        def redirect(handler: Any) -> bool:
            tokens.append(handler.headers.get("Authorization"))
            handler.answer(302, b"", {"Location": f"{other.url}/model"})
            return True

        def give(handler: Any) -> bool:
            tokens.append(handler.headers.get("Authorization"))
            return with_headers(model)(handler)

        hub.hostile, other.hostile = for_the_model(redirect), give
        load_teacher(SOURCE)
    assert tokens == ["Bearer hf_mine", None]


NAMES = {
    "upwards": "../../evil.zip",
    "absolute": "/etc/evil.zip",
    "upwards on Windows": "..\\..\\evil.zip",
    "a drive": "C:evil.zip",
    "a line break": "a\nb.zip",
    "a zero": "a\0b.zip",
    "turned around": "\u202egpj.zip",
    "half of a character": "\ud800.zip",
    "too long": "x" * 300 + ".zip",
    "a name with a revision": "a@b.zip",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_list_of_files_whose_names_are_none(hub: HubServer, model: bytes, name: str, tmp_path: Path) -> None:
    """The only zip of a repository is its model. One that could not be named by its user is not fetched."""

    def answer(handler: Any) -> bool:
        if "/tree/" in handler.path:
            handler.json([{"type": "file", "path": NAMES[name], "oid": etag(model), "size": len(model)}])
        elif handler.path.endswith("/ppo-CartPole-v1.zip"):
            handler.missing("EntryNotFound", "a" * 40)
        else:
            return handler.path.endswith(".zip") and with_headers(model)(handler)
        return True

    hub.hostile = answer
    before = everything(tmp_path)
    with pytest.raises(TeacherError, match="holds no zip"):
        load_teacher(SOURCE)
    assert everything(tmp_path) == before


def test_names_that_differ_in_case_are_two_files(hub: HubServer, model: bytes) -> None:
    hub.publish("me/two", {"A.zip": model, "a.zip": model})
    with pytest.raises(TeacherError, match=r"several zips.*hub:me/two/A\.zip or hub:me/two/a\.zip"):
        load_teacher("me/two")


def test_uploads_end(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_limits, "SECONDS", 1.0)
    monkeypatch.setenv("HF_TOKEN", hub.token)

    def answer(handler: Any) -> bool:
        return dripping_list(handler)

    monkeypatch.setattr("hub_server._Handler.do_POST", lambda handler: answer(handler) and None)
    with bounded(60, 2**29), pytest.raises(ValueError, match="could not be published.*too slow"):
        upload("me/student", {"a": b"1"}, message="x")


def test_the_hub_does_not_say_how_long_the_client_sleeps(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)

    def busy(handler: Any) -> bool:
        handler.answer(429, b"", {"RateLimit": '"api";r=0;t=1000000000', "Retry-After": "1000000000"})
        return True

    hub.hostile = busy
    with pytest.raises(TeacherError):
        load_teacher(SOURCE)
    assert slept and max(slept) < 60


def test_the_hub_is_not_told_of_variables(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own question about the process, which a Hub would choose."""
    from huggingface_hub.utils import _detect_agent as detection

    monkeypatch.setattr(detection, "_registry", None)
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(Path("registry.json").absolute()))
    load_teacher(SOURCE)
    assert not Path("registry.json").exists() and not any("agent-harnesses" in request for request in hub.requests)


def test_other_uses_of_the_client_stay_as_they_are(hub: HubServer, model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    load_teacher(SOURCE)
    monkeypatch.setattr(hub_limits, "MAX_LIST_BYTES", 10)
    path = huggingface_hub.hf_hub_download(SOURCE, "ppo-CartPole-v1.zip", force_download=True)
    assert Path(path).read_bytes() == model and os.path.getsize(path) > 10
