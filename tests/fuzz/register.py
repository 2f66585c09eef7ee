"""Every target by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.fuzz.target import Target
from tests.fuzz.targets import bodies, files, requests

Maker = Callable[[Path], Target]
CORPUS = Path(__file__).parents[1] / "data" / "fuzz"
"""Cases that were answered wrongly once, by target."""
WITHOUT_ENGINE: Mapping[str, Maker] = {
    "ollama": lambda _: bodies.of_dialect("ollama", bodies.OLLAMA),
    "openai": lambda _: bodies.of_dialect("openai", bodies.OPENAI),
    "anthropic": lambda _: bodies.of_dialect("anthropic", bodies.ANTHROPIC),
    "creation": lambda _: bodies.creation(),
    "grammars": lambda _: bodies.grammars(),
    "requests": lambda _: requests.requests(),
    "durations": lambda _: requests.durations(),
    "safetensors": files.safetensors,
    "model_folder": files.model_folder,
    "policies": lambda _: files.policies(),
    "keys": lambda _: files.keys(),
    "policy_tests": lambda _: files.policy_tests(),
}
ENGINE = ("tool_calls", "frames", "templates", "hub")
"""What needs mlx-lm, or what comes with it."""
NAMES = (*WITHOUT_ENGINE, *ENGINE)


@contextmanager
def target_of(name: str, folder: Path) -> Iterator[Target]:
    """One target; `folder` is its own."""
    if name in WITHOUT_ENGINE:
        yield WITHOUT_ENGINE[name](folder)
        return
    from mlxd.worker.templates import Templates
    from tests.fuzz.targets import engine, hub

    if name == "templates":
        rendering = Templates(seconds=1.0)
        try:
            yield engine.templates(rendering)
        finally:
            rendering.close()
        return
    makers = {"tool_calls": engine.tool_calls, "frames": engine.frames, "hub": hub.hub}
    yield makers[name]()


def corpus(name: str) -> list[Path]:
    """The files of the cases that it once answered wrongly."""
    return sorted(path for path in (CORPUS / name).glob("*") if path.is_file())
