"""Random policies about who may run: valid, with more rules than anybody has."""

from __future__ import annotations

import json
import random
from typing import Any

Json = dict[str, Any]

TENANTS = ("a", "b.c", 'q"t', "x[0]")
MODELS = ("m", "org/Big-7B-Instruct-4bit", "big:7b", "Small:latest")
_KEYS = ("client", "client_ip", "api_key", "user", "header:x-team")
_MODES = ("enforce", "enforce", "enforce", "dry_run", "off")


def drawn(draw: random.Random) -> dict[str, str]:
    """The text of each file, below its `schema:`; JSON is YAML."""
    most = draw.randint(1, 5)
    files: dict[str, Json] = {
        "limits": {
            "concurrency": _concurrency(draw, most),
            "rate_limit": [_rule(draw, n) for n in range(draw.randint(0, 3))],
            "adaptive": {"enabled": draw.random() < 0.2, "max": draw.randint(1, 6)},
        },
        "clients": {"priorities": _classes(draw), "tenants": _tenants(draw, most)},
        "models": {"models": {model: _model(draw) for model in draw.sample(MODELS, 2)}},
        "timeouts": {"queue": draw.choice(("5s", "30s"))},
    }
    return {
        kind: "".join(f"{name}: {json.dumps(value, indent=1)}\n" for name, value in said.items())
        for kind, said in files.items()
    }


def _some(draw: random.Random, **choices: Any) -> Json:
    """Each of them, or not."""
    return {name: value for name, value in choices.items() if draw.random() < 0.3}


def _concurrency(draw: random.Random, most: int) -> Json:
    said = _some(
        draw,
        max_waiting_tokens=draw.randint(1, 60),
        per_model={model: draw.randint(1, 4) for model in draw.sample(MODELS, 2)},
        retry_after="1500ms",
    )
    waiting = draw.choice((0, 0, 1, 3, 6))
    return said | {"max_in_flight": most, "max_waiting": waiting, "mode": draw.choice(_MODES)}


def _rule(draw: random.Random, number: int) -> Json:
    said = {
        "requests": draw.randint(1, 6),
        "window": draw.choice(("7s", "60s", "1m30s")),
        "algorithm": draw.choice(("sliding_window", "token_bucket", "gcra")),
        "key": draw.choice(_KEYS),
        "mode": draw.choice(_MODES),
    }
    kept = {name: value for name, value in said.items() if draw.random() < 0.8}
    return kept | {"name": f"rule {number + draw.randint(0, 1) * 3}"}


def _classes(draw: random.Random) -> Json:
    return {
        name: _some(
            draw,
            max_share=draw.choice(("20%", "50%")),
            borrow=False,
            queue=draw.randint(0, 3),
            shed_at=draw.choice(("never", "warning", "critical")),
        )
        for name in ("high", "medium", "low")
    }


def _tenants(draw: random.Random, most: int) -> Json:
    return {
        name: _some(
            draw,
            max_in_flight=draw.randint(1, most),
            requests=draw.randint(1, 5),
            tokens=draw.randint(1, 50),
            daily_tokens=draw.randint(1, 90),
            window="20s",
            max_priority=draw.choice(("high", "medium", "low")),
        )
        for name in draw.sample((*TENANTS, "anonymous"), 3)
    }


def _model(draw: random.Random) -> Json:
    return _some(draw, max_concurrency=draw.choice((1, 2, "inherit")), ttl="3m")
