"""What the modules of this package share: fields, sections and the types of values."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Reload = Literal["live", "live-drain", "rebind", "rolling", "restart", "boot"]
Auto = Literal["auto"]
Mode = Literal["enforce", "dry_run", "off"]


def field(
    default: Any,
    description: str,
    *,
    example: str,
    unit: str = "",
    reload: Reload = "live",
    secret: bool = False,
    **bounds: Any,
) -> Any:
    """One policy. `example` is YAML, and another value than the default where there is one.

    `secret`: what an operator writes there by mistake may be a secret, so no message quotes it.
    """
    extra: dict[str, Any] = {"unit": unit, "reload": reload, "example": example, "secret": secret}
    return Field(default, description=description, json_schema_extra=extra, **bounds)


def section(description: str) -> Any:
    """A group of policies; absent, it is all defaults."""
    return Field({}, description=description)


def mode(what: str) -> Any:
    """Whether a rule refuses, only counts what it would have refused, or is off."""
    words = (
        f"{what} enforce refuses; dry_run refuses nothing, counts what it would have refused "
        "(mlxd_policy_would_deny_total) and marks the answer with X-Mlxd-Would-Deny; off does "
        "neither."
    )
    return field("enforce", words, example="dry_run")


@dataclass(frozen=True, slots=True)
class Takes:
    """What a text type takes, in words, and a pattern that all of it matches, for editors."""

    words: str
    pattern: str


_HOST_NAME = re.compile(r"(?![0-9.]+$)[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_NETWORK = r"[0-9A-Fa-f:.]+(?:/[0-9]{1,3})?"
_URL = r"https?://[^/?#@\s]+(?:/[^?#@\s]*)?"
_ORIGIN = r"(?:null|\*[^/\s]*|[^/\s]+://[^/\s]*)"
"""Also with `*` in it."""
_HEADER = r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?"


def _host(text: str) -> str:
    """An address or a host name; what looks like an address must be one."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if not _HOST_NAME.fullmatch(text):
            raise ValueError(
                "expected an address or a host name alone, such as 127.0.0.1, ::1 or localhost"
            ) from None
    return text


def is_name(text: str) -> bool:
    """Of a model, a tenant and the like."""
    return text == text.strip() and 0 < len(text) <= 350 and text.isprintable()


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError("expected a name of 1 to 350 printable characters")
    return text


def _host_pattern(text: str) -> str:
    """Compared with a Host header without its port: with one, or as a network, it fits none."""
    if re.search(r"[:/@\[\]]", _name(text)) and not _may_be_address(text):
        raise ValueError(
            "expected a host's name or address alone, without scheme, port, brackets and mask, "
            "such as studio.example, *.example or fd00::1"
        )
    return text


def _may_be_address(pattern: str) -> bool:
    """`*` stands for what is left of one group, or for several."""
    for some in ("0", ":0"):
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(pattern.replace("*", some))
            return True
    return False


def _origin_pattern(text: str) -> str:
    """An origin has a scheme and no path: what is written otherwise fits none."""
    if not re.fullmatch(_ORIGIN, _name(text)):
        raise ValueError(
            "expected an origin, which has a scheme and no path, such as https://chat.example, "
            "http://localhost:* or app://*"
        )
    return text


def _folder(text: str) -> str:
    if not (text.startswith(("/", "~/")) or text == "~") or "\0" in text:
        raise ValueError("expected an absolute path, or one under ~/")
    return text


def _network(text: str) -> str:
    """Networks are kept as written; an address alone is the network of itself."""
    expected = "expected an address or a network such as 10.0.0.0/8 or fd00::/8"
    try:
        whole = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(expected) from None
    if not re.fullmatch(_NETWORK, text):
        raise ValueError(expected)
    if ipaddress.ip_address(text.partition("/")[0]) != whole.network_address:
        raise ValueError(f'{expected}, got "{text}": bits are set beyond the mask, write {whole}')
    return text


def _header(text: str) -> str:
    if not re.fullmatch(_HEADER, text):
        raise ValueError("expected a header's name such as x-api-key")
    return text


def _header_key(text: str) -> str:
    if not re.fullmatch(f"header:{_HEADER}", text):
        raise ValueError("expected client, client_ip, api_key, user or header:NAME")
    return text


def _url(text: str) -> str:
    """Not quoted when it is refused: somebody may have written a password into it."""
    expected = "expected http:// or https://, a host, and at most a port and a path"
    try:
        url = urlsplit(text)
        fits = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        fits = False
        url = urlsplit("")
    if not fits or not re.fullmatch(_URL, text):
        raise ValueError(expected)
    _host(url.hostname or "")
    return text


Host = Annotated[str, AfterValidator(_host), Takes("an address or a host name", "^[^/]+$")]
Url = Annotated[str, AfterValidator(_url), Takes("a URL", f"^{_URL}$")]
Name = Annotated[str, AfterValidator(_name), Takes("a name", "^[^\\n]{1,350}$")]
Folder = Annotated[
    str, AfterValidator(_folder), Takes("an absolute path, or one under ~/", "^(?:/|~/|~$)")
]
Network = Annotated[
    str, AfterValidator(_network), Takes("an address or a network", f"^{_NETWORK}$")
]
Header = Annotated[str, AfterValidator(_header), Takes("a header's name", f"^{_HEADER}$")]
HeaderKey = Annotated[str, AfterValidator(_header_key), Takes("header:NAME", f"^header:{_HEADER}$")]
Pattern = Annotated[str, Field(min_length=1), Takes("text", r"[\s\S]")]
Patterns = Annotated[tuple[Pattern, ...], Field(strict=False)]
Names = Annotated[tuple[Name, ...], Field(strict=False)]
Folders = Annotated[tuple[Folder, ...], Field(strict=False)]
HostPatterns = Annotated[
    tuple[
        Annotated[
            str,
            AfterValidator(_host_pattern),
            Takes("a host's name or address", "^[^/@\\[\\]\\n]{1,350}$"),
        ],
        ...,
    ],
    Field(strict=False),
]
OriginPatterns = Annotated[
    tuple[Annotated[str, AfterValidator(_origin_pattern), Takes("an origin", f"^{_ORIGIN}$")], ...],
    Field(strict=False),
]
Networks = Annotated[tuple[Network, ...], Field(strict=False)]
Headers = Annotated[tuple[Header, ...], Field(strict=False)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class Policy(BaseModel):
    """What all of them share: frozen, no unknown keys, no guessing between types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, defer_build=True
    )

    @classmethod
    @cache
    def attributes(cls) -> Mapping[str, str]:
        """Attribute names by the names that the files write: `for` is no name in Python."""
        fields = cls.model_fields.items()
        return MappingProxyType({info.alias or name: name for name, info in fields})
