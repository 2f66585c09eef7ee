"""`mlxd service reset`."""

from __future__ import annotations

import json
import sys

from mlxd.cli import exits
from mlxd.cli.admin import AdminClient, Refused
from mlxd.cli.client import NoAnswer
from mlxd.core import places, starts
from mlxd.core.instance import is_claimed, running


def reset(policies: str | None, state: str | None, *, as_json: bool) -> int:
    """Forget that the daemon kept dying, whether one runs now or not."""
    folder = places.find(policies, state).state.path
    try:
        if is_claimed(folder):
            address = running(folder)
            if address is None or not address.admin:
                raise NoAnswer(f"the mlxd of {folder} does not say where it can be reached")
            held = bool(AdminClient(address.admin).post("/admin/service/reset")["was_held"])
        else:
            held = starts.reset(folder)
    except (NoAnswer, Refused, OSError) as error:
        if as_json:
            print(json.dumps({"error": str(error)}))
        else:
            print(f"mlxd: {error}", file=sys.stderr)
        return exits.FAILED
    if as_json:
        print(json.dumps({"was_held": held}))
    else:
        print("models may be loaded again" if held else "nothing was held")
    return exits.DONE
