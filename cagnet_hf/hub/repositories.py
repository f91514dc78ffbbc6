"""Repositories of the Hub: who may write to them, and what can go wrong on the way, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import CommitOperationAdd, HfApi, constants

# The HTTP library's error is imported from where huggingface_hub has it: its name changed over versions.
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)


def claim_repository(repo_id: str, *, repo_type: str = "model", private: bool = False) -> str:
    """Make the repository, unless it is there, and make sure that this user may write to it.

    Args:
        repo_id: `owner/name`, or `name` of a repository of one's own.
        repo_type: `"model"` or `"dataset"`.
        private: Make it private.

    Returns:
        `owner/name`.

    Raises:
        ValueError: A name that the Hub does not take, no token or one that may not write there, no connection, or a
            private repository was asked for and it is public.
    """
    with told_in_one_line(repo_id):
        api = HfApi()
        user = api.whoami()["name"]  # of all requests the one that tells a bad token from a missing repository
        full_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        api.create_repo(full_id, repo_type=repo_type, private=private or None, exist_ok=True)
        # Sends nothing: asks how a file would be sent, which is only told to those who may send it.
        api.preupload_lfs_files(full_id, repo_type=repo_type, additions=[CommitOperationAdd("README.md", b"-")])
        if private and not api.repo_info(full_id, repo_type=repo_type).private:
            raise ValueError(f"{full_id} is public already: make it private on the Hub, or choose another id")
    return full_id


@contextmanager
def told_in_one_line(repo_id: str) -> Iterator[None]:
    """What can go wrong between here and the Hub, as one line that says what to do."""
    hub = constants.ENDPOINT
    try:
        yield
    except LocalTokenNotFoundError:
        reason = "no token for the Hub: run `hf auth login`, or set HF_TOKEN"
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set: unset it to push"
    except HFValidationError:
        reason = f"{repo_id!r} is no id for the Hub: write owner/name, of letters, digits, '-', '_' and '.'"
    except HfHubHTTPError as error:
        status, said = error.response.status_code, error.server_message or str(error).splitlines()[0]
        reason = f"{repo_id}: the Hub refused ({status}: {said})"
        if status == 401:
            reason = f"{hub} does not accept your token: run `hf auth login`, or set HF_TOKEN to a valid one"
        elif status == 403:
            reason = f"{repo_id}: your token may not write there; use a token with write access, or an id of your own"
    except HTTPError as error:
        reason = f"cannot reach {hub} ({error}): check the connection, or push later"
    else:
        return
    raise ValueError(reason)
