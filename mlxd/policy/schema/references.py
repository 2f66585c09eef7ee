"""Where a secret is to be found. No policy holds one, and no message quotes what may be one."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from mlxd.policy.units import Written

_CREDENTIAL = r"credential:[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_PATH = r"/[^\x00-\x1f\x7f]*"


class Reference(Written, str):
    """`credential:NAME`, a name the service manager knows, or the path of a file."""

    unit = "reference"
    expected = "a reference such as credential:NAME or an absolute path"
    pattern = f"^(?:{_CREDENTIAL}|{_PATH})$"
    found: ClassVar[re.Pattern[str]] = re.compile(f"{_CREDENTIAL}|{_PATH}")

    @classmethod
    def parse(cls, value: Any) -> Self:
        if not isinstance(value, str) or not cls.found.fullmatch(value):
            raise cls._refused(value)
        return cls(value)

    @classmethod
    def _refused(cls, _: object, hint: str = "") -> ValueError:
        return ValueError(f"expected {cls.expected}, got something else (not shown){hint}")


class PublicUrl(Reference):
    """An http(s) URL that holds no secret, or a reference to one that does."""

    unit = "URL"
    expected = "an http or https URL, or a reference such as credential:NAME"
    pattern = f"^(?:{_CREDENTIAL}|https?://[^\\s?#@]+)$"
    found = re.compile(rf"{_CREDENTIAL}|https?://[^\s?#@]+")

    @classmethod
    def parse(cls, value: Any) -> Self:
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            _refuse_secrets(value)
        return super().parse(value)

    @property
    def public(self) -> object:
        """Many services put a token into the path."""
        url = urlsplit(self)
        private = url.scheme in ("http", "https") and url.path not in ("", "/")
        return f"{url.scheme}://{url.netloc}/..." if private else str(self)


def _refuse_secrets(url: str) -> None:
    """Of an http(s) URL: no user, query or fragment, since these are where secrets are put."""
    wrong = "expected a URL {}, got one (not shown): {}"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(wrong.format("that can be read", "its host or port is wrong")) from None
    reference = "put the whole URL behind credential:NAME"
    if "@" in parts.netloc:
        raise ValueError(wrong.format("without a user or password", reference))
    if "?" in url or "#" in url:
        raise ValueError(wrong.format("without a query or fragment", reference))
    if not host:
        raise ValueError(wrong.format("with a host", "write https://HOST/PATH"))
