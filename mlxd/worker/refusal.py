"""Why something cannot run, in words for a client."""

from __future__ import annotations

from typing import Literal

Code = Literal["invalid_request", "context_exceeded", "unsupported"]
Setting = Literal["", "kv_bits"]


class Refusal(Exception):
    """The request is at fault, not the worker; `message` is for the client."""

    quotes = True
    """What the client sent."""

    def __init__(
        self,
        message: str,
        *,
        code: Code = "invalid_request",
        param: str | None = None,
        policy_key: str | None = None,
        numbers: dict[str, int] | None = None,
    ) -> None:
        """`numbers`: those of `Refused`."""
        super().__init__(message)
        self.message = message
        self.code: Code = code
        self.param = param
        self.policy_key = policy_key
        self.numbers = numbers or {}


class LoadError(Exception):
    """The folder does not hold a model that can run here, or there is no memory for it."""

    def __init__(self, reason: str, *, out_of_memory: bool = False, setting: Setting = "") -> None:
        """`setting`: that of `LoadFailed`."""
        super().__init__(reason)
        self.out_of_memory = out_of_memory
        self.setting: Setting = setting
