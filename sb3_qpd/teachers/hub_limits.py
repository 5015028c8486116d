"""
Limits on what a Hub may answer: a hostile or broken endpoint gets neither a path, nor endless time, nor the memory.

``huggingface_hub`` makes names of files from headers of the answer, such as the ETag. Its requests for lists have no limit of
time, and no answer has one of size. So its HTTP client gets two hooks, and a stream that counts bytes and seconds. Both are
idle outside of :func:`limited_answers`: other uses of the client in this process stay as they are.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sb3_qpd.teachers.files.archive import TeacherError

MAX_LIST_BYTES = 8 * 2**20  # of an answer in JSON, and of headers
MAX_ANSWERS = 1_000  # while one model is found and fetched: pages of a list may go on for ever
SECONDS = 60.0  # to wait for one answer, besides the time for its bytes
BYTES_PER_SECOND = 32 * 2**10  # slower answers are given up
READ_SECONDS = 10.0  # for the next bytes, where the client sets no limit
# Without the hash the file comes by HTTP, where it is limited. By the others the client sleeps for as long as the Hub says
_IGNORED = ("x-xet-hash", "ratelimit", "ratelimit-policy", "retry-after")
# The client asks for a list of variables of the process, tells the Hub in each request which of them are set as the list says,
# and keeps the list. A hostile Hub would learn what it likes.
_OWN_REQUESTS = ("/api/agent-harnesses",)
_CHECKSUM = r"[0-9a-f]{40}|[0-9a-f]{64}"  # git's SHA-1 of a small file, SHA-256 of a large one
_HEADERS = {
    "etag": rf'(W/)?"?({_CHECKSUM})"?',
    "x-linked-etag": rf'(W/)?"?({_CHECKSUM})"?',
    "x-repo-commit": r"[0-9a-f]{40}",
    "content-encoding": "identity",  # a small packed answer may unpack without bound
}


class _Answer(threading.local):
    """The answer that this thread waits for: ``limit`` is its largest size in bytes, 0 where nothing is limited."""

    limit = 0
    file_limit = 0
    n_answers = 0
    n_bytes = 0
    seconds = 0.0


_answer = _Answer()


@contextmanager
def limited_answers(max_file_bytes: int = MAX_LIST_BYTES) -> Iterator[None]:
    """
    Limit and check what the Hub answers to this thread.

    :param max_file_bytes: largest size of a file that is fetched inside
    :raises TeacherError: an answer is larger, too slow, or has a header that no Hub sends
    """
    from huggingface_hub import get_session

    _watch(get_session())
    before = _answer.limit, _answer.file_limit
    if not _answer.limit:
        _answer.n_answers = 0
    _answer.limit, _answer.file_limit = MAX_LIST_BYTES, max_file_bytes
    try:
        yield
    finally:
        _answer.limit, _answer.file_limit = before


def _watch(client: Any) -> None:
    """Add the hooks to a client, and the counting stream to its connections, once."""
    hooks = client.event_hooks
    if _before_request in hooks["request"]:
        return
    client.event_hooks = {
        "request": [*hooks["request"], _before_request],
        "response": [_after_headers, *hooks["response"]],
    }
    for transport in (client._transport, *client._mounts.values()):
        pool = getattr(transport, "_pool", None)
        if pool is not None:
            pool._network_backend = _CountingBackend(pool._network_backend)


def _before_request(request: Any) -> None:
    if not _answer.limit:
        return
    if request.url.path in _OWN_REQUESTS:  # its error is ignored there
        raise TeacherError(f"Not asked: {request.url.path}")
    _answer.n_answers += 1
    if _answer.n_answers > MAX_ANSWERS:
        raise TeacherError(f"The Hub has more than {MAX_ANSWERS} answers, such as pages of a list: given up")
    request.headers["Accept-Encoding"] = "identity"
    given = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = {
        name: READ_SECONDS if given.get(name) is None else given[name] for name in ("connect", "read", "write", "pool")
    }
    is_file = request.method == "GET" and not request.url.path.startswith("/api/")
    _answer.limit = MAX_LIST_BYTES + (_answer.file_limit if is_file else 0)
    _answer.n_bytes, _answer.seconds = 0, 0.0


def _after_headers(response: Any) -> None:
    if not _answer.limit:
        return
    for name, pattern in _HEADERS.items():
        value = response.headers.get(name)
        if value is not None and not re.fullmatch(pattern, value):
            raise TeacherError(
                f"{_host(response)} answers with the header {name}: {value[:80]!r}, which no Hub sends: refused"
            )
    for name in _IGNORED:
        response.headers.pop(name, None)


def _host(response: Any) -> str:
    return f"{response.request.url.scheme}://{response.request.url.netloc.decode('ascii', 'replace')}"


class _CountingBackend:
    """
    A network backend of the client whose connections count what they read.

    :param backend: the client's own
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def connect_tcp(self, *args: Any, **kwargs: Any) -> Any:
        return _CountingStream(self._backend.connect_tcp(*args, **kwargs))


class _CountingStream:
    """
    A connection that counts bytes, and the seconds that were waited for them.

    :param stream: the client's own
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def start_tls(self, *args: Any, **kwargs: Any) -> Any:
        return _CountingStream(self._stream.start_tls(*args, **kwargs))

    def read(self, *args: Any, **kwargs: Any) -> bytes:
        start = time.monotonic()
        content = self._stream.read(*args, **kwargs)
        if _answer.limit:
            _answer.seconds += time.monotonic() - start
            _answer.n_bytes += len(content)
            _check_answer()
        return content


def _check_answer() -> None:
    if _answer.n_bytes > _answer.limit:
        raise TeacherError(f"The Hub answers with more than {_answer.limit} bytes: refused")
    if _answer.seconds > SECONDS + _answer.n_bytes / BYTES_PER_SECOND:
        raise TeacherError(f"The Hub has answered {_answer.n_bytes} bytes in {_answer.seconds:.0f} s: given up as too slow")
