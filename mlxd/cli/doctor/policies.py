"""The policy files: whether they are taken, and what they let in."""

from __future__ import annotations

from mlxd.cli.doctor.finding import Finding, Findings, advice, problem
from mlxd.cli.policy.here import Here, here
from mlxd.core.places import BadEnvFile
from mlxd.policy.keys_file import demand_of_daemon
from mlxd.policy.load import PolicyErrors, load
from mlxd.policy.policy_set import PolicySet
from mlxd.settings import SettingsRefused

_MEND = "mend that line; until then the daemon keeps what was in force. mlxd policy check"


def judged(policies: str | None, state: str | None) -> tuple[PolicySet, list[Finding]]:
    """The policies as a daemon would start with them; the built-in ones where it would not."""
    try:
        this = here(policies, state)
        found = this.load()
        demand_of_daemon(found, this.state)
    except (SettingsRefused, BadEnvFile) as error:
        lines = str(error).splitlines()
        return load(), [
            problem("settings_refused", line, "change the variable, or mlxd.env") for line in lines
        ]
    except PolicyErrors as refused:
        return load(), [problem("policy_refused", str(one), _MEND) for one in refused.errors]
    return found, list(_of(this, found))


def _of(this: Here, found: PolicySet) -> Findings:
    if this.folder is None:
        yield advice(
            "no_policies", "there is no policy folder: built-in defaults hold", "mlxd policy init"
        )
    for words in (*this.warnings, *found.warnings()):
        yield advice(
            "policy_warns", words, "mlxd policy explain KEY says why a value is what it is"
        )
    if not found.server.listen.loopback and found.keys_required:
        host = found.line("server.listen.host")
        yield advice(
            "keys_without_tls",
            f"server.listen.host {host.value} ({host.place}) lets other machines in, and API keys"
            " and prompts cross the network as plain text",
            "let mlxd listen on 127.0.0.1, and nginx or HAProxy with TLS before it: etc/nginx.conf,"
            " docs/guides/balancers.md",
        )
