"""The names of the rules that judge requests, as metrics and policy tests call them."""

from __future__ import annotations

from mlxd.control.applicant import Applicant
from mlxd.control.quotas import quota_rules
from mlxd.control.rates import rate_rule, rate_rules
from mlxd.control.shedding import shed_rules
from mlxd.core.caller import PRIORITIES, Priority
from mlxd.core.errors import MlxdError
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.strict_yaml import parts

CONCURRENCY = "concurrency"
"""Of all slots."""
EACH = "*"
"""For a model, where a number holds for each that has none of its own."""


def model_rule(model: str) -> str:
    return f"{CONCURRENCY}:{model}"


def class_rule(klass: Priority) -> str:
    return f"priority:{klass}"


def tenant_rule(name: str) -> str:
    """Of the limits of one."""
    return f"tenant:{name}"


def rules_in_force(policies: PolicySet) -> list[str]:
    """The names of the rules that judge at all (mode enforce or dry_run), in order of judgement.

    Those of `quota_rules` and `rate_rules`; `shed:<class>`; `concurrency`, `concurrency:<model>`
    with the model as it is written, first those of limits.yaml, then those that only models.yaml
    names, then `*` for all others; `priority:<class>` and `tenant:<name>` where they have slots of
    their own; and `queue`, where somebody may wait.
    """
    limits, clients = policies.limits, policies.clients
    names = [*quota_rules(policies), *rate_rules(policies), *shed_rules(policies)]
    tenants = clients.tenants.items()
    own = [tenant_rule(name) for name, tenant in tenants if tenant.max_in_flight is not None]
    mode = limits.concurrency.mode
    may_wait = limits.concurrency.max_waiting and (own or mode == "enforce")
    queue = ["queue"] if may_wait else []
    if mode != "off":
        names += [CONCURRENCY, *map(model_rule, _limited_models(policies))]
        classes = ((name, getattr(clients.priorities, name)) for name in PRIORITIES)
        names += [
            class_rule(name) for name, klass in classes if klass.max_share < 1 or not klass.borrow
        ]
    return list(dict.fromkeys([*names, *own, *queue]))


def rule_of(error: MlxdError, applicant: Applicant) -> str:
    """The name of the rule that refused; empty: it was none."""
    said = error.numbers.get("rule")
    if isinstance(said, str):
        return said
    path = parts(error.policy.key) if error.policy is not None else ()
    match path:
        case ("limits", "rate_limit", int(index), *_):
            return rate_rule(applicant.policies.limits.rate_limit[index])
        case ("clients", "tenants", str(name), *_):
            return tenant_rule(name)
        case _:
            return ""


def _limited_models(policies: PolicySet) -> list[str]:
    concurrency = policies.limits.concurrency
    elsewhere = [
        name
        for name, own in policies.models.models.items()
        if isinstance(own.max_concurrency, int) and concurrency.written.of(name) is None
    ]
    others = [EACH] if isinstance(policies.models.defaults.max_concurrency, int) else []
    return [*concurrency.per_model, *elsewhere, *others]
