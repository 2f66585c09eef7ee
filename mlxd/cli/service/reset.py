"""`mlxd service reset`."""

from __future__ import annotations

from mlxd.cli import exits
from mlxd.cli.admin import AdminClient, Refused
from mlxd.cli.client import NoAnswer
from mlxd.cli.models.asking import failed, print_json
from mlxd.cli.service.site import Site
from mlxd.core import starts
from mlxd.core.instance import is_claimed, running, untold
from mlxd.service.machine import ServiceError


def reset(site: Site, *, as_json: bool) -> int:
    """Forget that the daemon kept dying, whether one runs now or not."""
    try:
        folder = site.state_folder
        if is_claimed(folder):
            address = running(folder)
            if address is None or not address.admin:
                raise NoAnswer(f"the mlxd of {folder} does not say where it can be reached")
            held = bool(AdminClient(address.admin).post("/admin/service/reset")["was_held"])
        else:
            if why := untold(folder):
                raise NoAnswer(why)
            held = starts.reset(folder)
    except (NoAnswer, Refused, ServiceError, OSError) as error:
        return failed(str(error), as_json=as_json)
    if as_json:
        print_json({"was_held": held})
    else:
        print("models may be loaded again" if held else "nothing was held")
    return exits.DONE
