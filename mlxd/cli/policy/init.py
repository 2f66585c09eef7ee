"""`mlxd policy check` and `mlxd policy init`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from mlxd.cli import exits
from mlxd.core import places


def check(policies: str | None, state: str | None, *, as_json: bool) -> int:
    """Load the policies as the daemon would; say all that is wrong with them at once."""
    from mlxd.policy.load import Override, PolicyErrors, load
    from mlxd.settings import Settings, SettingsRefused

    try:
        settings = Settings.read(policies=policies, state=state)
        folder = settings.policies.path if settings.policies is not None else None
        found = load(folder, [Override(*override) for override in settings.overrides()])
    except (SettingsRefused, PolicyErrors) as error:
        problems = str(error).splitlines()
        if as_json:
            print(json.dumps({"valid": False, "errors": problems}, ensure_ascii=False))
        else:
            print("\n".join(problems), file=sys.stderr)
        return exits.USAGE
    where = str(found.folder) if found.folder is not None else None
    warnings = [*settings.warnings(), *found.warnings()]
    if as_json:
        report = {"valid": True, "folder": where, "warnings": warnings}
        print(json.dumps(report, ensure_ascii=False))
        return exits.DONE
    print(f"{where or 'built-in defaults'}: valid")
    for warning in warnings:
        print(f"warning: {warning}")
    return exits.DONE


def init(policies: str | None) -> int:
    """Write the commented defaults; files that are there already stay as they are."""
    found = places.policy_folder(policies, os.environ)
    if found is not None:
        target = found.path
    else:
        config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
        target = Path(config) / "mlxd" / "policies"
    try:
        target.mkdir(parents=True, exist_ok=True)
        for source in sorted(shipped().glob("*.yaml")):
            if (target / source.name).exists():
                print(f"kept {target / source.name}")
            else:
                shutil.copyfile(source, target / source.name)
                print(f"wrote {target / source.name}")
    except OSError as error:
        print(f"mlxd: {error}", file=sys.stderr)
        return exits.FAILED
    return exits.DONE


def shipped() -> Path:
    """The shipped policy files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "policies"
    return inside if inside.is_dir() else package.parent / "policies"
