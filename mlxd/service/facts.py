"""What a service manager must know of the policies: its files are rendered from this alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlxd.core.instance import authority
from mlxd.core.stopping import FREEING_SECONDS
from mlxd.policy.policy_set import PolicySet

_SLACK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Facts:
    """All times in whole seconds, as service managers take them."""

    address: str
    """`host:port`, an IPv6 host in brackets."""
    loopback: bool
    """Only this machine can reach it."""
    inherit: bool
    """A listener of the manager's is served; otherwise it would only hold the port."""
    backlog: int
    stop: int
    """From the manager's SIGTERM to its SIGKILL: all that a stop may take, and 5 s."""
    watchdog: int
    delay: int
    """Between an end and the next start."""
    max_restarts: int
    """After so many the daemon holds itself back; the manager's own limit lies beyond."""


def facts(policies: PolicySet) -> Facts:
    """Of the policies in force, or of built-in defaults."""
    listen, drain = policies.server.listen, policies.server.drain
    daemon = policies.supervision.daemon
    return Facts(
        address=authority(listen.host, listen.port),
        loopback=listen.loopback,
        inherit=listen.inherit == "auto",
        backlog=listen.backlog,
        stop=math.ceil(
            float(drain.not_ready_delay)
            + float(drain.grace)
            + float(policies.timeouts.shutdown.term_grace)
            + FREEING_SECONDS
            + _SLACK_SECONDS
        ),
        watchdog=math.ceil(float(daemon.watchdog)),
        delay=math.ceil(float(daemon.delay)),
        max_restarts=daemon.max_restarts,
    )
