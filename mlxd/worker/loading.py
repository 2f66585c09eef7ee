"""A model folder into a model that runs; or why not, in words without paths."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx_lm.utils
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper, _infer_tool_parser

from mlxd.core.footprint import Sharing
from mlxd.ipc.messages import Loading
from mlxd.worker.allocator import is_exhaustion
from mlxd.worker.architectures import classes_of
from mlxd.worker.encoder import Encoder
from mlxd.worker.formats import complete
from mlxd.worker.machine import has_gpu, has_reference_blas
from mlxd.worker.matrices import lay_out
from mlxd.worker.panic import is_panic
from mlxd.worker.quantised import QuantisedCache, quantised
from mlxd.worker.refusal import LoadError, Setting
from mlxd.worker.together import sharing

CACHE_LIMIT_BYTES = 2**30
"""Of freed buffers that MLX keeps for reuse on a GPU; its own default is most of the memory."""
LONGEST_REASON = 300
TELL_SECONDS = 0.1
"""Between two words about the weights: a tensor may take less to read."""
_WEIGHTS = "model*.safetensors"
"""Those that mlx-lm reads."""
_PLAIN = (nn.Linear, nn.Embedding)
"""Layers whose weights are not packed."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that has run one step."""

    model: Any
    tokenizer: TokenizerWrapper
    vocabulary: int
    """Token ids from here up would be read from beyond its tables."""
    width: int
    """Of a row of logits."""
    sharing: Sharing
    """What of its steps sequences share."""
    kv: QuantisedCache | None = None
    """How its caches are quantised, if they are."""

    @property
    def batchable(self) -> bool:
        return self.sharing != "none"

    @property
    def encodes(self) -> bool:
        """Whether it makes vectors and no text: it has neither caches nor logits."""
        return isinstance(self.model, Encoder)


def prepare_mlx() -> None:
    """Before any generator exists.

    mlx-lm would wire all the memory the machine recommends, once for each process; and on a CPU
    MLX would compile kernels with g++ into a folder that any local user can predict.
    """
    sys.modules["mlx_lm.generate"].maybe_set_recommended_wired_limit = lambda: None  # type: ignore[attr-defined]
    if has_gpu():
        mx.set_cache_limit(CACHE_LIMIT_BYTES)
    else:
        mx.disable_compile()


def load(
    folder: Path,
    *,
    adapter: Path | None = None,
    template: Path | None = None,
    trust: bool = False,
    kv_bits: int = 0,
    known: Sharing | None = None,
    tell: Callable[[Loading], None] = lambda at: None,
) -> Loaded:
    """`template` goes before the model's own; `trust`: code in its folder may run. `known`: what
    an earlier load has tried out. `tell` hears how far it is.

    Raises LoadError.
    """

    def stage(what: str, work: Callable[[], T], *, setting: Setting = "") -> T:
        return _stage(what, [folder, *filter(None, (adapter, template))], work, setting=setting)

    with _one_reader(_Reading(folder, tell)):
        model, config = stage(
            "the weights",
            lambda: mlx_lm.utils.load_model(
                folder, trust_remote_code=trust, get_model_classes=partial(classes_of, folder)
            ),
        )
    stage("the weights", lambda: _check_types(model))
    if adapter is not None:
        tell(Loading("adapter"))
        stage("the adapter", lambda: _adapt(model, adapter))
    tell(Loading("tokenizer"))
    tokenizer = stage("the tokenizer", lambda: _tokenizer(folder, config, trust, template))
    tell(Loading("first_step"))
    width = stage("a first step", lambda: _first_step(model))
    tokenizer.eos_token_ids = _ends(tokenizer, width)
    if has_reference_blas():
        tell(Loading("layout"))
        logits = 0 if isinstance(model, Encoder) else width
        stage("the weights", lambda: lay_out(model, logits))
    kv = None
    if kv_bits:
        kv = stage(f"kv_bits {kv_bits}", lambda: quantised(model, kv_bits), setting="kv_bits")
    vocabulary = min(width, _embedding_rows(model, config))
    alone = kv is not None or isinstance(model, Encoder)
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        width=width,
        sharing="none" if alone else known or sharing(model, vocabulary),
        kv=kv,
    )


class _Reading:
    """How much of a model's weights has been read, told now and then."""

    def __init__(self, folder: Path, tell: Callable[[Loading], None]) -> None:
        self._total = sum(file.stat().st_size for file in folder.glob(_WEIGHTS) if file.is_file())
        self._tell = tell
        self._done = 0
        self._told = time.monotonic()

    def add(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._told >= TELL_SECONDS:
            self._told = now
            self._tell(Loading("weights", min(self._done, self._total), self._total))


class _Counted(io.FileIO):
    """A file of weights that tells what is read of it."""

    def __init__(self, file: Any, reading: _Reading) -> None:
        super().__init__(file)
        self._reading = reading

    def readinto(self, buffer: Any, /) -> int | None:
        count = super().readinto(buffer)
        self._reading.add(count or 0)
        return count


def vocabulary_of(folder: Path) -> dict[str, int]:
    """The tokens of the model in a folder, and their ids. Raises LoadError."""

    def read() -> dict[str, int]:
        found: dict[str, int] = _tokenizer(folder, {}, False, None).get_vocab()
        return found

    return _stage("its tokenizer", [folder], read)


@contextmanager
def _one_reader(reading: _Reading) -> Iterator[None]:
    """Weights are read by one thread, which takes no longer.

    Given a path MLX reads with several at once, and where cores are few the workers that serve
    make no step meanwhile: their gaps beside a load of 400 MB on two cores were 3.0 times as long
    (p99), and are 1.7 times.
    """
    real = mx.load

    def load(file: Any, *arguments: Any, **options: Any) -> Any:
        if not str(file).endswith(".safetensors"):
            return real(file, *arguments, **options)
        with _Counted(file, reading) as stream:
            return real(stream, "safetensors", *arguments[1:], **options)

    mx.load = load
    try:
        yield
    finally:
        mx.load = real


def _check_types(model: Any) -> None:
    """MLX takes what others pack for whole numbers, and computes with those. Raises TypeError."""
    for name, module in model.named_modules():
        if type(module) in _PLAIN and not mx.issubdtype(module.weight.dtype, mx.floating):
            kind = str(module.weight.dtype).rpartition(".")[2]
            raise TypeError(f"{name}.weight is packed ({kind}) in a way that mlx-lm does not read")


def _stage(
    what: str, folders: Sequence[Path], work: Callable[[], T], *, setting: Setting = ""
) -> T:
    """`setting`: what it is that is done, where a model would load without it."""
    try:
        return work()
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        if is_exhaustion(error):
            words = f"{what}: there is not enough memory"
            raise LoadError(words, out_of_memory=True) from error
        raise LoadError(f"{what}: {_words(error, folders)}", setting=setting) from error


def _words(error: BaseException, folders: Sequence[Path]) -> str:
    """The first line of what was said, with the list that it announces, without any path of this
    machine.
    """
    said = f"there is no {error}" if isinstance(error, KeyError) else str(error)
    for folder in folders:
        said = said.replace(str(folder), "its folder")
    said = re.sub(r"(?<![\w.])/[^\s'\",;:)]+", "...", said)
    first, *rest = said.strip().splitlines() or [type(error).__name__]
    announced = rest if first.rstrip().endswith(":") else []
    words = " ".join([first.rstrip(), *map(str.strip, announced)])
    return re.sub(r"(?<!\.)\.$", "", words)[:LONGEST_REASON]


def _adapt(model: Any, adapter: Path) -> None:
    mlx_lm.utils.load_adapters(model, str(adapter))
    model.eval()
    mx.eval(model.parameters())


def _tokenizer(
    folder: Path, config: dict[str, Any], trust: bool, template: Path | None
) -> TokenizerWrapper:
    """Which tool calls it knows is read off its template, so that must be the one in force."""
    extra: dict[str, Any] = {"trust_remote_code": trust}
    if template is not None:
        extra["chat_template"] = template.read_text("utf-8")
    ends = config.get("eos_token_id")
    tokenizer = mlx_lm.utils.load_tokenizer(folder, extra, eos_token_ids=ends)
    if parser := _tool_parser(tokenizer):
        extra["tool_parser_type"] = parser
        tokenizer = mlx_lm.utils.load_tokenizer(folder, extra, eos_token_ids=ends)
    if template is not None:
        tokenizer._chat_template = None  # code, where a model has that in place of a template
    complete(tokenizer)
    return tokenizer


def _tool_parser(tokenizer: TokenizerWrapper) -> str | None:
    """By a template for requests with tools: of several templates mlx-lm looks at none."""
    named = tokenizer.chat_template
    if tokenizer.has_tool_calling or not isinstance(named, dict) or "tool_use" not in named:
        return None
    tokenizer.chat_template = named["tool_use"]
    found: str | None = _infer_tool_parser(tokenizer)
    tokenizer.chat_template = named
    return found


def _first_step(model: Any) -> int:
    """The width of its logits; and whatever a backend compiles at first use is compiled."""
    tokens = mx.array([[0]])
    if isinstance(model, Encoder):
        mx.eval(model(tokens))
        return model.args.vocab_size
    logits = model(tokens, cache=make_prompt_cache(model))
    mx.eval(logits)
    width: int = logits.shape[-1]
    return width


def _ends(tokenizer: TokenizerWrapper, width: int) -> set[int]:
    """The tokens that end an answer: what else configs have among them (null, -1, words, ids that
    have no logit) no step can give.
    """
    return {end for end in tokenizer.eos_token_ids if type(end) is int and 0 <= end < width}


def _embedding_rows(model: Any, config: dict[str, Any]) -> int:
    """The table of tokens is the longest of the embeddings (others hold positions)."""
    rows = [
        weight.shape[0]
        for name, weight in tree_flatten(model.parameters())
        if name.endswith("weight") and weight.ndim == 2 and _EMBEDDING.search(name)
    ]
    text = config.get("text_config") or {}
    stated = text.get("vocab_size") or config.get("vocab_size")
    known = ([max(rows)] if rows else []) + ([stated] if stated else [])
    return min(known, default=sys.maxsize)


_EMBEDDING = re.compile(r"(embed\w*|wte|word_embeddings|tok_embeddings)\.weight$")
