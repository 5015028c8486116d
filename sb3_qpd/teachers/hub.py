"""
Models on the Hugging Face Hub, fetched by ``huggingface_hub``: its cache, its tokens, its offline mode, ``HF_ENDPOINT``.

    sb3/ppo-LunarLander-v2                 the model of a repository
    sb3/ppo-LunarLander-v2@v1.0            at a branch, a tag or a commit's whole hash
    hub:owner/name/best_model.zip@v1.0     one file of several

Downloads are data for the safe reader. Nothing in them runs, so ``TRUST_REMOTE_CODE`` is not needed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from sb3_qpd.student_folder import FILES, INTEGER_MODEL, NO_MODELS
from sb3_qpd.teachers.files.archive import MAX_FILE_BYTES, TeacherError
from sb3_qpd.teachers.hub_limits import limited_answers

# files beside a model that tell how it was trained; run_folder reads them, and cli.models reads a student's report
NORMALIZATION_FILES = ("vecnormalize.pkl", "vec_normalize.pkl")  # RL Zoo's name, the Hub's
SIDE_FILES = ("args.yml", "config.yml", *NORMALIZATION_FILES, "report.json")
_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_BARE = re.compile(rf"(?P<repo>{_ID})(?:@(?P<revision>.+))?")
_ADDRESS = re.compile(
    rf"https?://[^/]+/(?P<repo>{_ID})(?:/(?:blob|resolve|tree)/(?P<revision>[^/?]+)(?:/(?P<file>[^?]+))?)?/?(?:\?.*)?"
)
_HUB = re.compile(rf"hub:(?P<repo>{_ID})(?:/(?P<file>[^@]+))?(?:@(?P<revision>.+))?")

_NAME = re.compile(r"[\w.+=@ ()-]{1,200}")  # of a file or a folder, or a part of a revision

# names of files that tell which other kind of model a repository holds
_OTHERS = (
    (r".*\.(safetensors|gguf)|pytorch_model.*\.bin", "a model of transformers or diffusers"),
    (r".*\.cleanrl_model", "a model of CleanRL"),
    (r"q-learning\.pkl", "a pickled Q-table"),
    (r".*\.onnx", "an exported network (ONNX), without its algorithm and spaces"),
    (r".*\.pth?|.*\.ckpt", "a checkpoint of torch, whose network is not in it"),
    (r".*\.pkl", "a pickle, which is not opened"),
)


@dataclass(frozen=True)
class HubSource:
    """
    A model on the Hub, as a user names it.

    :param repo_id: ``owner/name``
    :param filename: file in the repository, ``None`` for its model
    :param revision: branch, tag or commit, ``None`` for the newest
    """

    repo_id: str
    filename: str | None = None
    revision: str | None = None

    def looks_like_run_folder(self, algorithms: Iterable[str]) -> bool:
        """
        Whether the name is rather a path of RL Zoo's folders, such as ``ppo/CartPole-v1``, than a repository.

        :param algorithms: names of algorithms, as RL Zoo spells them
        """
        return self.filename is None and self.repo_id.split("/")[0] in algorithms

    def __str__(self) -> str:
        name = self.repo_id if self.filename is None else f"hub:{self.repo_id}/{self.filename}"
        return name if self.revision is None else f"{name}@{self.revision}"


@dataclass(frozen=True)
class Download:
    """
    A downloaded model.

    :param path: path of the file. Those of ``SIDE_FILES`` that exist lie beside it, or in RL Zoo's folders
    :param name: the source at its present commit, which loads the same file again
    """

    path: Path
    name: str


def parse_source(source: str) -> HubSource | None:
    """
    Tell a model on the Hub from a path. A name that exists here is a path; ``hub:`` always means the Hub.

    :param source: a path, or a model on the Hub
    :return: ``None`` for a path
    :raises TeacherError: a malformed ``hub:`` name, or an address of a web page
    """
    if address := _ADDRESS.fullmatch(source):
        named = HubSource(address["repo"], address["file"], address["revision"])
        raise TeacherError(f"Expected the name of a repository, got the address {source}. Write {named}")
    if found := _HUB.fullmatch(source):
        return _checked(HubSource(found["repo"], found["file"], found["revision"]))
    if source.startswith("hub:"):
        raise TeacherError(f"Expected hub:owner/name, hub:owner/name/file.zip or either with @revision, got {source!r}")
    found = _BARE.fullmatch(source)
    if found is None or found["repo"].endswith((".zip", ".npz")) or Path(source).exists() or Path(f"{source}.zip").exists():
        return None
    return _checked(HubSource(found["repo"], None, found["revision"]))


def _checked(source: HubSource) -> HubSource:
    """Refuse names that lead out of the client's cache, which makes paths of them."""
    for name in (source.filename, source.revision):
        if name is not None and not _is_name(name):
            raise TeacherError(f"Expected a file, a branch, a tag or a commit by its name, got {name!r} in {str(source)!r}")
    return source


def _is_name(name: str) -> bool:
    return all(_NAME.fullmatch(part) and part.strip(".") for part in name.split("/"))


def download(source: HubSource) -> Download:
    """
    Download a model with the files that belong to it, all of one commit.

    :param source: the model
    :raises TeacherError: it cannot be fetched; the message says why
    """
    with _clear_errors(source):
        path = Path(_fetch(source, source.filename) if source.filename else _fetch_model(source))
    parts = len(Path(source.filename or path.name).parts)
    folder, snapshot = path.parent, path.parents[parts - 1]
    here = "/".join(folder.relative_to(snapshot).parts)
    pinned = HubSource(source.repo_id, source.filename, snapshot.name)  # the cache's folder has the commit's name
    if path.suffix == ".zip":
        with _clear_errors(pinned):
            inner = ("", path.stem, run_name(folder))  # ppo/LunarLander-v2_1/LunarLander-v2/args.yml
            _fetch_own_statistics(pinned, here, path.stem)
            _fetch_side_files(pinned, dict.fromkeys("/".join(part for part in (here, one) if part) for one in inner))
    if source.filename is None and path.stem != source.repo_id.split("/")[1]:
        pinned = HubSource(source.repo_id, path.name, snapshot.name)
    return Download(path, str(pinned))


def list_files(source: HubSource) -> list[str]:
    """
    Names of the files of a repository. Without a connection: of those of its top folder that are in the cache.

    :param source: the repository
    """
    with _clear_errors(source):
        try:
            return _names(source)
        except Exception:  # whatever the client's HTTP library raises
            if names := _names_in_cache(source):
                return names
            raise


def download_student(source: HubSource) -> Path | None:
    """
    Download all files of a student's repository, all of one commit.

    :param source: the repository
    :return: the folder of the files, ``None`` where the repository holds no student
    """
    names = list_files(source)
    if INTEGER_MODEL not in names:
        return None
    first = download(replace(source, filename=INTEGER_MODEL))
    pinned = parse_source(first.name) or source
    for name in names:
        if name in FILES and name != INTEGER_MODEL:
            download(replace(pinned, filename=name))
    return first.path.parent


def run_name(folder: Path) -> str:
    """
    The environment in the name of an RL Zoo run: ``LunarLander-v2`` for ``LunarLander-v2_1``.

    :param folder: the run folder
    """
    return re.sub(r"_\d+$", "", folder.resolve().name)


def _fetch_model(source: HubSource) -> str:
    from huggingface_hub.errors import EntryNotFoundError

    usual = source.repo_id.split("/")[1] + ".zip"
    try:
        return _fetch(source, usual)
    except EntryNotFoundError as error:
        names = _names_in_cache(source) if _is_local(error) else _names(source)
        models = [name for name in _zips(names) if "/" not in name and name not in NO_MODELS]
        if len(models) != 1 and _is_local(error):
            raise
        if len(models) != 1:
            raise TeacherError(_no_model(source, usual, models, names)) from error
        return _fetch(source, models[0])


def _zips(names: Iterable[str]) -> list[str]:
    """The zips of a list, which comes from elsewhere, that ``hub:owner/name/FILE@REVISION`` can name."""
    return [name for name in names if name.endswith(".zip") and _is_name(name) and "@" not in name]


def _no_model(source: HubSource, usual: str, models: Sequence[str], names: Sequence[str]) -> str:
    if models:
        return f"{source} holds several zips, none named {usual}. Say which: " + " or ".join(
            str(HubSource(source.repo_id, name, source.revision)) for name in models[:20]
        )
    deeper = [name for name in _zips(names) if "/" in name]
    if deeper:
        return f"{source} has its zips in folders. Say which: " + " or ".join(
            str(HubSource(source.repo_id, name, source.revision)) for name in deeper[:20]
        )
    kind = next((what for pattern, what in _OTHERS if any(re.fullmatch(pattern, name) for name in names)), None)
    looks = f"It looks like {kind}" if kind else f"It holds {', '.join(names[:8]) or 'nothing'}"
    return f"{source} holds no zip: expected a model saved by Stable-Baselines3. {looks}"


def _fetch(source: HubSource, filename: str) -> str:
    """Fetch one file into the cache, whole or not at all, and compare it with the checksum that the Hub names."""
    from huggingface_hub import hf_hub_download

    size = hf_hub_download(source.repo_id, filename, revision=source.revision, dry_run=True).file_size
    if size is None or not 0 <= size <= MAX_FILE_BYTES:
        raise TeacherError(f"{filename} of {source} has {size} bytes, at most {MAX_FILE_BYTES} are read: refused")
    with limited_answers(size):
        path = hf_hub_download(source.repo_id, filename, revision=source.revision)
    _check_content(Path(path), filename, source)
    return path


def _check_content(path: Path, filename: str, source: HubSource) -> None:
    """Compare a file with its checksum, its name in the cache: SHA-256 of a large file, git's SHA-1 of a small one."""
    blob = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return  # a file system without links
    content = blob.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    if (hashlib.sha256(content) if len(blob.name) == 64 else git).hexdigest() != blob.name:
        raise TeacherError(
            f"{filename} of {source} is damaged: it does not have the checksum {blob.name} that the Hub names. "
            f"Delete {blob} and fetch it again"
        )


def _fetch_side_files(source: HubSource, folders: Iterable[str]) -> None:
    """
    Fetch ``SIDE_FILES`` from the first folder that describes the model.

    A file that the cache lacks may be missing on the Hub too. It is an error only where the cache has neither statistics nor
    the config.yml that would tell whether there are some: the model might see observations unlike those in training.
    """
    from huggingface_hub.errors import EntryNotFoundError

    found: set[str] = set()
    unknown: list[Exception] = []
    for folder in folders:
        for name in SIDE_FILES:
            filename = f"{folder}/{name}".lstrip("/")
            try:
                if not unknown or _is_cached(source, filename):  # a Hub that cannot be reached is asked once
                    _fetch(source, filename)
                    found.add(name)
            except EntryNotFoundError as error:
                if _is_local(error) and _is_cached(source, filename) is None:
                    unknown.append(error)
        if found & {"args.yml", "config.yml"}:
            break
    if unknown and not found & {"config.yml", *NORMALIZATION_FILES}:
        raise unknown[0]


def _fetch_own_statistics(source: HubSource, folder: str, stem: str) -> None:
    """Fetch the statistics of a checkpoint: ``rl_model_vecnormalize_1000_steps.pkl`` for ``rl_model_1000_steps.zip``."""
    from huggingface_hub.errors import EntryNotFoundError

    if (checkpoint := re.fullmatch(r"(.+)_(\d+_steps)", stem)) is None:
        return
    with suppress(EntryNotFoundError):
        _fetch(source, f"{folder}/{checkpoint[1]}_vecnormalize_{checkpoint[2]}.pkl".lstrip("/"))


def _is_cached(source: HubSource, filename: str) -> bool | None:
    """Whether a file is in the cache. ``False``: the Hub is known not to have it; ``None``: nothing is known."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.repo_id, filename, revision=source.revision)
    return None if found is None else isinstance(found, str)


def _names(source: HubSource) -> list[str]:
    from huggingface_hub import HfApi

    return HfApi().list_repo_files(source.repo_id, revision=source.revision)


def _names_in_cache(source: HubSource) -> list[str]:
    """Names in the top folder of the repository, as far as they were downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source.repo_id, revision=source.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return []
    return [path.name for path in folder.iterdir() if path.is_file()]


def _is_local(error: Exception) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError

    return isinstance(error, LocalEntryNotFoundError)


@contextmanager
def _clear_errors(source: HubSource) -> Iterator[None]:
    """Turn the client's exceptions into one error that says what to do."""
    from huggingface_hub import errors

    try:
        with limited_answers():
            yield
    except TeacherError as error:
        raise TeacherError(f"{source}: {error}" if str(source) not in str(error) else str(error)) from error
    except errors.GatedRepoError as error:
        told = " ".join(str(getattr(error, "server_message", None) or error).split())[:300]
        raise TeacherError(f"{source}: {told} Then log in with `hf auth login`, or set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise TeacherError(
            f"{source}: {_not_here(source)}{endpoint()} has no repository {source.repo_id} that you may read. Check the "
            "name; for a private or gated one log in with `hf auth login`, or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise TeacherError(
            f"{source.repo_id} on {endpoint()} has no revision {source.revision!r}. Expected a branch, a tag or a commit's "
            "whole hash"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise TeacherError(_unreachable(source, error)) from error
    except errors.EntryNotFoundError as error:
        tree = f"{endpoint()}/{source.repo_id}/tree/{source.revision or 'main'}"
        raise TeacherError(f"{source.repo_id} has no file {source.filename}. What it has: {tree}") from error
    except Exception as error:  # the client's HTTP library has exceptions of its own
        reason = " ".join(str(error).split())[:300]
        raise TeacherError(
            f"{source}: {_not_here(source)}it could not be fetched from {endpoint()}: {reason or type(error).__name__}. "
            "Nothing incomplete was kept; try again later"
        ) from error


def _unreachable(source: HubSource, error: Exception) -> str:
    from huggingface_hub import constants

    cause = " ".join(str(error.__cause__ or error).split())[:200]
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{endpoint()} cannot be reached ({cause})"
    return (
        f"{source}: {_not_here(source)}{why}, and the cache ({constants.HF_HUB_CACHE}) has not all of it. Load it "
        "once with a connection, or give the path of a zip"
    )


def _not_here(source: HubSource) -> str:
    """The beginning of a message, for the case that a path was meant."""
    return "" if source.filename else "there is no such file or folder here, and "


def endpoint() -> str:
    """Address of the Hub in use (``HF_ENDPOINT``)."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def teacher_on_hub(name: str) -> HubSource | None:
    """
    The repository that a teacher came from, ``None`` for a local file such as ``ppo/CartPole-v1``.

    :param name: the teacher's name; one from the Hub ends with its commit
    """
    return parse_source(name) if re.search(r"@[0-9a-f]{40}$", name) else None
