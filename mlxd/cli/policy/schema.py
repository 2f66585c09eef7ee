"""`mlxd policy schema [KIND]`: the JSON Schema that editors complete and check by."""

from __future__ import annotations

import json
import sys

from mlxd.cli import exits
from mlxd.policy.json_schema import editor_schema
from mlxd.policy.schema import KINDS


def schema(kind: str) -> int:
    """Of one file, or of all by kind."""
    wanted = kind.removesuffix(".yaml")
    if wanted and wanted not in KINDS:
        print(f"there is no policy file {kind}; known are {', '.join(KINDS)}", file=sys.stderr)
        return exits.USAGE
    found = editor_schema(wanted) if wanted else {one: editor_schema(one) for one in KINDS}
    print(json.dumps(found, indent=2, ensure_ascii=False))
    return exits.DONE
