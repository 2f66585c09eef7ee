"""What a repository holds, and which of its files make up a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoSibling

from mlxd.hub.failure import PullFailure
from mlxd.hub.patience import Patience, may_pass
from mlxd.hub.session import Hub

_WANTED = (
    "*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "tiktoken.model",
    "*.txt", "*.jsonl", "*.jinja", "LICENSE", "LICENSE.md",
)  # fmt: skip
"""As mlx-lm has it, and the licence; code only where the operator trusts it."""
_CODE = "*.py"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_LARGEST = 2**48
_SMALL = 64 * 2**20
"""A file without a sha256 is in git itself, and git is not for large ones."""


@dataclass(frozen=True, slots=True)
class Remote:
    """One file as the hub describes it."""

    name: str
    size: int
    digest: str
    """`sha256:...`, or `sha1:...` of git's object."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a model at one commit, the small ones first."""

    revision: str
    files: tuple[Remote, ...]


def list_model(hub: Hub, repo: str, *, code: bool, patience: Patience) -> Listing:
    """Raises PullFailure."""
    info = patience.ask(lambda: _info(hub, repo))
    if info.id.lower() != repo.lower():
        raise PullFailure("refused", f"{repo} is called {info.id} now: pull that")
    revision = info.sha or ""
    if not _SHA1.fullmatch(revision):
        raise PullFailure("refused", f"the hub does not say which commit of {repo} it has")
    wanted = (*_WANTED, _CODE) if code else _WANTED
    files = [_remote(one) for one in info.siblings or () if _is_wanted(one.rfilename, wanted)]
    _check_is_model(repo, [file.name for file in files])
    return Listing(revision, tuple(sorted(files, key=lambda file: (file.size, file.name))))


def _info(hub: Hub, repo: str) -> ModelInfo:
    api = HfApi(endpoint=hub.endpoint, token=hub.token, library_name="mlxd")
    try:
        return api.model_info(repo, revision="main", files_metadata=True, timeout=30.0)
    except GatedRepoError as error:
        raise PullFailure(
            "denied", f"{repo} is gated: agree to its terms on the hub, and set HF_TOKEN"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise PullFailure(
            "not_found", f"the hub has no {repo}, or shows it only to those who may read it"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if may_pass(status):
            raise
        words = f"the hub answered {status} to a question about {repo}"
        raise PullFailure("denied" if status in (401, 403) else "refused", words) from error
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise PullFailure("refused", "what answers there is no hub") from error
    except httpx2.TooManyRedirects as error:
        raise PullFailure("refused", "the hub sends us in a circle") from error


def _is_wanted(name: str, patterns: Sequence[str]) -> bool:
    """Files at the top alone, by names that are no path and hide nothing."""
    return bool(_NAME.fullmatch(name)) and any(fnmatchcase(name, one) for one in patterns)


def _remote(file: RepoSibling) -> Remote:
    """Raises PullFailure for a file that could not be checked."""
    if file.lfs is not None:
        size, digest = file.lfs.size, f"sha256:{file.lfs.sha256}"
        known = bool(_SHA256.fullmatch(str(file.lfs.sha256)))
    else:
        size, digest = file.size or 0, f"sha1:{file.blob_id}"
        known = bool(_SHA1.fullmatch(str(file.blob_id))) and file.size is not None
    largest = _LARGEST if file.lfs is not None else _SMALL
    if not known or type(size) is not int or not 0 <= size <= largest:
        raise PullFailure("refused", f"the hub does not say what {file.rfilename} must be")
    return Remote(file.rfilename, size, digest)


def _check_is_model(repo: str, names: Sequence[str]) -> None:
    """Raises PullFailure."""
    weights = [name for name in names if name.endswith(".safetensors")]
    if "config.json" not in names or not weights:
        raise PullFailure(
            "no_model",
            f"{repo} has no config.json with model*.safetensors: nothing that MLX loads"
            " (GGUF files are for other programs)",
        )
