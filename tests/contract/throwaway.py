"""A daemon with small models that may be asked anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.contract.aiming import MODELS
from tests.support.daemon import Daemon, daemon, free_port
from tests.support.model_maker import TOOL_TEMPLATE, TOOLS, Shape, make_model

_LIMITS = (
    "concurrency: {max_in_flight: 64}\n"
    "rate_limit: []\n"
    "tokens: {max_output: 4, max_prompt: 512}\n"
    "choices: 4\n"
)


@contextmanager
def throwaway(folder: Path) -> Iterator[Daemon]:
    """Its state and models are below `folder`; where it would pull from, nobody listens."""
    models = folder / "models"
    make_model(models / MODELS[0], Shape(spread=3.0), seed=1)
    tools = Shape(spread=3.0, markers=TOOLS, template=TOOL_TEMPLATE)
    make_model(models / MODELS[1], tools, seed=2)
    nobody = f"http://127.0.0.1:{free_port()}"
    policies = {
        "limits": _LIMITS,
        "models": f'dirs: ["{models}"]\npull: {{endpoint: "{nobody}"}}\n',
    }
    with daemon(folder, models=models, policies=policies) as running:
        yield running
