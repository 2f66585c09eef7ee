"""How long requests will take of which nobody has seen any: by what `mlxd bench` has measured."""

from __future__ import annotations

from mlxd.control.benched import Benches
from mlxd.control.catalog import Catalog
from mlxd.control.place import Place
from mlxd.core.counts import plural
from mlxd.core.models import ModelCard
from mlxd.policy.policy_set import PolicySet


class Expected:
    """Looks at the catalogue as it is known now; waits for nothing."""

    def __init__(self, catalog: Catalog, benches: Benches) -> None:
        self._catalog = catalog
        self._benches = benches

    def hold_seconds(self, place: Place, streams: int) -> float | None:
        """For which it will have its slot, as one of so many; None: its model was not benched."""
        applicant = place.applicant
        card = self._catalog.find(applicant.called or place.model, applicant.policies)
        bench = self._benches.get(card) if card is not None else None
        if bench is None:
            return None
        reading = min(applicant.reading, place.cost)
        return bench.read_seconds(reading) + bench.decode_seconds(place.cost - reading, streams)

    def slow_prompt(self, model: str, tokens: int, policies: PolicySet) -> str | None:
        """Where a prompt of so many tokens to read cannot have its answer begun in time: that, in
        words.
        """
        card = self._catalog.find(model, policies)
        return self._slow(card, tokens, policies) if card is not None else None

    def slow_models(self, policies: PolicySet) -> list[str]:
        """The same of the longest prompt that each benched model may get."""
        found = (self.slow_model(card, policies) for card in self._catalog.known())
        return [words for words in found if words is not None]

    def slow_model(self, card: ModelCard, policies: PolicySet) -> str | None:
        longest = min(card.context, policies.limits.tokens.max_prompt)
        words = self._slow(card, longest, policies)
        return f"{card.name}: {words}" if words is not None else None

    def _slow(self, card: ModelCard, tokens: int, policies: PolicySet) -> str | None:
        bench, most = self._benches.get(card), float(policies.timeouts.first_token)
        if bench is None or tokens <= 0 or (seconds := bench.read_seconds(tokens)) <= most:
            return None
        longest, beyond = bench.prefill[-1][0], ""
        if tokens > longest:
            beyond = f" or more, for mlxd bench has read {longest} at most"
        return (
            f"a prompt of {plural(tokens, 'token')} takes about {seconds:.0f} s to read on this"
            f" machine{beyond}; timeouts.first_token is {most:g} s"
        )
