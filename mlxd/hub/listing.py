"""What a repository holds, and which of its files make up a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import httpx2
import msgspec
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import hf_raise_for_status
from huggingface_hub.utils._validators import validate_repo_id

from mlxd.hub.failure import PullFailure
from mlxd.hub.patience import Faltered, Patience, may_pass, wait_of
from mlxd.hub.session import Hub, answer

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
_LONGEST_ANSWER = 32 * 2**20
_MOST_FILES = 2000
"""All of them are told of in one line, which the daemon takes up to 1 MiB of."""
_REASONS = ("X-Error-Code", "X-Error-Message")


class _Lfs(msgspec.Struct, frozen=True):
    sha256: str
    size: int


class _File(msgspec.Struct, frozen=True):
    rfilename: str
    size: int | None = None
    blob_id: str = msgspec.field(default="", name="blobId")
    lfs: _Lfs | None = None


class _Info(msgspec.Struct, frozen=True):
    """What the hub tells of a repository, as far as it matters."""

    id: str
    sha: str = ""
    siblings: tuple[_File, ...] = ()


_decoder = msgspec.json.Decoder(_Info)


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
        raise PullFailure("refused", f"{repo} is called {info.id[:200]} now: pull that")
    if not _SHA1.fullmatch(info.sha):
        raise PullFailure("refused", f"the hub does not say which commit of {repo} it has")
    wanted = (*_WANTED, _CODE) if code else _WANTED
    files = [_remote(one) for one in info.siblings if _is_wanted(one.rfilename, wanted)]
    _check_is_model(repo, [file.name for file in files])
    return Listing(info.sha, tuple(sorted(files, key=lambda file: (file.size, file.name))))


def _info(hub: Hub, repo: str) -> _Info:
    """Raises PullFailure, Faltered, TransportError."""
    try:
        validate_repo_id(repo)
        url = f"{hub.endpoint}/api/models/{repo}/revision/main?blobs=true"
        with answer(hub, url) as response:
            _check_status(response, repo)
            return _decoder.decode(_body(response))
    except (msgspec.DecodeError, HFValidationError, RecursionError, UnicodeError) as error:
        raise PullFailure("refused", "what answers there is no hub") from error


def _body(response: httpx2.Response) -> bytes:
    """Raises PullFailure."""
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > _LONGEST_ANSWER:
            raise PullFailure("refused", "the hub's list of files does not end")
    return bytes(body)


def _check_status(response: httpx2.Response, repo: str) -> None:
    """Raises PullFailure, Faltered. What is in the body of a refusal is not read."""
    status = response.status_code
    if may_pass(status):
        raise Faltered(f"it answers {status}", wait_of(response))
    reasons = {name: response.headers[name] for name in _REASONS if name in response.headers}
    try:
        hf_raise_for_status(httpx2.Response(status, headers=reasons, request=response.request))
    except GatedRepoError as error:
        raise PullFailure(
            "denied", f"{repo} is gated: agree to its terms on the hub, and set HF_TOKEN"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise PullFailure(
            "not_found", f"the hub has no {repo}, or shows it only to those who may read it"
        ) from error
    except HfHubHTTPError as error:
        words = f"the hub answered {status} to a question about {repo}"
        raise PullFailure("denied" if status in (401, 403) else "refused", words) from error


def _is_wanted(name: str, patterns: Sequence[str]) -> bool:
    """Files at the top alone, by names that are no path and hide nothing."""
    return bool(_NAME.fullmatch(name)) and any(fnmatchcase(name, one) for one in patterns)


def _remote(file: _File) -> Remote:
    """Raises PullFailure for a file that could not be checked."""
    if file.lfs is not None:
        size, digest = file.lfs.size, f"sha256:{file.lfs.sha256}"
        known = bool(_SHA256.fullmatch(file.lfs.sha256))
    else:
        size, digest = file.size or 0, f"sha1:{file.blob_id}"
        known = bool(_SHA1.fullmatch(file.blob_id)) and file.size is not None
    largest = _LARGEST if file.lfs is not None else _SMALL
    if not known or not 0 <= size <= largest:
        raise PullFailure("refused", f"the hub does not say what {file.rfilename} must be")
    return Remote(file.rfilename, size, digest)


def _check_is_model(repo: str, names: Sequence[str]) -> None:
    """Raises PullFailure."""
    if len(names) > _MOST_FILES or len(set(names)) < len(names):
        raise PullFailure(
            "refused", f"{repo} has more files than a model has (over {_MOST_FILES}), or one twice"
        )
    weights = [name for name in names if name.endswith(".safetensors")]
    if "config.json" not in names or not weights:
        raise PullFailure(
            "no_model",
            f"{repo} has no config.json with model*.safetensors: nothing that MLX loads"
            " (GGUF files are for other programs)",
        )
