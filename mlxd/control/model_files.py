"""Reads what a model folder says about itself, without loading it: config, headers, template.

Everything that is shown of a folder is checked here: one that lies is unavailable, and no listing
fails because of it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxd.control.foreign import foreign_files, foreign_packing, foreign_type
from mlxd.control.quantization import quantization_of
from mlxd.control.reading import (
    NotJson,
    UnreadableModel,
    exists,
    in_words,
    json_members,
    json_object,
    raise_if_out,
    readable,
    text_of,
)
from mlxd.control.shape import LAYERS
from mlxd.control.weights import WEIGHTS, read_weights
from mlxd.core.infill import written_in
from mlxd.core.models import ENCODERS, ModelCard
from mlxd.core.request import Sampling

Json = dict[str, Any]
Mark = tuple[str, int, int, int]
Fingerprint = tuple[Mark, ...]
MORE_TEMPLATES = "additional_chat_templates"
SUMS = "SHA256SUMS"
_READ = (".safetensors", ".json", ".jinja", ".model", ".tiktoken", ".txt", ".py", SUMS)
"""The ends of the names of what an engine reads, and of what that may be held against."""
_DEFAULT_CONTEXT = 4096
_LARGEST = 2**48
_LONGEST_WORD = 100
_LONGEST_LICENSE = 100_000
_MOST_TOKENIZER_BYTES = 16 * 2**20
_TOKENIZER_HEAD = 2**19
"""Bytes."""
_LAST_SECOND = 253402300799.0
"""The end of the year 9999, the last that a date can show."""
_CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length")
_BUILT = (*LAYERS, "num_kv_reuse_layers", "altup_num_inputs")
"""What an engine builds one by one."""
_PADDED = ("roberta", "xlm-roberta", "camembert", "mpnet")
_THINKING = (
    "<think>", "<|channel>", "<longcat_think>", "<|think:start|>", "<|channel|>analysis", "[THINK]",
    "<seed:think>", "<|START_THINKING|>", "<|inner_prefix|>",
)  # fmt: skip


class ForeignModel(UnreadableModel):
    """Nothing is wrong with the folder; it is just no text model that MLX loads."""


def read_card(folder: Path, name: str) -> ModelCard:
    """The card of one folder; an unreadable one gets a card that says why (`unavailable`).

    Raises OutOfFiles.
    """
    try:
        before = fingerprint(folder)
        card = _read(folder, name, before)
        if read_of(fingerprint(folder)) != read_of(before):
            raise UnreadableModel("its files change while they are read")
        return card
    except (UnreadableModel, OSError) as error:
        if isinstance(error, OSError):
            raise_if_out(error)
        reason = str(error) if isinstance(error, UnreadableModel) else in_words(error)
        return ModelCard(
            name=readable(name),
            path=str(folder),
            size_bytes=0,
            digest=hashlib.sha256(os.fsencode(name)).hexdigest(),
            modified=0.0,
            family="unknown",
            parameters=0,
            quantization="unknown",
            context=0,
            unavailable=readable(reason),
            foreign=isinstance(error, ForeignModel),
        )


def count_of(config: Mapping[str, Any], key: str) -> int | None:
    """A number of a config that counts something; None where it is anything else."""
    value = config.get(key)
    return value if type(value) is int and 0 <= value < _LARGEST else None


def fingerprint(folder: Path) -> Fingerprint:
    """Changes when a file of the folder does: (name, size, mtime and ctime in ns) of each, and of
    each template that it has beside its own.

    The size is -1 of what is no file, and of a link that leads nowhere, which has no times either.
    Raises OSError.
    """
    marks = _marks(folder)
    if any(mark[0] == MORE_TEMPLATES for mark in marks):
        with suppress(OSError):  # what is no folder, or none that can be looked into, has none
            more = _marks(folder / MORE_TEMPLATES)
            marks += [(f"{MORE_TEMPLATES}/{mark[0]}", *mark[1:]) for mark in more]
    return tuple(sorted(marks))


def read_of(marks: Fingerprint) -> list[Mark]:
    """Those of files that engines read. Beside them there may be what grows all the while: what
    rsync has not received yet, a log.
    """
    return [mark for mark in marks if is_read(mark[0])]


def is_read(name: str) -> bool:
    return name.endswith(_READ) and not name.startswith(".")


def _marks(folder: Path) -> list[Mark]:
    with os.scandir(folder) as files:
        return [_mark(entry) for entry in files]


def _mark(entry: os.DirEntry[str]) -> Mark:
    try:
        status = entry.stat()
    except OSError:
        return entry.name, -1, 0, 0
    size = status.st_size if stat.S_ISREG(status.st_mode) else -1
    return entry.name, size, status.st_mtime_ns, status.st_ctime_ns


def with_template(card: ModelCard, template: str) -> ModelCard:
    """The card of the same model, told to use another chat template."""
    embeds, inserts = ("completion" not in card.capabilities, "insert" in card.capabilities)
    found = _capabilities(template, embeds, inserts=inserts)
    return replace(card, chat_template=template, capabilities=found)


def _read(folder: Path, name: str, marks: Fingerprint) -> ModelCard:
    real = _real(folder)
    config = _config(real, [mark[0] for mark in marks])
    text_config = config.get("text_config")
    shape: Json = config | (text_config if isinstance(text_config, dict) else {})
    quantization = quantization_of(config)
    weights = read_weights(real, quantization)
    if reason := foreign_packing(config, weights.kinds):
        raise ForeignModel(reason)
    tokenizer = _tokenizer(real / "tokenizer_config.json")
    template, for_tools = _templates(real, tokenizer)
    can_think = exists(real / "tokenizer.json")
    code, needs_code = _code(real, config, tokenizer)
    return ModelCard(
        name=readable(name),
        path=str(real),
        size_bytes=weights.file_bytes,
        weights_bytes=weights.tensor_bytes,
        digest=weights.digest,
        modified=_modified(read_of(marks)),
        touched=_touched(read_of(marks)),
        family=_word(config.get("model_type")),
        parameters=weights.parameters,
        quantization=quantization.name or weights.dtype,
        context=_context(shape),
        capabilities=_capabilities(
            template + for_tools,
            _embeds(real, config),
            can_think=can_think,
            inserts=_inserts(real),
        ),
        chat_template=template,
        sampling=_stored_sampling(_generation(real / "generation_config.json")),
        config=shape,
        license=_license(real),
        code=code,
        needs_code=needs_code,
        flaw=weights.flaw or _lacking((config, shape), weights.tensors),
        experts_apart=weights.experts_apart,
    )


def _real(folder: Path) -> Path:
    """Raises UnreadableModel for one that no engine could be told, OSError."""
    real = os.path.realpath(folder, strict=True)
    try:
        real.encode()
    except UnicodeEncodeError:
        raise UnreadableModel("the path of its folder is not UTF-8") from None
    return Path(real)


def _config(folder: Path, names: list[str]) -> Json:
    """config.json. Raises ForeignModel where this is no text model, config or not."""
    config = json_object(folder / "config.json") if "config.json" in names else {}
    reason = foreign_type(config)
    if not reason and not any(WEIGHTS.fullmatch(name) for name in names):
        reason = foreign_files(names)
    if reason:
        raise ForeignModel(reason)
    return config or json_object(folder / "config.json")


def _lacking(shapes: Iterable[Mapping[str, Any]], tensors: int) -> str:
    """Why there cannot be all of its layers, each of which has a tensor at least; empty where that
    may be. An engine builds all that a config says before it looks at the weights; some read what
    is on top, others what is below text_config.
    """
    stated = (shape.get(key) for shape in shapes for key in _BUILT)
    if any(type(count) is int and count > tensors for count in stated):
        return f"its config says of more layers than its weights have tensors ({tensors})"
    return ""


def _generation(path: Path) -> Json:
    """What is no JSON says nothing: mlx-lm passes over it, too."""
    try:
        return json_object(path) if exists(path) else {}
    except NotJson:
        return {}


def _tokenizer(path: Path) -> Json:
    """tokenizer_config.json, which may say much of single tokens: at least what is used here."""
    if not exists(path):
        return {}
    return json_members(path, ("chat_template", "auto_map"), _MOST_TOKENIZER_BYTES)


def _modified(marks: Iterable[Mark]) -> float:
    newest = max((mtime for _, size, mtime, _ in marks if size >= 0), default=0) / 1e9
    return min(max(newest, 0.0), _LAST_SECOND)


def _touched(marks: list[Mark]) -> str:
    return hashlib.blake2b(repr(marks).encode(), digest_size=8).hexdigest()


def _word(value: object) -> str:
    return readable(value[:_LONGEST_WORD]) if isinstance(value, str) and value else "unknown"


def _context(shape: Mapping[str, Any]) -> int:
    found = (count_of(shape, key) for key in _CONTEXT_KEYS)
    stated = next((context for context in found if context), _DEFAULT_CONTEXT)
    if shape.get("model_type") in _PADDED:  # whose table has rows that stand for no place
        padding = count_of(shape, "pad_token_id")
        return max(1, stated - 1 - (1 if padding is None else padding))
    return min(stated, count_of(shape, "max_trained_positions") or stated)


def _templates(folder: Path, tokenizer: Json) -> tuple[str, str]:
    """The chat template, and one for requests with tools where that is another."""
    separate = folder / "chat_template.jinja"
    if exists(separate):
        for_tools = folder / MORE_TEMPLATES / "tool_use.jinja"
        return _separate(folder, separate), _separate(folder, for_tools)
    named = tokenizer.get("chat_template", "")
    if isinstance(named, list):
        named = {str(t.get("name"))[:99]: t.get("template") for t in named if isinstance(t, dict)}
    if not isinstance(named, dict):
        return _text(named), ""
    usual = named.get("default") or next(iter(named.values()), "")
    return _text(usual), _text(named.get("tool_use"))


def _separate(folder: Path, file: Path) -> str:
    """A template in a file of its own; empty without one."""
    if not exists(file):
        return ""
    if not _is_own(folder, file):
        raise UnreadableModel(f"its {file.name} is a link out of its folder")
    return text_of(file)


def _text(value: object) -> str:
    """JSON may hold halves of a character that no encoding takes."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _embeds(folder: Path, config: Json) -> bool:
    """Whether it is an encoder, or packed for sentence-transformers: it makes vectors of texts."""
    if str(config.get("model_type")) in ENCODERS:
        return True
    return exists(folder / "config_sentence_transformers.json") or exists(folder / "1_Pooling")


def _inserts(folder: Path) -> bool:
    """Whether its tokenizer knows the marks of a gap; added tokens stand at a file's beginning."""
    files = (folder / "tokenizer.json", folder / "tokenizer_config.json")
    return any(written_in(text_of(f, _TOKENIZER_HEAD)) for f in files if exists(f))


def _capabilities(
    template: str, embeds: bool, *, can_think: bool = True, inserts: bool
) -> tuple[str, ...]:
    """What can be asked of it here; thinking needs a tokenizer that knows its marks."""
    if embeds:
        return ("embedding",)
    found = ["completion"]
    if "tools" in template:
        found.append("tools")
    if can_think and any(marker in template for marker in _THINKING):
        found.append("thinking")
    if inserts:
        found.append("insert")
    return (*found, "embedding")


def _code(folder: Path, config: Json, tokenizer: Json) -> tuple[str, bool]:
    """What of its own Python it names, in words, and whether mlx-lm cannot load it without.

    An auto_map matters only to a tokenizer, and not where a tokenizer.json is.
    """
    own = config.get("model_file")
    if own is not None:
        if not isinstance(own, str) or "/" in own or not (folder / own).is_file():
            raise UnreadableModel("its config names a model_file that is not in its folder")
        return readable(own[:_LONGEST_WORD]), True
    if tokenizer.get("auto_map"):
        return "auto_map", not exists(folder / "tokenizer.json")
    return ("auto_map" if config.get("auto_map") else ""), False


def _stored_sampling(stored: Json) -> Sampling:
    """generation_config.json; `do_sample: false` is greedy, whatever the temperature beside it."""

    def number(key: str, low: float, high: float) -> float | None:
        value = stored.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if low <= value <= high else None

    top_k = number("top_k", 0, 2**31)
    return Sampling(
        temperature=0.0 if stored.get("do_sample") is False else number("temperature", 0, 100),
        top_p=number("top_p", 0, 1),
        top_k=None if top_k is None else int(top_k),
        min_p=number("min_p", 0, 1),
        repeat_penalty=number("repetition_penalty", 0.01, 100),
    )


def _is_own(folder: Path, file: Path) -> bool:
    """Whether a file whose text is shown to whoever asks is of its folder, or of the repository in
    the hub's cache that the folder is a view of. A link may lead to anybody's secrets.
    """
    home = folder.parent.parent if folder.parent.name == "snapshots" else folder
    return Path(os.path.realpath(file)).is_relative_to(home)


def _license(folder: Path) -> str:
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md"):
        if (folder / name).is_file() and _is_own(folder, folder / name):
            return text_of(folder / name, _LONGEST_LICENSE)
    return ""
