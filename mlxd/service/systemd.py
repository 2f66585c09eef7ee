"""The units that systemd runs mlxd by: one for the machine, in a sandbox, and one for a user.

`system` is valid from systemd 249 on; what later versions add is in a drop-in. Of its files those
in `optional/` loosen the sandbox: an operator takes them, no installation does by itself.

As a user of its own that is made at the start (DynamicUser): nobody has to make an account, none is
left behind, and what the daemon may write is what the unit lists. Where there is an account of that
name it is used.
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import PurePosixPath

from mlxd.core.starts import PER_HOUR, SETTLED_SECONDS
from mlxd.service.facts import Facts
from mlxd.service.layout import UNIT, Layout

SERVICE = f"{UNIT}.service"
SOCKET = f"{UNIT}.socket"
NEWER = f"{SERVICE}.d/254.conf"
"""For systemd 254 and later; older ones warn of what they do not know, and go on."""
GPU = "optional/gpu.conf"
NETWORK = "optional/network.conf"

_START_SECONDS = 1
"""From the start of the process to the first answer, and more than that."""
_SPARE_STARTS = 2 * PER_HOUR

_HEAD = "# Written by `mlxd service render`. Change it with `systemctl{user} edit mlxd`.\n\n"

_UNIT = """\
[Unit]
Description=mlxd, language models with MLX
{after}\
# A daemon that dies young so often that not even its own hold helps: by then it serves without
# models. `systemctl reset-failed mlxd` lets it start again.
StartLimitIntervalSec={interval}
StartLimitBurst={burst}
"""

_SERVICE = """\

[Service]
Type=notify
NotifyAccess=main
ExecStart={program} serve
# Unlike a SIGHUP it waits for the outcome, and fails if the policies are refused.
ExecReload={program} policy reload
Restart=on-failure
# The start itself takes the rest of the {delay} s.
RestartSec={restart}
# Arguments or policies that are refused: the same start would fail again.
RestartPreventExitStatus=2
WatchdogSec={watchdog}
# All that a drain may take.
TimeoutStopSec={stop}
# After the watchdog's SIGABRT there is nothing to drain.
TimeoutAbortSec=10
# SIGTERM is for the daemon, which ends its workers; what is left then is killed.
KillMode=mixed
# A worker that the kernel kills for want of memory is replaced; the daemon serves on.
OOMPolicy=continue
# A core of a worker holds a whole model, and what was asked of it.
LimitCORE=0
UMask=0077
"""

_OWN = """\

# A user of this name, made for as long as it runs unless there is one.
DynamicUser=yes
User={user}
StateDirectory={state}
StateDirectoryMode=0700
LogsDirectory={logs}
LogsDirectoryMode=0700
RuntimeDirectory={name}
RuntimeDirectoryMode=0700
# Read, never written: a rollback of policies needs ReadWritePaths= and a folder that is {user}'s.
ConfigurationDirectory={configuration}
# For `credential:api-keys` in a policy; readable for the daemon alone.
#LoadCredential=api-keys:/etc/mlxd/api-keys
"""

_BY_FILTER = """\

NoNewPrivileges=yes
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
"""
"""What needs no privilege to set up: a user's manager can do it too."""

_NO_DRIVER = """\
# A GPU's driver needs what these forbid: optional/gpu.conf gives it back.
MemoryDenyWriteExecute=yes
SystemCallFilter=~@resources
"""
"""Not for a user's unit, whose daemon has the user's GPU."""

_SANDBOX = """\

CapabilityBoundingSet=
PrivateDevices=yes
PrivateIPC=yes
PrivateMounts=yes
PrivateTmp=yes
PrivateUsers=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
# Not `pid`: the memory guard reads /proc/meminfo and /proc/pressure.
ProcSubset=all
ProtectSystem=strict
RemoveIPC=yes
"""

_LOCAL = """\
# This machine alone: `mlxd pull`, webhooks and other listeners need optional/network.conf.
IPAddressDeny=any
IPAddressAllow=localhost
"""

_SOCKET = """\
[Unit]
Description=mlxd's listener, which stays while mlxd restarts

[Socket]
# In place of host and port of server.listen.
ListenStream={address}
FileDescriptorName=http
Backlog={backlog}
{early}
[Install]
WantedBy=sockets.target
"""

_EARLY = """\
# Sockets are made before the network is up: the address may come later.
FreeBind=yes
"""

_NEWER = """\
[Service]
{steps}\
# What depends on mlxd is not stopped because mlxd restarts.
RestartMode=direct
# All of /etc/credstore/mlxd.*: `credential:mlxd.api-keys` in a policy. None is no error.
ImportCredential=mlxd.*
# The daemon has a memory guard of its own.
MemoryPressureWatch=off
"""

_STEPS = """\
# The first restarts of a row are sooner; after three of them the wait is as long as everywhere.
RestartSec=1
RestartSteps=3
RestartMaxDelaySec={restart}
"""

_GPU = """\
# NVIDIA's devices, for MLX's CUDA build: into /etc/systemd/system/mlxd.service.d/.
# The modules must be loaded before mlxd starts, nvidia-uvm too (modules-load.d): what is not there
# by then is not allowed.
[Service]
PrivateDevices=no
DevicePolicy=closed
DeviceAllow=char-nvidia* rw
# The driver makes code at run time, and places its memory and threads.
MemoryDenyWriteExecute=no
SystemCallFilter=@resources
"""

_NETWORK = """\
# More than this machine: `mlxd pull`, webhooks, a listener that others reach.
# Into /etc/systemd/system/mlxd.service.d/. Narrower: the addresses in place of any.
[Service]
IPAddressAllow=any
"""

_INSTALL = """\

[Install]
WantedBy={target}
"""


def system(facts: Facts, layout: Layout) -> dict[str, str]:
    """For /etc/systemd/system. Its folders must lie where systemd has those of services."""
    unit = [
        _unit(facts),
        _service(facts, layout),
        _places(layout, state=False),
        _own(layout),
        _BY_FILTER,
        _NO_DRIVER,
        _SANDBOX,
        _LOCAL if facts.loopback else "",
        _INSTALL.format(target="multi-user.target"),
    ]
    head = _HEAD.format(user="")
    files = {SERVICE: "".join(unit), NEWER: _newer(facts), GPU: _GPU}
    if facts.loopback:
        files[NETWORK] = _NETWORK
    if facts.inherit and (address := _numeric(facts.address)) is not None:
        files[SOCKET] = _socket(facts, address)
    return {name: head + content for name, content in files.items()}


def _newer(facts: Facts) -> str:
    """A wait of a second, or none, has no steps."""
    restart = _restart(facts)
    return _NEWER.format(steps=_STEPS.format(restart=restart) if restart > 1 else "")


def _socket(facts: Facts, address: str) -> str:
    early = "" if facts.loopback else _EARLY
    return _SOCKET.format(address=address, backlog=facts.backlog, early=early)


def user(facts: Facts, layout: Layout) -> dict[str, str]:
    """For ~/.config/systemd/user, and for Homebrew on Linux: what a user's manager can apply.

    Its files are where every command of that user looks for them, unless the layout says.
    """
    unit = [
        _unit(facts),
        _service(facts, layout),
        _places(layout, state=True),
        _BY_FILTER,
        _INSTALL.format(target="default.target"),
    ]
    return {SERVICE: _HEAD.format(user=" --user") + "".join(unit)}


def _unit(facts: Facts) -> str:
    """The limit counts what the daemon calls an unclean start: a life of less than a minute."""
    burst = facts.max_restarts + _SPARE_STARTS
    online = "" if facts.loopback else "Wants=network-online.target\nAfter=network-online.target\n"
    interval = burst * (facts.delay + round(SETTLED_SECONDS))
    return _UNIT.format(after=online, burst=burst, interval=interval)


def _service(facts: Facts, layout: Layout) -> str:
    return _SERVICE.format(
        program=_word(layout.program),
        delay=facts.delay,
        restart=_restart(facts),
        watchdog=facts.watchdog,
        stop=facts.stop,
    )


def _restart(facts: Facts) -> int:
    """Seconds: from an end until it serves again are to be no more than `delay`, and one."""
    return max(0, facts.delay - _START_SECONDS)


def _places(layout: Layout, *, state: bool) -> str:
    """`state`: it has to be named, too."""
    named = {
        "MLXD_POLICIES": layout.policies,
        "MLXD_STATE": layout.state if state else None,
        "MLXD_MODELS": layout.models,
    }
    return "".join(
        f"Environment={_word(path, before=f'{name}=')}\n"
        for name, path in named.items()
        if path is not None
    )


def _own(layout: Layout) -> str:
    """Raises ValueError where systemd has no such folders."""
    if layout.policies is None or layout.state is None:
        raise ValueError("a service of the system needs a policy folder and a state folder")
    return _OWN.format(
        user=layout.user,
        name=UNIT,
        state=layout.state.relative_to("/var/lib"),
        logs=layout.logs.relative_to("/var/log"),
        configuration=layout.policies.relative_to("/etc"),
    )


def _word(path: PurePosixPath, before: str = "") -> str:
    """As one word of a unit. `%h/` in front is the user's home, any other % only that."""
    text = str(path)
    home = "%h/" if text.startswith("%h/") else ""
    text = before + home + text.removeprefix(home).replace("%", "%%")
    if not set(text) & set(" \t'\"\\"):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _numeric(address: str) -> str | None:
    """As a socket unit takes it; None: a name, which only the daemon looks up."""
    host, _, port = address.rpartition(":")
    if host == "localhost" or host.endswith(".localhost"):
        return f"127.0.0.1:{port}"
    try:
        ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return address
