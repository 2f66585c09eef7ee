"""Models on disk: how one is loaded (`ModelSpec`) and what its files say about it (`ModelCard`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from unicodedata import normalize

from mlxd.core.preset import Preset
from mlxd.core.request import Sampling

ENCODERS = frozenset((
    "bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet", "nomic_bert",
))  # fmt: skip
"""Types of models (`model_type` of a config.json) that make vectors and no text."""


def canonical(name: str) -> str:
    """Names are compared without case; `:latest` is implied and `:local` says nothing new. An
    accent is a part of its letter: macOS may have written it apart in the name of a folder.
    """
    lowered = normalize("NFC", name.strip().lower())
    for suffix in (":latest", ":local"):
        lowered = lowered.removesuffix(suffix)
    return lowered


def without_library(name: str) -> str:
    """The same without the library that Ollama's names imply, where that is said."""
    return name.strip().removeprefix("registry.ollama.ai/library/").removeprefix("library/")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """How one model is loaded. Equal specs share a worker; a changed one is another worker."""

    path: str
    """The real path of its folder: whatever alias names it, one folder is loaded once."""
    context: int
    """Tokens of prompt and answer together that it was made for."""
    adapter: str = ""
    """The folder of a LoRA adapter to put on the weights."""
    chat_template: str = ""
    """A file with the template to use in place of the model's own."""
    trust_remote_code: bool = False
    """Whether Python code in its folder may run."""
    kv_bits: int = 0
    """Bits of a number in its cache of keys and values; 0: as the model computes."""
    draft: str = ""
    """The real path of the folder of the model that drafts for it; empty: none does."""
    draft_tokens: int = 0
    """Tokens to draft in a step; 0: as many as pay."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model's own files say; read without loading it."""

    name: str
    """The catalogue's name for it."""
    path: str
    size_bytes: int
    digest: str
    """64 hex digits over names, sizes and headers of its files, and samples of the weights."""
    modified: float
    """Seconds since the epoch."""
    family: str
    """The architecture, such as `llama`."""
    parameters: int
    quantization: str
    """Such as `4bit`, else the data type of the weights, such as `bfloat16`."""
    context: int
    """Tokens of prompt and answer together that policy allows it; at most what it was made for."""
    capabilities: tuple[str, ...] = ()
    """Of completion, tools, thinking, embedding, insert, vision."""
    chat_template: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    """The model's own stored parameters (generation_config.json)."""
    config: dict[str, Any] = field(default_factory=dict)
    """config.json, with what a multimodal one says of its text model on top."""
    license: str = ""
    trained_context: int = 0
    """What it was made for; 0: the same as `context`."""
    touched: str = ""
    """Another one whenever a file that engines read was, be it by a copy that keeps its times."""
    unavailable: str = ""
    """Why it cannot be loaded; empty when it can."""
    fault: str = ""
    """The setting of its entry in models.yaml that is to blame for that; empty: its files are."""
    weights_bytes: int = 0
    """Of its tensors alone, by their headers, an adapter's included: what a loaded model holds."""
    experts_apart: bool = False
    """Its files hold each expert by itself: loading puts them together."""
    flaw: str = ""
    """Where its headers do not fit its files; policy decides whether it is loaded all the same."""
    held: str = ""
    """Why it is served as it was loaded before an edit; empty: it is as policy wants it."""
    outdated: str = ""
    """Why an earlier revision of it stands in for the one that counts; empty: that is whole."""
    foreign: bool = False
    """Nothing is wrong with it, it is just no text model that MLX loads."""
    code: str = ""
    """What Python of its own it names; empty: none."""
    needs_code: bool = False
    """Whether it cannot be loaded without that."""
    source: str = ""
    """Where it was found: folder, huggingface, lmstudio, pulled, created, declared or guide."""
    copy_of: str = ""
    """The catalogue's name of the model that this is one more name of; empty: none."""
    preset: Preset | None = None
    """What a client who created it wants said in each request."""
    short_name: str = ""
    """The name that people type for it, where that leads to it alone."""
    aliases: tuple[str, ...] = ()
    """More names that policy gives it."""
    adapter: str = ""
    """As in `ModelSpec`, and so are the four below."""
    template_file: str = ""
    trust_remote_code: bool = False
    kv_bits: int = 0
    draft_tokens: int = 0
    draft: ModelCard | None = None
    """The model that drafts for it."""
    undrafted: str = ""
    """Why none does, where policy names one."""

    @property
    def original(self) -> str:
        """The name by which policy limits it: a copy's own would let it escape."""
        return self.copy_of or self.name

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(
            path=self.path,
            context=self.trained_context or self.context,
            adapter=self.adapter,
            chat_template=self.template_file,
            trust_remote_code=self.trust_remote_code,
            kv_bits=self.kv_bits,
            draft=self.draft.path if self.draft is not None else "",
            draft_tokens=self.draft_tokens if self.draft is not None else 0,
        )
