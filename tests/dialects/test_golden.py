"""The bytes themselves. MLXD_UPDATE_GOLDEN=1 writes them anew; read the difference."""

from __future__ import annotations

import os
from pathlib import Path

from mlxd.core.errors import PolicyLine, WorkerCrashed
from mlxd.core.events import GenerationEvent
from mlxd.dialects.base import to_json

GOLDEN = Path(__file__).parents[1] / "data" / "dialects" / "golden"
LOGPROBS: dict[str, dict[str, object]] = {
    "openai.completion": {"logprobs": 1},
    "openai.responses": {"include": ["message.output_text.logprobs"]},
}
CRASH = WorkerCrashed(
    "the model's worker died",
    policy=PolicyLine("supervision.replay", "0", "supervision.yaml:3"),
)


async def test_every_recorded_generation_has_its_bytes(
    spoken, recorded, completion_of, now
) -> None:
    sections: list[bytes] = []
    for name, events in recorded.items():
        call = spoken.call(**_asked(spoken.name, events))
        encoder = spoken.codec.encoder(call)
        whole = spoken.codec.render(call, [await completion_of(events)], now)
        sections += (f"## {name}\n".encode(), encoder.feed(events, now))
        sections += (b"## ... whole\n", to_json(whole), b"\n")
    broken = spoken.codec.encoder(spoken.call())
    sections += (b"## broken off\n", broken.feed(recorded["text"][:2], now), broken.fail(CRASH))
    _compare(GOLDEN / f"{spoken.name}.txt", b"".join(sections))


def _asked(name: str, events: list[GenerationEvent]) -> dict[str, object]:
    if not any(getattr(event, "logprobs", ()) for event in events):
        return {}
    return LOGPROBS.get(name, {"logprobs": True})


def _compare(path: Path, found: bytes) -> None:
    if os.environ.get("MLXD_UPDATE_GOLDEN"):
        path.write_bytes(found)
    assert found == path.read_bytes()
