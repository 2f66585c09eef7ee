"""What is committed under packaging/, from built-in defaults: `python -m mlxd.service.golden`."""

from __future__ import annotations

from pathlib import Path

from mlxd.policy.load import load
from mlxd.service.facts import facts
from mlxd.service.render import TARGETS


def golden() -> dict[str, str]:
    """Contents by their path below packaging/."""
    defaults = facts(load())
    return {
        f"{target.folder}/{name}": content
        for target in TARGETS
        for name, content in target.render(defaults, target.layout).items()
    }


def main() -> None:
    """Write them anew; to be called from the root of a checkout."""
    for name, content in golden().items():
        file = Path("packaging") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
