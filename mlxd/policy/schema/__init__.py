"""Every policy: what it means, its default, its unit and how a change of it takes effect.

One module per file of the policy folder. A field exists only if two sane operators would set it
differently. Reload classes: `live` the next decision uses it; `live-drain` shrinking stops no
request under way; `rebind` the new listener opens before the old one closes; `rolling` the workers
concerned are replaced one by one; `restart` waits for the next start, and is shown as pending;
`boot` is no policy: environment and flags only.
"""

from __future__ import annotations

from mlxd.policy.schema.base import Policy, Reload, Takes, section
from mlxd.policy.schema.clients import Clients
from mlxd.policy.schema.limits import Limits, RateLimit
from mlxd.policy.schema.memory import Memory
from mlxd.policy.schema.models import CHAINS, Model, Models
from mlxd.policy.schema.server import Server
from mlxd.policy.schema.supervision import Supervision
from mlxd.policy.schema.timeouts import Timeouts

__all__ = [
    "CHAINS",
    "KINDS",
    "Clients",
    "Limits",
    "Memory",
    "Model",
    "Models",
    "Policies",
    "Policy",
    "RateLimit",
    "Reload",
    "Server",
    "Supervision",
    "Takes",
    "Timeouts",
]


class Policies(Policy):
    """All files together."""

    server: Server = section("Where and how the daemon listens.")
    limits: Limits = section("How much clients may ask for.")
    timeouts: Timeouts = section("Every time limit on a request and on a worker.")
    models: Models = section("Which models there are, what they are called, how long they stay.")
    memory: Memory = section("What happens as memory fills up.")
    supervision: Supervision = section(
        "How workers and the daemon are watched, restarted and given up."
    )
    clients: Clients = section("Who may ask.")


KINDS = tuple(Policies.model_fields)
