"""The slots, and the limits that leave a request none: of all, of a model, a class, a tenant."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from mlxd.control.adaptive import Adaptive
from mlxd.control.applicant import terms_of
from mlxd.control.model_settings import entry_of
from mlxd.control.place import Place
from mlxd.control.rules import CONCURRENCY, EACH, class_rule, model_rule, tenant_rule
from mlxd.core.caller import PRIORITIES, Caller, Priority
from mlxd.core.counts import form, plural
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.strict_yaml import dotted

_MAX_IN_FLIGHT = "limits.concurrency.max_in_flight"


class Scene(Protocol):
    """What the scheduler sees of the models."""

    def in_memory(self, model: str) -> bool:
        """Whether a request for it need not wait for a load."""
        ...

    def delays_others(self, model: str) -> bool:
        """Whether one has to wait for a load of it while another model could serve."""
        ...


@dataclass(frozen=True, slots=True)
class Full:
    """A limit that leaves no slot: its rule, where it is set, and what a client is told."""

    rule: str
    key: str
    words: str
    limit: int
    taken: int
    of: Literal["all", "model", "class", "client"] = "all"
    """Which of those that run it counts, beside the one that asks."""
    whose: str = ""
    """The same in words; empty: of all."""

    @property
    def tenant(self) -> bool:
        """It is this client's own."""
        return self.of == "client"

    def counts(self, one: Place, asks: Place) -> bool:
        """Whether it counts one that runs against one that asks."""
        match self.of:
            case "all":
                return True
            case "model":
                return one.model == asks.model
            case "class":
                return one.klass == asks.klass
            case "client":
                return one.client == asks.client


@dataclass(frozen=True, slots=True)
class _Limit:
    """How many there may be, and where that is set."""

    most: int
    rule: str
    key: str


class Slots:
    """Who has one. Limits are those of the policies in force, whatever a request came with."""

    def __init__(self, policies: PolicySet, scene: Scene, adaptive: Adaptive) -> None:
        """`adaptive` says what becomes of max_in_flight."""
        self.active: set[Place] = set()
        self.by_model: Counter[str] = Counter()
        self.by_client: Counter[str] = Counter()
        self.by_class: Counter[Priority] = Counter()
        self._loading: Counter[str] = Counter()
        self._scene = scene
        self._adaptive = adaptive
        self._models: dict[tuple[str, str], _Limit | None] = {}
        self._tenants: dict[tuple[str, bool], tuple[int, _Limit | None]] = {}
        """By the name of one, and whether it is the owner."""
        self._policies = policies

    def apply(self, policies: PolicySet) -> None:
        """Stops nothing: with a lower limit nobody gets a slot until enough have ended."""
        self._policies = policies
        self._models.clear()
        self._tenants.clear()

    @property
    def enforced(self) -> bool:
        return self._policies.limits.concurrency.mode == "enforce"

    @property
    def most(self) -> int:
        """Slots that there are now."""
        return self._adaptive.limit(self._policies.limits.concurrency.max_in_flight)

    @property
    def free(self) -> int:
        return max(0, self.most - len(self.active))

    def weight(self, caller: Caller) -> int:
        """A client's, against the others of its class."""
        return self._tenant(caller)[0]

    def take(self, place: Place) -> None:
        place.loading = self._scene.delays_others(place.model)
        self.active.add(place)
        self._count(place, 1)

    def give_back(self, place: Place) -> None:
        self.active.remove(place)
        self._count(place, -1)

    def loaded(self, place: Place) -> None:
        """It waits for its model no longer."""
        if place.loading and place in self.active:
            _step(self._loading, place.model, -1)
        place.loading = False

    def full(self, place: Place) -> Iterator[Full]:
        """The limits that leave it no slot; one of its tenant alone comes last."""
        most, model = self.most, place.applicant.called or place.model
        if len(self.active) >= most:
            yield Full(CONCURRENCY, self._key(most), _busy(most), most, len(self.active))
        klass, limit = place.klass, self._of_model(place)
        if limit is not None and (taken := self.by_model[place.model]) >= limit.most:
            yield _beyond(limit, taken, "model", f"model '{model}'")
        limit = self._of_class(klass, most)
        if limit is not None and (taken := self.by_class[klass]) >= limit.most:
            yield _beyond(limit, taken, "class", f"class {klass}")
        if self._waits_behind_a_load(place, most):
            waiting = self._loading[place.model]
            words = _keeps_one(place.model, waiting, most)
            yield Full(CONCURRENCY, _MAX_IN_FLIGHT, words, most - 1, waiting)
        limit, taken = self._tenant(place.applicant.caller)[1], self.by_client[place.client]
        if limit is not None and taken >= limit.most:
            words = f"Max {limit.most} concurrent requests of this client (busy, please try again)"
            yield Full(limit.rule, limit.key, words, limit.most, taken, "client", "this client")

    def gate(self) -> Callable[[Place], bool]:
        """Says, until one gets a slot, whether neither its model nor its tenant is at a limit that
        is enforced; those of all and of its class are for whoever asks to know.
        """
        most, enforced = self.most, self.enforced
        clients, models = dict[str, bool](), dict[tuple[str, str], bool]()

        def admits(place: Place) -> bool:
            own = clients.get(place.client)
            if own is None:
                limit = self._tenant(place.applicant.caller)[1]
                own = limit is None or self.by_client[place.client] < limit.most
                clients[place.client] = own
            if not own or not enforced:
                return own
            names = (place.model, place.applicant.called)
            room = models.get(names)
            if room is None:
                room = models[names] = self._has_room(place, most)
            return room

        return admits

    def class_is_full(self, klass: Priority) -> bool:
        limit = self._of_class(klass, self.most) if self.enforced else None
        return limit is not None and self.by_class[klass] >= limit.most

    def _key(self, most: int) -> str:
        """Which policy says that there are so many slots."""
        adapted = most < self._policies.limits.concurrency.max_in_flight
        return self._adaptive.key if adapted else _MAX_IN_FLIGHT

    def _has_room(self, place: Place, most: int) -> bool:
        """Of its model."""
        model = self._of_model(place)
        if model is not None and self.by_model[place.model] >= model.most:
            return False
        return not self._waits_behind_a_load(place, most)

    def _waits_behind_a_load(self, place: Place, most: int) -> bool:
        """Whether it would take the last slot only to wait in it, while another model could serve
        from it.
        """
        if self._loading[place.model] < max(1, most - 1):
            return False
        return self._scene.delays_others(place.model)

    def _count(self, place: Place, step: int) -> None:
        _step(self.by_model, place.model, step)
        _step(self.by_client, place.client, step)
        if place.loading:
            _step(self._loading, place.model, step)
        self.by_class[place.klass] += step

    def _of_model(self, place: Place) -> _Limit | None:
        names = (place.model, place.applicant.called or place.model)
        if names not in self._models:
            self._models[names] = _own_limit(names, self._policies)
        return self._models[names]

    def _of_class(self, klass: Priority, most: int) -> _Limit | None:
        """None: it may have them all."""
        classes = self._policies.clients.priorities
        own = getattr(classes, klass)
        key = f"clients.priorities.{klass}"
        limits = []
        if float(own.max_share) < 1:
            share = max(1, math.ceil(float(own.max_share) * most))
            limits.append(_Limit(share, class_rule(klass), f"{key}.max_share"))
        if not own.borrow:
            weights = sum(getattr(classes, name).weight for name in PRIORITIES)
            share = max(1, most * own.weight // weights)
            limits.append(_Limit(share, class_rule(klass), f"{key}.borrow"))
        return min(limits, key=lambda limit: limit.most, default=None)

    def _tenant(self, caller: Caller) -> tuple[int, _Limit | None]:
        """Its weight, and its limit where it has one."""
        who = caller.tenant, caller.owner
        found = self._tenants.get(who)
        if found is None:
            terms = terms_of(caller, self._policies)
            most, limit = terms.tenant.max_in_flight, None
            if most is not None:
                key = dotted((*terms.path, "max_in_flight"))
                limit = _Limit(most, tenant_rule(str(terms.path[-1])), key)
            found = self._tenants[who] = terms.tenant.weight, limit
        return found


def _own_limit(names: tuple[str, str], policies: PolicySet) -> _Limit | None:
    """Of a model, by its own name and the one that it was called by: by
    limits.concurrency.per_model, else by models.yaml; None: it has none of its own.
    """
    concurrency = policies.limits.concurrency
    for name in names:
        written = concurrency.written.of(name)
        if written is not None:
            key = dotted(("limits", "concurrency", "per_model", written))
            return _Limit(concurrency.per_model[written], model_rule(written), key)
    models = policies.models
    entry = next(filter(None, (entry_of(name, models) for name in names)), None)
    if entry is not None and isinstance(entry[1].max_concurrency, int):
        key = dotted(("models", "models", entry[0], "max_concurrency"))
        return _Limit(entry[1].max_concurrency, model_rule(entry[0]), key)
    usual = models.defaults.max_concurrency
    if usual == "inherit" or (entry is not None and entry[1].max_concurrency is not None):
        return None
    return _Limit(usual, model_rule(EACH), "models.defaults.max_concurrency")


def _beyond(limit: _Limit, taken: int, of: Literal["model", "class"], whose: str) -> Full:
    return Full(limit.rule, limit.key, _busy(limit.most), limit.most, taken, of, whose)


def _step(counter: Counter[str], name: str, step: int) -> None:
    """No name stays without anything: there may be any number of them."""
    counter[name] += step
    if not counter[name]:
        del counter[name]


def _busy(limit: int) -> str:
    return f"Server overloaded. Max {limit} concurrent requests (server busy, please try again)"


def _keeps_one(model: str, waiting: int, most: int) -> str:
    return (
        f"{plural(waiting, 'request')} {form(waiting, 'waits', 'wait')} for model '{model}' to be"
        f" loaded; of {plural(most, 'slot')} one is kept"
        " for the models in memory meanwhile"
    )
