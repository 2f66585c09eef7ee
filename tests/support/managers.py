"""A `systemctl` and a `launchctl` of the test's own, on a machine of the test's own.

Both keep what they were told in a folder, refuse what the real ones refuse, and in their words.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from mlxd.service.machine import Machine

_SYSTEMCTL = """\
#!/bin/sh
# Knows a unit by its file in $UNITS, once it was told to look (daemon-reload).
echo "$0 $*" | sed 's|^.*/||' >> "$TOLD/calls"
user=
if [ "$1" = --user ]; then user=yes; shift; fi
if [ "$1" = --version ]; then echo "systemd $(cat "$TOLD/version") (scripted)"; exit 0; fi
if [ "$user" ] && [ -e "$TOLD/no-bus" ]; then
    echo "Failed to connect to bus: No medium found" >&2
    exit 1
fi
if [ -e "$TOLD/no-systemd" ]; then
    echo "System has not been booted with systemd as init system (PID 1). Can't operate." >&2
    exit 1
fi
for last; do :; done
case "$1" in
show)
    file=$(cat "$TOLD/known/$last" 2>/dev/null)
    if [ "$3" = --value ]; then
        [ -n "$file" ] && echo loaded || echo not-found
        exit 0
    fi
    echo "LoadState=$([ -n "$file" ] && echo loaded || echo not-found)"
    echo "UnitFileState=$([ -e "$TOLD/enabled" ] && echo enabled || echo disabled)"
    if [ -e "$TOLD/active" ]; then
        printf 'ActiveState=active\\nSubState=running\\nMainPID=%s\\n' "$(cat "$TOLD/active")"
        printf 'StateChangeTimestamp=@1700000000\\nExecMainCode=0\\nExecMainStatus=0\\n'
    else
        printf 'ActiveState=inactive\\nSubState=dead\\nMainPID=0\\n'
        printf 'StateChangeTimestamp=\\nExecMainCode=%s\\n' "$(cat "$TOLD/code" 2>/dev/null)"
        printf 'ExecMainStatus=%s\\n' "$(cat "$TOLD/status" 2>/dev/null)"
    fi
    echo "FragmentPath=$file" ;;
daemon-reload)
    rm -rf "$TOLD/known"; mkdir "$TOLD/known"
    for file in "$UNITS"/*.service "$UNITS"/*.socket; do
        [ -e "$file" ] && echo "$file" > "$TOLD/known/${file##*/}"
    done
    [ -e "$TOLD/packaged" ] && cp "$TOLD/packaged" "$TOLD/known/mlxd.service"
    exit 0 ;;
enable|start|restart)
    if [ ! -e "$TOLD/known/$last" ]; then
        echo "Failed to $1 unit: Unit file $last does not exist." >&2; exit 1
    fi
    if [ "$1" = enable ]; then : > "$TOLD/enabled"; exit 0; fi
    if [ -e "$TOLD/will-fail" ]; then
        echo "Job for $last failed because the control process exited with error code." >&2
        exit 1
    fi
    echo "$NEXT_PID" > "$TOLD/active" ;;
disable)
    [ "$last" = mlxd.socket ] || rm -f "$TOLD/enabled" "$TOLD/active" ;;
*)
    echo "Unknown command verb $1." >&2; exit 1 ;;
esac
"""

_LAUNCHCTL = """\
#!/bin/sh
# Knows a label by a file in $TOLD/loaded, named by its domain, that holds the path of its plist.
echo "$0 $*" | sed 's|^.*/\\(launchctl\\)|\\1|' >> "$TOLD/calls"
target=$2
domain=${target%/dev.mlxd}
entry="$TOLD/loaded/$(echo "$domain" | tr / _)"
case "$1" in
print)
    case "$domain" in gui/*)
        if [ ! -e "$TOLD/gui" ]; then
            echo "Could not print domain: 125: Domain does not support specified action" >&2
            exit 125
        fi ;;
    esac
    if [ "$target" = "$domain" ]; then echo "$domain = {"; echo "}"; exit 0; fi
    if [ -e "$entry" ] && [ -e "$TOLD/leaving" ]; then
        left=$(($(cat "$TOLD/leaving") - 1))
        echo "$left" > "$TOLD/leaving"
        if [ "$left" -le 0 ]; then rm -f "$entry" "$TOLD/leaving" "$TOLD/active"; fi
    fi
    if [ ! -e "$entry" ]; then
        echo "Bad request." >&2
        echo "Could not find service \\"dev.mlxd\\" in domain for $domain" >&2
        exit 113
    fi
    printf '%s = {\\n' "$target"
    printf '\\tactive count = 1\\n\\tpath = %s\\n\\ttype = LaunchAgent\\n' "$(cat "$entry")"
    if [ -e "$TOLD/leaving" ]; then
        printf '\\tstate = SIGTERMed\\n'
    elif [ -e "$TOLD/active" ]; then
        printf '\\tstate = running\\n'
    else
        printf '\\tstate = not running\\n'
    fi
    printf '\\n\\tenvironment = {\\n\\t\\tpath = elsewhere\\n\\t\\tstate = odd\\n\\t}\\n'
    if [ -e "$TOLD/active" ]; then printf '\\tpid = %s\\n' "$(cat "$TOLD/active")"; fi
    printf '\\truns = 1\\n\\tlast exit code = %s\\n}\\n' \\
        "$(cat "$TOLD/status" 2>/dev/null || echo '(never exited)')" ;;
print-disabled)
    if [ -e "$TOLD/disabled" ]; then printf '\\t\\t"dev.mlxd" => disabled\\n'; fi ;;
enable)
    rm -f "$TOLD/disabled" ;;
bootstrap)
    if [ -e "$entry" ] || [ -e "$TOLD/will-fail" ]; then
        echo "Bootstrap failed: 5: Input/output error" >&2
        echo "Try re-running the command as root for richer errors." >&2
        exit 5
    fi
    mkdir -p "$TOLD/loaded"
    echo "$3" > "$entry"
    echo "$NEXT_PID" > "$TOLD/active" ;;
kickstart)
    echo "$NEXT_PID" > "$TOLD/active" ;;
bootout)
    if [ ! -e "$entry" ]; then echo "Boot-out failed: 3: No such process" >&2; exit 3; fi
    echo 2 > "$TOLD/leaving" ;;
*)
    echo "Unrecognized subcommand: $1" >&2; exit 64 ;;
esac
"""

_ACCOUNTS = {
    "id": '[ -e "$TOLD/user" ]',
    "dscl": """\
echo "dscl $*" >> "$TOLD/calls"
case "$2 $3" in
"-list /Users") printf 'daemon 1\\n_a 400\\n_b 399\\nnobody -2\\n' ;;
"-list /Groups") printf 'wheel 0\\n_c 398\\n' ;;
esac""",
    "install": 'echo "install $*" >> "$TOLD/calls"',
    "systemd-sysusers": 'echo "systemd-sysusers $*" >> "$TOLD/calls"',
}


@dataclass(frozen=True)
class Scripted:
    """`told` is what the programs know, file by file: `no-bus`, `gui`, `active` with a pid."""

    machine: Machine
    told: Path

    def calls(self) -> list[str]:
        """Each command that was run since it was asked last, without those that only ask."""
        file = self.told / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        file.write_text("")
        asking = {"show", "print", "print-disabled", "--version", "-list"}
        return [line for line in lines if not asking & set(shlex.split(line)[1:4])]

    def tell(self, name: str, text: str = "") -> None:
        (self.told / name).write_text(text)

    def untell(self, name: str) -> None:
        (self.told / name).unlink()


def scripted(folder: Path, platform: str, *, uid: int = 501, next_pid: int = 0) -> Scripted:
    """A machine with both managers; `next_pid` is what runs once the service was started."""
    programs, told, home = folder / "bin", folder / "told", folder / "home"
    for made in (programs, told / "known", home):
        made.mkdir(parents=True)
    scripts = {name: f"#!/bin/sh\n{text}\n" for name, text in _ACCOUNTS.items()}
    scripts |= {"systemctl": _SYSTEMCTL, "launchctl": _LAUNCHCTL}
    for name, text in scripts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    units = folder / "etc/systemd/system" if uid == 0 else home / ".config/systemd/user"
    environ = {
        "PATH": f"{programs}:{os.defpath}",
        "HOME": str(home),
        "TOLD": str(told),
        "UNITS": str(units),
        "NEXT_PID": str(next_pid or os.getpid()),
    }
    machine = Machine(platform, environ, uid, home, root=folder)
    (told / "version").write_text("252")
    return Scripted(machine, told)
