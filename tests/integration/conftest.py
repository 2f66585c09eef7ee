"""Models and daemons that the tests of a whole daemon share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.reciter import make_reciter
from tests.integration.talking import ENDLESS
from tests.support.daemon import Daemon, daemon
from tests.support.fleet import PACED, make_paced
from tests.support.model_maker import Shape, make_model

NO_LIMITS = "concurrency: {max_in_flight: 64}\nrate_limit: []\n"
IMPATIENT = (
    "worker:\n"
    "  budget: [{max: 1000, per: 300s}]\n"
    "  backoff: {base: 100ms, max: 100ms}\n"
    "  breaker: {failures: 1000}\n"
)
"""supervision.yaml of a daemon whose workers may die as often as tests like."""
_NEVER_SAMPLED = 100_000
"""An end-of-sequence id outside the vocabulary: such a model stops only when told to."""
KINDS = ("clients", "limits", "memory", "models", "server", "supervision", "timeouts")
"""The policy files there are."""
Start = Callable[..., Daemon]
Lend = Callable[..., Daemon]


@pytest.fixture(scope="session")
def zoo(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-a and tiny-b, one that never stops by itself, its copy, and one that recites a text."""
    folder = tmp_path_factory.mktemp("zoo")
    for name in ("tiny-a", "tiny-b"):
        (folder / name).symlink_to(models / name)
    _make_endless(folder / ENDLESS)
    shutil.copytree(folder / ENDLESS, folder / "tiny-short")
    make_reciter(folder / "tiny-reciter")
    return folder


def _make_endless(folder: Path) -> None:
    """The end of a sequence is known to neither its config nor its tokenizer."""
    endless = Shape(layers=1, spread=3.0, context=65536, extra={"eos_token_id": _NEVER_SAMPLED})
    make_model(folder, endless, seed=3)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["eos_token"]
    file.write_text(json.dumps(config))


@pytest.fixture(scope="session")
def served(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without limits, for tests that leave it as they found it.

    `tiny-short` is the endless model with room for 128 tokens.
    """
    folder = tmp_path_factory.mktemp("served")
    policies = {
        "limits": NO_LIMITS,
        "models": (
            f"dirs: [{zoo}]\n"
            "models:\n"
            f"  tiny-short: {{context: 128}}\n"
            "  tiny-b: {aliases: [bee]}\n"
            "chains: {default: [no-such, tiny-b], coding: [no-such, tiny-b], fast: [no-such]}\n"
        ),
    }
    with daemon(folder, models=zoo, policies=policies) as running:
        yield running


@pytest.fixture(scope="session")
def paced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """models.yaml with a model, PACED, that answers for long and hardly uses a core."""
    folder = tmp_path_factory.mktemp("paced")
    make_paced(folder / PACED)
    return {"models": f"dirs: [{folder}]\nmodels: {{{PACED}: {{trust_remote_code: true}}}}\n"}


@pytest.fixture(scope="session")
def lent(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The daemon of `lend`."""
    policies = dict.fromkeys(KINDS, "") | {"limits": NO_LIMITS, "models": f"dirs: [{zoo}]\n"}
    with daemon(tmp_path_factory.mktemp("lent"), models=zoo, policies=policies) as running:
        yield running


@pytest.fixture
def lend(lent: Daemon, zoo: Path) -> Iterator[Lend]:
    """As `start`, for tests whose policies can be edited, and that leave the daemon as it was but
    for those: it is the same for all of them, and what it has counted and told stays.
    """
    plain = {"limits": NO_LIMITS, "models": f"dirs: [{zoo}]\n"}

    def put(policies: Mapping[str, str] | None = None) -> Daemon:
        for kind, text in {**dict.fromkeys(KINDS, ""), **plain, **(policies or {})}.items():
            lent.edit(kind, text)
        outcome = lent.reload()
        assert outcome["result"] in ("applied", "unchanged"), outcome  # the watcher may be first
        return lent

    yield put
    put()


@pytest.fixture
def start(zoo: Path, tmp_path: Path) -> Iterator[Start]:
    """Start daemons with policies of the test's own: `start({"limits": "..."})`."""
    with ExitStack() as stack:
        count = 0

        def enter(policies: Mapping[str, str] | None = None, **options: Any) -> Daemon:
            nonlocal count
            count += 1
            folder = tmp_path / f"daemon{count}"
            folder.mkdir()
            settings = {"models": zoo, **options}
            files = {"limits": NO_LIMITS, **(policies or {})}
            return stack.enter_context(daemon(folder, policies=files, **settings))

        yield enter
