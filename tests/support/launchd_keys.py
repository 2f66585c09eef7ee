"""The keys that launchd knows in a property list, and what each takes, by launchd.plist(5).

launchd itself says nothing of a key that it does not know, or of a value of another type: it goes
on without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

Takes: TypeAlias = Callable[[Any], bool]


def text(value: Any) -> bool:
    return type(value) is str and value != ""


def whole(value: Any) -> bool:
    """A bool is an int in Python, and none to launchd."""
    return type(value) is int


def seconds(value: Any) -> bool:
    return type(value) is int and value > 0


def truth(value: Any) -> bool:
    return type(value) is bool


def path(value: Any) -> bool:
    """launchd expands neither ~ nor variables."""
    return text(value) and value.startswith("/")


def texts(value: Any) -> bool:
    return type(value) is list and bool(value) and all(map(text, value))


def mapping(value: Any) -> bool:
    return type(value) is dict


def command(value: Any) -> bool:
    return texts(value) and path(value[0])


def variables(value: Any) -> bool:
    return mapping(value) and all(text(name) and type(one) is str for name, one in value.items())


def either(*kinds: Takes) -> Takes:
    return lambda value: any(takes(value) for takes in kinds)


def one_of(*words: str) -> Takes:
    return lambda value: value in words


def some_of(*words: str) -> Takes:
    return lambda value: texts(value) and set(value) <= set(words)


def each(takes: Takes) -> Takes:
    return lambda value: mapping(value) and bool(value) and all(map(takes, value.values()))


def fields(**known: Takes) -> Takes:
    return lambda value: mapping(value) and not list(complaints(value, known))


_SESSIONS = ("Aqua", "Background", "LoginWindow", "StandardIO", "System")
_LIMITS = fields(
    Core=whole, CPU=whole, Data=whole, FileSize=whole, MemoryLock=whole, NumberOfFiles=whole,
    NumberOfProcesses=whole, ResidentSetSize=whole, Stack=whole,
)  # fmt: skip
_CALENDAR = fields(Minute=whole, Hour=whole, Day=whole, Weekday=whole, Month=whole)
_SOCKET = fields(
    SockType=one_of("stream", "dgram", "seqpacket"), SockPassive=truth, SockNodeName=text,
    SockServiceName=either(text, whole), SockFamily=text, SockProtocol=one_of("TCP", "UDP"),
    SockPathName=path, SecureSocketWithKey=text, SockPathOwner=whole, SockPathGroup=whole,
    SockPathMode=whole, Bonjour=either(truth, text, texts), MulticastGroup=text,
    ReceivePacketInfo=truth,
)  # fmt: skip


def _sockets(value: Any) -> bool:
    return each(either(_SOCKET, lambda many: type(many) is list and all(map(_SOCKET, many))))(value)


KEYS: Mapping[str, Takes] = {
    "Label": text,
    "Disabled": truth,
    "UserName": text,
    "GroupName": text,
    "inetdCompatibility": fields(Wait=truth),
    "LimitLoadToHosts": texts,
    "LimitLoadFromHosts": texts,
    "LimitLoadToSessionType": either(one_of(*_SESSIONS), some_of(*_SESSIONS)),
    "LimitLoadToHardware": mapping,
    "LimitLoadFromHardware": mapping,
    "Program": path,
    "BundleProgram": text,
    "ProgramArguments": command,
    "EnableGlobbing": truth,
    "EnableTransactions": truth,
    "EnablePressuredExit": truth,
    "OnDemand": truth,
    "ServiceIPC": truth,
    "KeepAlive": either(
        truth,
        fields(
            SuccessfulExit=truth, NetworkState=truth, PathState=each(truth), Crashed=truth,
            OtherJobEnabled=each(truth), AfterInitialDemand=truth,
        ),
    ),
    "RunAtLoad": truth,
    "RootDirectory": path,
    "WorkingDirectory": path,
    "EnvironmentVariables": variables,
    "Umask": either(whole, text),
    "TimeOut": seconds,
    "ExitTimeOut": seconds,
    "ThrottleInterval": seconds,
    "InitGroups": truth,
    "WatchPaths": texts,
    "QueueDirectories": texts,
    "StartOnMount": truth,
    "StartInterval": seconds,
    "StartCalendarInterval": either(
        _CALENDAR, lambda many: type(many) is list and all(map(_CALENDAR, many))
    ),
    "StandardInPath": path,
    "StandardOutPath": path,
    "StandardErrorPath": path,
    "Debug": truth,
    "WaitForDebugger": truth,
    "SoftResourceLimits": _LIMITS,
    "HardResourceLimits": _LIMITS,
    "Nice": lambda value: whole(value) and -20 <= value <= 20,
    "ProcessType": one_of("Background", "Standard", "Adaptive", "Interactive"),
    "AbandonProcessGroup": truth,
    "LowPriorityIO": truth,
    "LowPriorityBackgroundIO": truth,
    "MaterializeDatalessFiles": truth,
    "LaunchOnlyOnce": truth,
    "MachServices": mapping,
    "Sockets": _sockets,
    "LaunchEvents": mapping,
    "HopefullyExitsLast": truth,
    "HopefullyExitsFirst": truth,
    "SessionCreate": truth,
    "LegacyTimers": truth,
    "AssociatedBundleIdentifiers": either(text, texts),
}  # fmt: skip


def complaints(keys: Mapping[str, Any], known: Mapping[str, Takes] = KEYS) -> Iterator[str]:
    """Each key that is unknown, and each whose value is of another type."""
    for name, value in keys.items():
        if name not in known:
            yield f"{name} is no key of launchd's"
        elif not known[name](value):
            yield f"{name} does not take {value!r}"
