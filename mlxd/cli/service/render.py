"""`mlxd service render`: what a service manager would be given, from the policies on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mlxd.cli import exits
from mlxd.cli.models.asking import failed, print_json
from mlxd.cli.policy.here import refused, wrong
from mlxd.cli.service.site import on_disk, own_program, seen, standard, with_places
from mlxd.policy.load import PolicyErrors
from mlxd.service.facts import facts
from mlxd.service.layout import Layout
from mlxd.service.machine import Machine, ServiceError
from mlxd.service.render import Files, Scope, Target, joined, target
from mlxd.settings import SettingsRefused


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for; None: as it is on this machine."""

    target: str
    scope: Scope | None = None
    output: str | None = None
    program: str | None = None
    logs: str | None = None
    models: str | None = None
    user: str | None = None


def render(policies: str | None, state: str | None, options: Options, *, as_json: bool) -> int:
    """Print the files, or write them below `options.output`."""
    try:
        chosen = target(options.target, options.scope)
        known = facts(on_disk(policies, state))
        files = chosen.render(known, _layout(chosen, options, policies, state))
    except ValueError as error:  # no such target, or a layout that it cannot have
        return wrong(error, as_json=as_json)
    except (SettingsRefused, PolicyErrors) as error:
        return refused(error, as_json=as_json)
    except ServiceError as error:
        return failed(str(error), as_json=as_json)
    if options.output is not None:
        return _write(Path(options.output), files, as_json=as_json)
    if as_json:
        print_json({"target": chosen.name, "files": dict(files)})
    else:
        print(joined(files), end="")
    return exits.DONE


def _layout(chosen: Target, options: Options, policies: str | None, state: str | None) -> Layout:
    if chosen.manager == "homebrew":
        return chosen.layout  # its paths are for the formula to know
    machine = Machine.here()
    made = standard(chosen, machine, options.program or own_program(machine))
    layout = with_places(made, policies, state, seen(chosen.scope, machine))
    return replace(
        layout,
        logs=PurePosixPath(options.logs) if options.logs else layout.logs,
        models=PurePosixPath(options.models) if options.models else layout.models,
        user=options.user or layout.user,
    )


def _write(folder: Path, files: Files, *, as_json: bool) -> int:
    try:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content, encoding="utf-8")
    except OSError as error:
        return failed(str(error), as_json=as_json)
    names = [str(folder / name) for name in files]
    if as_json:
        print_json({"written": names})
    else:
        print("\n".join(f"wrote {name}" for name in names))
    return exits.DONE
