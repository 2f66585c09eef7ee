"""Who wants to run: all that a decision about one request goes by."""

from __future__ import annotations

from dataclasses import dataclass

from mlxd.core.caller import PRIORITIES, Caller, Priority
from mlxd.core.errors import PolicyLine
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema.clients import Tenant
from mlxd.policy.strict_yaml import Path, dotted

ANONYMOUS = "anonymous"
"""The entry of `clients.tenants` for those without a key; no key is of such a tenant."""


@dataclass(frozen=True, slots=True, eq=False)
class Applicant:
    """One call that asks for a slot."""

    caller: Caller
    policies: PolicySet
    """Those in force when it came."""
    model: str
    """Its own name."""
    called: str = ""
    """A copy's name that it was called by, whose limits count where the model has none."""
    priority: Priority | None = None
    """The class that it asks for; None: its tenant's."""
    cost: float = 1.0
    """Tokens that are expected of its prompts and answers together."""
    reading: float = 0.0
    """Of those, the tokens of its prompts."""
    rated: bool = True
    """Whether it counts towards rates."""
    user: str = ""

    @property
    def terms(self) -> Terms:
        return terms_of(self.caller, self.policies)

    @property
    def klass(self) -> Priority:
        """The class that it has: what it asks for, within what its tenant may."""
        return self.terms.klass(self.priority)


@dataclass(frozen=True, slots=True)
class Terms:
    """What one client may, and where that stands."""

    tenant: Tenant
    path: Path
    """Of the tenant in the policies."""
    policies: PolicySet

    def klass(self, wanted: Priority | None) -> Priority:
        """Of a request that asks for this class, or for none."""
        return max(wanted or self.tenant.priority, self.tenant.max_priority, key=PRIORITIES.index)

    def line(self, field: str) -> PolicyLine:
        """Where one of its limits was set."""
        return self.policies.line(dotted((*self.path, field)))


def terms_of(caller: Caller, policies: PolicySet) -> Terms:
    """A tenant that no policy names has the limits that `Tenant` has by itself: none. So has the
    owner.
    """
    if caller.owner:
        return Terms(_UNLISTED, ("clients", "tenants"), policies)
    name = policies.tenants.get((caller.tenant or ANONYMOUS).casefold())
    if name is None:
        return Terms(_UNLISTED, ("clients", "tenants"), policies)
    return Terms(policies.clients.tenants[name], ("clients", "tenants", name), policies)


_UNLISTED = Tenant()
