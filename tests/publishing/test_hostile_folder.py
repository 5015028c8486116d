"""A student's folder from elsewhere: what ``push`` sends of it, and what it writes about it."""

import html
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from bounds import bounded
from hub_server import HubServer
from student_files import student_files

from sb3_qpd import push_to_hub
from sb3_qpd.cli import main
from sb3_qpd.evaluation.report import console_summary, to_markdown
from sb3_qpd.publishing import paths
from sb3_qpd.publishing.paths import check_no_paths
from sb3_qpd.publishing.push import _read_report


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return student_files()


@pytest.fixture
def folder(files: dict[str, bytes], tmp_path: Path) -> Path:
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def push(folder: Path) -> None:
    push_to_hub(folder, "me/student", replay=False)


def test_each_file_is_listed_before_it_is_sent(
    folder: Path, hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        "sb3_qpd.publishing.push.upload", lambda *args, **kwargs: seen.append(capsys.readouterr().out) or "url"
    )
    push(folder)
    for name in ("student.npz", "student.zip", "report.json", "config.yml", "README.md"):
        assert f"sending {name}, " in seen[0]


@pytest.mark.parametrize("name", ["main.c", "policy.c", "student.onnx", "report.json", "student.npz", "student.zip"])
@pytest.mark.parametrize("is_inside", [True, False])
def test_links_are_refused(folder: Path, hub: HubServer, tmp_path: Path, name: str, is_inside: bool) -> None:
    target = (folder if is_inside else tmp_path) / "id_rsa"
    target.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    with pytest.raises(ValueError, match=f"{name} is a link, and may lead out of its folder"):
        push(folder)
    assert not hub.repositories


def test_the_bytes_that_are_sent_are_the_ones_that_were_checked(
    folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may replace a file between two readings."""
    honest = (folder / "student.npz").read_bytes()
    (folder / "student.npz").write_bytes(b"PK, and no student")

    def replaced_meanwhile(*args: Any) -> Any:
        (folder / "student.npz").write_bytes(honest)
        return _read_report(*args)

    monkeypatch.setattr("sb3_qpd.publishing.push._read_report", replaced_meanwhile)
    with pytest.raises(ValueError, match="is not a student's"):
        push(folder)
    assert not hub.repositories


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_refused(folder: Path, hub: HubServer, make: Callable[[Path], None]) -> None:
    make(folder / "policy.c")
    with bounded(20, 2**28), pytest.raises((ValueError, OSError), match=r"policy\.c"):
        push(folder)
    assert not hub.repositories


def nested(content: bytes, levels: int) -> bytes:
    for _ in range(levels):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.zip", content)
        content = buffer.getvalue()
    return content


def swollen(n_members: int, n_bytes: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for i in range(n_members):
            archive.writestr(f"m{i}", bytes(n_bytes))
    return buffer.getvalue()


def test_zips_in_zips_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "MAX_UNPACKED_BYTES", 2**24)
    for content, message in (
        (nested(b"x", 5), "is a zip in 2 zips: refused"),
        (nested(swollen(4, 2**23), 1), "are read: refused"),
        (swollen(4, 2**23), "are read: refused"),
        (swollen(1, 2**25), "are read: refused"),
    ):
        with bounded(20, 2**28), pytest.raises(ValueError, match=message):
            check_no_paths({"student.zip": content}, folder)
    check_no_paths({"student.zip": nested(b"x", 2)}, folder)


BOMB = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))


def test_bombs_of_texts_end(folder: Path) -> None:
    for name, content in (
        ("config.yml", BOMB.encode()),
        ("config.yml", b"a: " + b"[" * 10_000),
        ("report.json", b'{"a":' * 100_000),
        ("student.zip", b'{"a":' * 100_000),
    ):
        with bounded(20, 2**28):
            check_no_paths({name: content}, folder)


ESCAPES = "\x1b[31m\x07\x9b2J\u202e"
HOSTILE = "<script>alert(1)</script> [click](https://evil.example) ![x](http://evil.example/x.png) `a` | b"
HOSTILE += f" {ESCAPES}\nb\n# c www.evil.example mail@evil.example mailto:a@evil.example"


def hostile_report(files: dict[str, bytes]) -> dict[str, Any]:
    """A report in which every text that need not be a certain one is hostile, and numbers are texts where they can be."""
    report = json.loads(files["report.json"])
    report |= {
        "teacher_name": HOSTILE,
        "teacher_checksum": HOSTILE,
        "transition": HOSTILE,
        "notes": [HOSTILE, *report["notes"]],
    }
    report["env"] = {"env_id": HOSTILE}
    report["versions"] = {HOSTILE: HOSTILE}
    report["student_arch"] = HOSTILE
    report["baselines"] = {HOSTILE: {**report["integer"], "bytes": HOSTILE, "macs": HOSTILE, "episodes": HOSTILE}}
    return report


def is_clean(text: str) -> bool:
    return not any((ord(letter) < 32 and letter != "\n") or letter in "\x7f\x9b\u202e" for letter in text)


def test_texts_in_the_report_the_card_and_the_terminal(
    files: dict[str, bytes], folder: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    report = hostile_report(files)
    for text in (to_markdown(report), console_summary(report)):
        assert is_clean(text) and "alert(1)" in text
    (folder / "report.json").write_text(json.dumps(report))
    (folder / f"{ESCAPES}x.txt").write_text("")
    assert main(["push", str(folder), "--repo-id", "me/student", "--no-replay"]) == 0
    assert is_clean(capsys.readouterr().out)
    published = hub.repositories["me/student"]
    sent = published.commits[published.refs["main"]]
    card = sent["README.md"].decode()
    text_of_card = card.split("---", 2)[2]
    body = html.unescape(text_of_card)  # some renderers look for links after they have replaced the entities
    for text in ("](https://evil", "](http://evil", "http://evil", "www.evil", "@evil", "mailto:a", "`a`"):
        assert text not in body, text
    assert "<script" not in text_of_card
    assert is_clean(card) and is_clean(sent["config.yml"].decode())
    config = yaml.safe_load(sent["config.yml"])
    assert len(config) == 1 and isinstance(next(iter(config.values())), dict)
    assert "\n# c" not in sent["config.yml"].decode() and "\n# c" not in body


def test_errors_and_warnings_on_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (b'{"a": "\x1b[31m', json.dumps({"env": HOSTILE, "integer": 1}).encode(), b"\x1b[31m"):
        (folder / "report.json").write_bytes(content)
        with pytest.raises(SystemExit):
            main(["push", str(folder), "--repo-id", "me/student", "--no-replay"])
        with pytest.raises(SystemExit):
            main(["evaluate", str(folder / "student.zip"), "--episodes", "1", "--no-progress"])
        assert is_clean(capsys.readouterr().err)
