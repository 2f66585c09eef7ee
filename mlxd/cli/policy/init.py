"""`mlxd policy init`: the commented defaults, where an operator can edit them."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from mlxd.cli import exits
from mlxd.core import places


def init(policies: str | None) -> int:
    """Write the commented defaults, their schemas for editors and their tests.

    Files that are there already stay as they are.
    """
    found = places.policy_folder(policies, os.environ)
    if found is not None:
        target = found.path
    elif (config := _config()) is not None:
        target = config / "mlxd" / "policies"
    else:
        print("mlxd: this user has no home: name a folder with --policies", file=sys.stderr)
        return exits.FAILED
    told: list[str] = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for source in sorted(shipped().rglob("*.*")):
            name = source.relative_to(shipped())
            if (target / name).exists():
                told.append(f"kept {target / name}")
            else:
                (target / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source, target / name)
                told.append(f"wrote {target / name}")
        print("\n".join(told))
    except OSError as error:
        print(f"mlxd: {error}", file=sys.stderr)
        return exits.FAILED
    return exits.DONE


def _config() -> Path | None:
    """None: this user has none."""
    if folder := os.environ.get("XDG_CONFIG_HOME"):
        return Path(folder)
    home = places.home_of(os.environ)
    return home / ".config" if home is not None else None


def shipped() -> Path:
    """The shipped policy files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[2]
    inside = package / "policies"
    return inside if inside.is_dir() else package.parent / "policies"
