"""`mlxd policy schema [KIND]`: the JSON Schema that editors complete and check by."""

from __future__ import annotations

import json

from mlxd.cli import exits
from mlxd.cli.policy.here import wrong
from mlxd.policy.json_schema import editor_schema
from mlxd.policy.schema import KINDS


def schema(kind: str, *, as_json: bool) -> int:
    """Of one file, or of all by kind."""
    wanted = kind.removesuffix(".yaml")
    if wanted and wanted not in KINDS:
        words = f"there is no policy file {kind}; known are {', '.join(KINDS)}"
        return wrong(ValueError(words), as_json=as_json)
    found = editor_schema(wanted) if wanted else {one: editor_schema(one) for one in KINDS}
    print(json.dumps(found, indent=2, ensure_ascii=False))
    return exits.DONE
