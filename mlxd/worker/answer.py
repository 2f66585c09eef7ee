"""One request's answer: its tokens become the pieces that are sent."""

from __future__ import annotations

from typing import Any

from mlxd.core.request import CalledTool
from mlxd.ipc.messages import Call, Logprob, Piece, Reasoning, Text
from mlxd.worker.detokenize import Detokenizer
from mlxd.worker.harmony import Harmony
from mlxd.worker.held import Held
from mlxd.worker.logprobs import Scorer
from mlxd.worker.markup import Separator
from mlxd.worker.parts import Part
from mlxd.worker.stops import StopStrings


class PlainAnswer:
    """Text and nothing else: no markup, no stop strings, no log-probabilities."""

    __slots__ = ("_detokenizer", "_id")
    stopped: str | None = None
    over = False
    settled = True
    reasoning_tokens = 0
    malformed_calls = 0

    def __init__(self, id: int, detokenizer: Detokenizer) -> None:
        self._id = id
        self._detokenizer = detokenizer

    def take(self, token: int, row: Any, out: list[Piece]) -> None:
        text = self._detokenizer.add(token)
        if text:
            out.append(Text(self._id, text))

    def score(self, token: int, row: Any) -> None:
        """Nobody asks for it."""

    def finish(self, out: list[Piece], *, truncated: bool) -> None:
        text = self._detokenizer.finish()
        if text:
            out.append(Text(self._id, text))


class Answer:
    """Text, reasoning, tool calls, stop strings and log-probabilities, each where asked for.

    Stop strings are looked for in the text of the answer, not in reasoning or markup. A token's
    log-probability travels with the text it ends in; that of a stop string's tokens not at all.
    White space alone, beside a call, is markup too: models break the line there.
    """

    def __init__(
        self,
        id: int,
        detokenizer: Detokenizer,
        separator: Separator | Harmony | Held | None,
        stops: StopStrings,
        scorer: Scorer | None,
        *,
        calls: bool = False,
        one_call: bool = False,
    ) -> None:
        """`calls`: it may call tools; `one_call`: its first call is its end."""
        self._id = id
        self._detokenizer = detokenizer
        self._separator = separator
        self._stops = stops
        self._scorer = scorer
        self._scores: list[Logprob] = []
        self._calls = calls
        self._one_call = one_call
        self._called = False
        self._blank: str | None = "" if calls else None
        """White space that begins a run of text and waits for words; None: they have come."""
        self._scored = 0
        """How many of the scores that wait are of its tokens, or of those before."""
        self.reasoning_tokens = 0
        """Tokens of its thinking, its marks included."""

    @property
    def stopped(self) -> str | None:
        """The stop string that ended it."""
        return self._stops.found

    @property
    def over(self) -> bool:
        """Nothing that follows is wanted."""
        return self._stops.found is not None or (self._one_call and self._called)

    @property
    def malformed_calls(self) -> int:
        return self._separator.malformed if self._separator is not None else 0

    @property
    def settled(self) -> bool:
        """Whether no log-probability waits for its text: then the tokens so far make known exactly
        the pieces so far, log-probabilities included. Of those since it last was, there is none.
        """
        return not self._scores

    def take(self, token: int, row: Any, out: list[Piece]) -> None:
        """Add one token; `row` are its log-probabilities, if asked for and not sent before."""
        self.score(token, row)
        thought = self._thinking
        text = self._detokenizer.add(token)
        if text:
            parts: list[Part] = [("text", text)]
            self._put(self._separator.feed(text) if self._separator else parts, out)
        if thought or self._thinking:
            self.reasoning_tokens += 1
        if self._scores and not self._holding():
            self._send_scores(out)

    def score(self, token: int, row: Any) -> None:
        """Have its log-probability told, and no text: of a token that ends the answer."""
        if self._scorer is not None and row is not None:
            self._scores.append(self._scorer.score(token, row))

    def finish(self, out: list[Piece], *, truncated: bool) -> None:
        """Deliver what was held back; nothing but white space, when what was delivered ended it."""
        if self.over:
            del self._scores[self._scored :]
            self._end_run(out)
            return
        text = self._detokenizer.finish()
        parts: list[Part] = [("text", text)] if text else []
        if self._separator is not None:
            parts = self._separator.feed(text) + self._separator.finish(truncated=truncated)
        self._put(parts, out)
        self._say(self._stops.release(), out)
        self._end_run(out)
        if self._scores and not self.over:
            self._send_scores(out)

    @property
    def _thinking(self) -> bool:
        return self._separator is not None and self._separator.thinking

    def _put(self, parts: list[Part], out: list[Piece]) -> None:
        for part in parts:
            if self.over:
                return
            if isinstance(part, CalledTool):
                self._say(self._stops.release(), out)
                self._blank = ""
                out.append(Call(self._id, part.name, part.arguments))
                self._called = True
                if self._scores:
                    self._send_scores(out)
            elif part[0] == "text":
                self._say(self._stops.feed(part[1]), out)
            else:
                self._say(self._stops.release(), out)
                self._end_run(out)
                out.append(Reasoning(self._id, part[1], self._taken_scores()))

    def _say(self, text: str, out: list[Piece]) -> None:
        if self._blank is not None and text:
            text = self._blank + text
            self._blank = text if text.isspace() else None
            self._scored = len(self._scores)
        if text and self._blank is None:
            out.append(Text(self._id, text, self._taken_scores()))

    def _end_run(self, out: list[Piece]) -> None:
        """No words have come, and no call follows. Behind a call, that was markup."""
        if self._blank and not self._called:
            out.append(Text(self._id, self._blank, self._taken_scores()))
        self._blank = "" if self._calls else None

    def _send_scores(self, out: list[Piece]) -> None:
        out.append(Text(self._id, "", self._taken_scores()))

    def _taken_scores(self) -> list[Logprob]:
        scores, self._scores = self._scores, []
        return scores

    def _holding(self) -> bool:
        held = self._separator is not None and self._separator.holding
        return held or self._stops.holding or bool(self._blank) or self.over


def joined(pieces: list[Piece]) -> list[Piece]:
    """The same answer in as few pieces as possible."""
    whole: list[Piece] = []
    run: list[Text | Reasoning] = []
    for piece in pieces:
        if run and type(piece) is not type(run[0]):
            whole.append(_merged(run))
            run = []
        if isinstance(piece, Text | Reasoning):
            run.append(piece)
        else:
            whole.append(piece)
    if run:
        whole.append(_merged(run))
    return whole


def _merged(run: list[Text | Reasoning]) -> Text | Reasoning:
    if len(run) == 1:
        return run[0]
    text = "".join(piece.text for piece in run)
    scores = [score for piece in run for score in piece.logprobs]
    return type(run[0])(run[0].id, text, scores)
