"""Where models lie in a folder of models: plain, as LM Studio keeps them, as Hugging Face does.

Only looks; which of the places are models that can be served, their files say.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from mlxd.control.reading import OutOfFiles, UnreadableModel, raise_if_out, text_of

_MODEL_FILES = ("config.json", "model_index.json")
_MODEL_SUFFIXES = (".safetensors", ".gguf", ".npz", ".bin", ".pt", ".pth")
_TOKENIZERS = ("tokenizer.json", "tekken.json", "vocab.*", "*.model", "*.tiktoken")
_HUB_PREFIX = "models--"
_LONGEST_REVISION = 100


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that may be a model, under the name it would have."""

    name: str
    folder: Path
    source: str
    """As in `ModelCard`."""
    root: Path | None = None
    """The scanned folder it is in; None for a declared one, and for the guide."""
    earlier: bool = False
    """It is an earlier revision of the place before it, for while that is being fetched."""


def models_under(root: Path, source: str = "") -> Iterator[Place]:
    """`root/NAME`, `root/ORGANISATION/NAME` and a hub's cache; the root itself if it is a model.

    Raises OutOfFiles.
    """
    source = source or _source(root)
    if _looks_like_model(root):
        yield Place(root.name, root, source, root)
        return
    for child in _folders(root):
        if child.name.startswith(_HUB_PREFIX):
            yield from _in_hub_cache(child, root)
        elif _looks_like_model(child):
            yield Place(child.name, child, source, root)
        else:
            for inner in _folders(child):
                if _looks_like_model(inner):
                    yield Place(f"{child.name}/{inner.name}", inner, source, root)


def _source(root: Path) -> str:
    return "lmstudio" if {".lmstudio", "lm-studio"} & set(root.parts) else "folder"


def _in_hub_cache(repository: Path, root: Path) -> Iterator[Place]:
    """`models--ORGANISATION--NAME/snapshots/REVISION`: the revision that counts, then others."""
    name = repository.name.removeprefix(_HUB_PREFIX).replace("--", "/", 1)
    earlier = False
    for snapshot in _revisions(repository) if name else ():
        if _looks_like_model(snapshot):
            yield Place(name, snapshot, "huggingface", root, earlier=earlier)
            earlier = True


def _revisions(repository: Path) -> list[Path]:
    """What refs/main names, else the newest; then the newest first of those that were it before:
    what another ref names is another branch. A hub's client names a revision before it fetches it.
    """
    snapshots, refs = repository / "snapshots", repository / "refs"
    found = sorted(_folders(snapshots), key=_changed, reverse=True)
    main = _revision_in(refs / "main")
    if main and "/" not in main and not main.startswith(".") and (snapshots / main).is_dir():
        found = [snapshots / main, *(one for one in found if one.name != main)]
    if len(found) < 2:
        return found
    named = {_revision_in(ref) for ref in _refs(refs)}
    return [found[0], *(one for one in found[1:] if one.name not in named)]


def _refs(folder: Path) -> Iterator[Path]:
    """Branches, tags and pull requests (refs/pr/7). Raises OutOfFiles."""
    for inner, _, names in os.walk(folder, onerror=raise_if_out):
        yield from (Path(inner, name) for name in names)


def _revision_in(ref: Path) -> str:
    """Empty where it names none. Raises OutOfFiles."""
    try:
        return text_of(ref, _LONGEST_REVISION).strip()
    except OutOfFiles:
        raise
    except (UnreadableModel, OSError):
        return ""


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _folders(root: Path) -> list[Path]:
    """Folders, and links that lead nowhere: those are shown as unavailable."""
    try:
        with os.scandir(root) as entries:
            return sorted(
                Path(entry.path)
                for entry in entries
                if not entry.name.startswith(".") and _folder_or_dead_link(entry)
            )
    except OSError as error:
        raise_if_out(error)
        return []


def _folder_or_dead_link(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:
        return True  # a link that leads to itself


def _looks_like_model(folder: Path) -> bool:
    """A folder with a config or weights, one that cannot be read, or a link to nowhere."""
    try:
        with os.scandir(folder) as entries:
            return any(
                entry.name in _MODEL_FILES or entry.name.endswith(_MODEL_SUFFIXES)
                for entry in entries
            )
    except PermissionError:
        return True
    except OSError as error:
        raise_if_out(error)
        return folder.is_symlink()


def has_tokenizer(folder: Path) -> bool:
    """Whether there is a file that makes one, whatever is said of it beside. Raises OutOfFiles."""
    try:
        names = [file.name for file in folder.iterdir()]
    except OSError as error:
        raise_if_out(error)
        return False
    return any(fnmatchcase(name, pattern) for name in names for pattern in _TOKENIZERS)
