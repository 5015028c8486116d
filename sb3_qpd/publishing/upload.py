"""Upload to the Hugging Face Hub: all files in one commit, or none."""

from __future__ import annotations

from collections.abc import Mapping

from sb3_qpd.teachers.hub import endpoint
from sb3_qpd.teachers.hub_limits import limited_answers


def upload(
    repo_id: str, files: Mapping[str, bytes], *, private: bool | None = None, branch: str | None = None, message: str
) -> str:
    """
    Upload all files in one commit, or none.

    :param repo_id: repository as ``owner/name``, created where there is none
    :param files: contents of the files, by name
    :param private: whether a new repository is private
    :param branch: branch to commit to; ``None`` is ``main``
    :param message: message of the commit
    :return: address of the commit
    :raises ValueError: there is no such branch, no connection, or no right to write
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, errors

    try:
        with limited_answers():
            api = HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            additions = [CommitOperationAdd(name, content) for name, content in files.items()]
            return str(api.create_commit(repo_id, additions, commit_message=message, revision=branch).commit_url)
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{repo_id} has no branch {branch!r}. Create it first, or leave it out") from error
    except Exception as error:  # of any kind: the client's HTTP library raises its own
        offline = "HF_HUB_OFFLINE is set. " if constants.HF_HUB_OFFLINE else ""
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"{repo_id} could not be published on {endpoint()}: {offline}{reason}. Uploading needs a connection and a token "
            "that may write there: log in with `hf auth login`, or set HF_TOKEN"
        ) from error
