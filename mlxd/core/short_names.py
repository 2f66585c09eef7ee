"""Names as people type them: `qwen2.5-coder:32b` for Qwen2.5-Coder-32B-Instruct-4bit.

The rule: family[-variant]:size in lower case, from the folder's name, without organisation,
Instruct, dates and quantisation. Whether such a name leads to one model alone is not decided here.
"""

from __future__ import annotations

import re
from functools import lru_cache

_SIZE = re.compile(r"(?:\d+x)?e?\d+(?:\.\d+)?[bm]")
"""32b, 0.5b, 135m, 8x7b, and Gemma's e4b."""
_EXPERTS = re.compile(r"a\d+(?:\.\d+)?b|\d+e")
"""Of a mixture of experts: the parameters of a token (a3b), the number of experts (16e)."""
_INSTRUCT = frozenset(("instruct", "it", "inst", "chat"))
_JOINED = re.compile(
    r"(?<![a-z0-9.])(?:mixed(?:[-_]\d+(?:bit)?)+|\d+[-_]bits?|i?d?q\d(?:[-_](?:k|\d|\w{1,3}))+)"
    r"(?![a-z0-9.])"
)
"""Words about the packing that have a separator inside: mixed_3_6, 4-bit, q4_k_m."""
_PACKING = re.compile(
    r"""\d+(\.\d+)?(bits?|bpw)              # 4bit, 3.5bpw
    | i?d?q\d+ | qx\w+ | int\d+ | w\d+a\d+  # q8, qx64, int4, w4a16
    | (bf|f|fp|float)(4|8|16|32)            # bf16, fp8
    | (mxfp|nvfp|nf)\d+                     # mxfp4, nvfp4
    | qat | [dp]wq | awq | gptq | affine | optiq | autoround | mixed | quantized | unquantized
    | gs?\d+ | lr\w+ | hi | ud              # group size 32, and what some makers add
    | mlx | hf | gguf | safetensors | lm
    """,
    re.VERBOSE,
)
_DATE = re.compile(r"\d{4}|\d{6}|\d{8}")
"""2507, 0528, 053125."""
_REMEMBERED = 8192
"""Of each kind: what a name means is asked for every model whenever models or policies change."""
_VERSION = re.compile(r"v\d+(\.\d+)*")


@lru_cache(_REMEMBERED)
def short_name(name: str) -> str:
    """`family[-variant]:size` of a model's name; without `:size` where the name tells no size."""
    words = _words(name.lower().rpartition("/")[2])
    size = next((n for n, word in enumerate(words[1:], 1) if _SIZE.fullmatch(word)), None)
    if size is None:
        return "-".join(words)
    family, variant = words[:size], words[size + 1 :]
    if "distill" in family[1:]:  # of which other family it was made says nothing of what it is
        family = family[: family.index("distill", 1)]
    variant = [word for word in variant if not _VERSION.fullmatch(word)]
    return f"{'-'.join(family + variant)}:{words[size]}"


@lru_cache(_REMEMBERED)
def short_key(short: str) -> str:
    """What short names are compared by: people write llama3.2, gemma3 and qwen2.5vl without the
    hyphen of the folder's name, and `30b-a3b` or `7b-instruct` for a size.
    """
    family, colon, size = short.lower().partition(":")
    sizes = [w for w in _split(size) if w not in _INSTRUCT and not _EXPERTS.fullmatch(w)]
    return "".join(_split(family)) + colon + "-".join(sizes)


def family_key(short: str) -> str:
    """As `short_key`, of a short name without its size."""
    return short_key(short.partition(":")[0])


def _words(name: str) -> list[str]:
    """The words that tell models apart; the first is one whatever it is."""
    words = _split(_JOINED.sub("", name))
    if words[:2] == ["meta", "llama"]:
        words = words[1:]
    return words[:1] + [word for word in words[1:] if not _dropped(word)]


def _dropped(word: str) -> bool:
    patterns = (_PACKING, _EXPERTS, _DATE)
    return word in _INSTRUCT or any(pattern.fullmatch(word) for pattern in patterns)


def _split(text: str) -> list[str]:
    return [word for word in re.split(r"[-_\s]+", text) if word]
