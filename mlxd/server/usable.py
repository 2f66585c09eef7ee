"""The models that whoever asks may use: it is shown no others, in lists or by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from aiohttp import web

from mlxd.control.catalog import Catalog
from mlxd.control.rights import rights_of
from mlxd.core.models import ModelCard
from mlxd.server.edge import caller_of, policies_of


def is_usable(card: ModelCard, request: web.BaseRequest) -> bool:
    return rights_of(caller_of(request), card, policies_of(request)).allowed


def usable(cards: Iterable[ModelCard], request: web.BaseRequest) -> list[ModelCard]:
    """In the same order."""
    return [card for card in cards if is_usable(card, request)]


def check_for(request: web.BaseRequest) -> Callable[[ModelCard], None]:
    """Raises Forbidden for a model that it may not use, and so may neither copy nor remove."""
    caller, policies = caller_of(request), policies_of(request)
    return lambda card: rights_of(caller, card, policies).check_model()


async def look_up(catalog: Catalog, name: str, request: web.BaseRequest) -> ModelCard:
    """As the catalogue does, by the caller's rights. Raises Forbidden, too."""
    card = await catalog.look_up(name, policies_of(request), caller_of(request))
    check_for(request)(card)
    return card
