import asyncio
import json
import os
import threading
from difflib import get_close_matches
from pathlib import Path
from unicodedata import normalize

import pytest

from mlxd.control import catalog
from mlxd.control.catalog import STALE_SECONDS, Catalog
from mlxd.control.model_files import SUMS
from mlxd.control.names import Names
from mlxd.control.own_names import OwnName
from mlxd.control.scan import GUIDE, Scanner
from mlxd.core import written_names
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.errors import Forbidden, ModelLoadFailed, ModelNotFound, Overloaded
from mlxd.core.models import canonical
from mlxd.core.preset import Preset
from mlxd.core.request import Sampling
from mlxd.core.threads import Threads
from mlxd.policy.load import Override, load
from tests.control.test_checksums import by_list, flip, sha256
from tests.control.test_model_files import write_adapter, write_model, write_weights
from tests.support.daemon import write_policies
from tests.support.few_files import no_files
from tests.support.few_threads import no_threads
from tests.support.homeless import homeless

MANY = 30


class World:
    """A catalogue over folders that a test fills."""

    def __init__(self, root):
        self.root = root
        self.dirs = root / "models"
        self.dirs.mkdir()
        self.clock = ManualClock()
        self.pulled = root / "pulled"
        self.copies: dict[str, str] = {}
        self.presets: dict[str, Preset] = {}
        self.named: dict[str, OwnName] = {}
        guide = write_model(root / "guide")
        self.catalog = Catalog(guide, self.clock, self.pulled, names=self.own_names)
        self.declare("")

    def own_names(self):
        """The same object, as long as nothing changes: see OwnNames."""
        now = {
            name: OwnName(name, model, "copy", self.presets.get(name))
            for name, model in self.copies.items()
        }
        if now != self.named:
            self.named = now
        return self.named

    def declare(self, text):
        files = {"models": f"dirs: [{self.dirs}]\n{text}"}
        self.policies = load(write_policies(self.root / "policies", files))

    def change(self, models):
        """New policies come into force; `models` is the whole of models.yaml."""
        self.policies = load(write_policies(self.root / "policies", {"models": models}))
        self.catalog.apply(self.policies)

    def add(self, name, **what):
        return write_model(self.dirs / name, **what)

    async def names(self):
        self.clock.advance(10)
        return [card.name for card in await self.catalog.cards(self.policies)]

    async def resolve(self, name):
        return (await self.catalog.resolve(name, self.policies)).name

    async def card(self, name):
        self.clock.advance(10)
        cards = await self.catalog.cards(self.policies)
        return next(card for card in cards if card.name == name)

    async def refused(self, name, error=ModelNotFound):
        with pytest.raises(error) as caught:
            await self.resolve(name)
        return caught.value


def tenants_of(name, model):
    """One tenant, with one model."""
    return [Override("clients.tenants", f"{{{name}: {{models: [{model}]}}}}", "a test", yaml=True)]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


async def test_models_are_listed_by_name_and_the_guide_comes_last(world):
    world.add("zebra")
    world.add("Alpha")
    world.add("org/inner")
    assert await world.names() == ["Alpha", "org/inner", "zebra", GUIDE]


async def test_names_are_compared_without_case_tag_or_organisation(world):
    world.add("org/Inner-4bit")
    for name in ("org/Inner-4bit", "ORG/INNER-4BIT", "inner-4bit", "inner-4bit:latest"):
        assert await world.resolve(name) == "org/Inner-4bit"


@pytest.mark.parametrize("before", ["library/", "registry.ollama.ai/library/", "Library/"])
async def test_ollamas_library_is_implied(world, before):
    world.add("org/Inner-4bit")
    world.declare("models: {org/Inner-4bit: {aliases: [mine]}}\n")
    for name in ("inner-4bit", "org/Inner-4bit", "mine", "mine:latest"):
        assert await world.resolve(before + name) == "org/Inner-4bit"
    await world.refused(before + "other")
    world.add("library/inner-4bit")
    await world.names()
    assert await world.resolve("library/inner-4bit") == "library/inner-4bit", "that is its name"


async def test_an_accent_may_be_written_apart_from_its_letter(world):
    """As macOS writes it in names of folders, and keyboards do not."""
    world.add(normalize("NFD", "Modèle"))
    alias = normalize("NFD", "été")
    world.declare(f"models: {{Modèle: {{aliases: [{alias}]}}}}")
    for name in ("Modèle", "été"):
        assert await world.resolve(name) == normalize("NFD", "Modèle")


async def test_a_short_name_with_two_candidates_needs_the_whole_one(world):
    world.add("one/m")
    world.add("two/m")
    with pytest.raises(ModelNotFound):
        await world.resolve("m")
    assert await world.resolve("two/m") == "two/m"


async def test_default_is_the_first_by_name_and_kept_until_it_disappears(world):
    assert await world.resolve("default") == GUIDE
    folder = world.add("middle")
    await world.names()
    assert await world.resolve("default") == "middle"
    world.add("alpha")
    await world.names()
    assert await world.resolve("default") == "middle"
    folder.rename(world.root / "elsewhere")
    await world.names()
    assert await world.resolve("default") == "alpha"


async def test_a_model_that_was_mended_is_not_said_to_be_unavailable_for_long(world):
    """Though nobody asks for it, or for a list."""
    config = world.add("m") / "config.json"
    config.rename(world.root / "elsewhere")
    await world.names()
    assert [card.name for card in world.catalog.unavailable()] == ["m"]
    assert world.catalog._scans == {}, "it was looked at a moment ago"
    (world.root / "elsewhere").rename(config)
    world.clock.advance(STALE_SECONDS + 1)
    assert [card.name for card in world.catalog.unavailable()] == ["m"]
    await asyncio.gather(*world.catalog._scans.values())
    assert world.catalog.unavailable() == []
    world.clock.advance(STALE_SECONDS + 1)
    world.catalog.unavailable()
    assert world.catalog._scans == {}, "where nothing is wrong nothing is scanned"


async def test_what_is_no_text_model_is_not_looked_at_again_and_again(world):
    """Nobody means to use it, and nothing of it is to be mended."""
    world.add("diffuser", config={"model_type": "whisper"})
    assert (await world.card("diffuser")).foreign
    world.clock.advance(STALE_SECONDS + 1)
    assert world.catalog.unavailable() == []
    assert world.catalog._scans == {}


async def test_a_revision_that_was_fetched_is_not_said_to_be_missing_for_long(world):
    repository = world.dirs / "models--org--m"
    old, new = (repository / "snapshots" / one for one in ("old", "new"))
    write_model(old)
    write_model(new)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("new")
    weights = new / "model.safetensors"
    weights.rename(world.root / "elsewhere")
    assert (await world.card("org/m")).outdated
    (world.root / "elsewhere").rename(weights)
    world.clock.advance(STALE_SECONDS + 1)
    assert world.catalog.unavailable() == []
    await asyncio.gather(*world.catalog._scans.values())
    assert [card.path for card in world.catalog.known() if card.name == "org/m"] == [str(new)]


async def test_an_adapter_and_a_drafter_that_are_back_are_not_said_to_be_missing_for_long(world):
    """What was served before stays meanwhile: nothing is unavailable."""
    world.add("m")
    adapter, gone = write_adapter(world.root / "adapter"), world.root / "gone"
    world.declare(f"models: {{m: {{adapter: {adapter}}}, {GUIDE}: {{draft: small}}}}\n")
    world.catalog._predecessors.served(await world.card("m"))
    adapter.rename(gone)
    assert (await world.card("m")).held
    assert (await world.card(GUIDE)).undrafted
    for mend in (lambda: gone.rename(adapter), lambda: world.add("small")):
        mend()
        world.clock.advance(STALE_SECONDS + 1)
        assert world.catalog.unavailable() == []
        await asyncio.gather(*world.catalog._scans.values())
        assert not any(card.held for card in world.catalog.known())
    assert not any(card.undrafted for card in world.catalog.known())


async def test_files_that_are_no_model_when_they_are_to_be_loaded_are_the_catalogues_to_tell(world):
    folder = world.add("m")
    card = await world.card("m")
    (folder / "config.json").unlink()
    with pytest.raises(ModelLoadFailed) as caught:
        await world.catalog.check(card, world.policies)
    assert caught.value.of_files


async def test_a_broken_model_is_never_the_default(world):
    (world.add("alpha") / "model.safetensors").write_bytes(b"x")
    assert await world.resolve("default") == GUIDE
    with pytest.raises(ModelLoadFailed, match="cut short"):
        await world.resolve("alpha")


async def test_a_new_folder_is_found_without_a_restart(world):
    with pytest.raises(ModelNotFound):
        await world.resolve("late")
    world.add("late")
    world.clock.advance(10)
    assert await world.resolve("late") == "late"


async def test_a_folder_that_was_moved_behind_its_link_is_where_it_is_now(world):
    one, other = world.root / "one", world.root / "other"
    write_model(one)
    (world.dirs / "m").symlink_to(one)
    assert (await world.card("m")).path == str(one)
    one.rename(other)
    (world.dirs / "m").unlink()
    (world.dirs / "m").symlink_to(other)
    card = await world.card("m")
    assert (card.path, card.unavailable) == (str(other), "")


async def test_while_a_revision_is_fetched_the_one_before_is_served(world):
    repository = world.dirs / "models--org--m"
    write_model(repository / "snapshots" / "old")
    (repository / "refs").mkdir()
    main = repository / "refs" / "main"
    main.write_text("old")
    new = repository / "snapshots" / "new"
    for begun in ((), ("config.json",), ("config.json", "model-00001-of-00002.safetensors")):
        new.mkdir(exist_ok=True)
        for name in begun:
            write_weights(new / name, {"w": ("F16", [4])})
        if begun:
            (new / "config.json").write_text('{"model_type": "llama"}')
        main.write_text("new")
        card = await world.card("org/m")
        assert (card.path, card.unavailable) == (str(new.with_name("old")), "")
        assert bool(card.outdated) == bool(begun)
        assert await world.resolve("org/m") == "org/m"
    write_weights(new / "model-00002-of-00002.safetensors", {"v": ("F16", [4])})
    card = await world.card("org/m")
    assert (card.path, card.outdated) == (str(new), "")
    (new / "model-00002-of-00002.safetensors").unlink()
    (new.with_name("old") / "model.safetensors").unlink()
    assert "is missing" in (await world.card("org/m")).unavailable


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.txt"])
async def test_a_revision_whose_tokenizer_is_not_there_yet_is_not_whole(world, name):
    """Weights that are those of the revision before are there at once."""
    repository = world.dirs / "models--org--m"
    old, new = (repository / "snapshots" / one for one in ("old", "new"))
    write_model(old, files={name: "{}"})
    write_model(new, files={"tokenizer_config.json": "{}"})
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("new")
    card = await world.card("org/m")
    assert (card.path, card.outdated) == (str(old), "it has no tokenizer")
    (new / "tokenizer.json").write_text("{}")
    card = await world.card("org/m")
    assert (card.path, card.outdated) == (str(new), "")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model-Q4_K_M.gguf"])
async def test_other_weights_that_are_fetched_first_do_not_make_a_revision_whole(world, name):
    repository = world.dirs / "models--org--m"
    old = write_model(repository / "snapshots" / "old")
    new = repository / "snapshots" / "new"
    new.mkdir()
    (new / name).write_text("fetched before the rest")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("new")
    card = await world.card("org/m")
    assert (card.path, card.unavailable, bool(card.outdated)) == (str(old), "", True)


@pytest.mark.parametrize("ref", ["8bit", "refs/pr/7"])
async def test_another_branch_is_no_earlier_revision(world, ref):
    repository = world.dirs / "models--org--m"
    write_model(repository / "snapshots" / "branch")
    new = repository / "snapshots" / "new"
    new.mkdir()
    (new / "config.json").write_text("{}")
    for name, revision in (("main", "new"), (ref, "branch")):
        file = repository / "refs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(revision)
    card = await world.card("org/m")
    assert (card.path, bool(card.unavailable), card.outdated) == (str(new), True, "")


async def test_a_default_that_was_removed_is_replaced_without_anybody_asking_for_a_list(world):
    folder = world.add("first")
    world.add("second")
    assert await world.resolve("default") == "first"
    folder.rename(world.root / "elsewhere")
    world.clock.advance(10)
    await world.resolve("default")
    for _ in range(100):
        if await world.resolve("default") == "second":
            break
        await asyncio.sleep(0.01)
    assert await world.resolve("default") == "second"


async def test_an_unknown_name_is_told_the_nearest(world):
    world.add("qwen2.5-coder")
    with pytest.raises(ModelNotFound, match=r"did you mean qwen2\.5-coder"):
        await world.resolve("qwen2.5-codr")
    for hostile in ("", "../../etc", "/etc/passwd", "a\0b", "x" * 5000):
        with pytest.raises(ModelNotFound):
            await world.resolve(hostile)


async def test_a_chain_takes_its_first_model_that_is_there(world):
    world.add("small")
    world.declare("chains: {coding: [large, small], default: [small]}\n")
    assert await world.resolve("coding") == "small"
    assert await world.resolve("default") == "small"
    with pytest.raises(ModelNotFound) as refused:
        await world.resolve("reasoning")
    assert refused.value.policy is not None
    assert refused.value.policy.key == "models.chains.reasoning"


async def test_aliases_and_declared_paths_lead_to_one_spec(world):
    folder = write_model(world.root / "elsewhere" / "m")
    (world.dirs / "link").symlink_to(folder)
    world.declare(f"models:\n  named: {{path: {folder}, aliases: [nick]}}\n")
    await world.names()
    specs = {
        (await world.catalog.resolve(name, world.policies)).spec
        for name in ("named", "nick", "link")
    }
    assert len(specs) == 1


async def test_a_shorter_context_is_no_other_copy_of_the_weights(world):
    folder = world.add("m")
    world.declare(f"models:\n  short: {{path: {folder}, context: 512}}\n")
    short = await world.catalog.resolve("short", world.policies)
    whole = await world.catalog.resolve("m", world.policies)
    assert (short.context, whole.context) == (512, 2048)
    assert short.spec == whole.spec


async def test_settings_find_their_model_however_the_name_is_written(world):
    world.add("Small-Model")
    world.declare("models:\n  small-model:latest: {context: 99}\n")
    assert (await world.catalog.resolve("Small-Model", world.policies)).context == 99


async def test_policy_may_shorten_the_context_and_not_lengthen_it(world):
    world.add("m")
    world.declare("defaults: {context: 512}\n")
    assert (await world.catalog.resolve("m", world.policies)).context == 512
    world.declare("models:\n  m: {context: 999999}\n")
    await world.names()
    assert (await world.catalog.resolve("m", world.policies)).context == 2048


async def test_one_bad_root_does_not_hide_the_others(world, tmp_path):
    world.add("m")
    files = {"models": f"dirs: [/nonexistent/x, {world.dirs}]\n"}
    world.policies = load(write_policies(tmp_path / "policies", files))
    assert await world.names() == ["m", GUIDE]


class Gate:
    """Counts scans, and holds up those of a folder while it is shut."""

    def __init__(self, monkeypatch):
        self.scans = 0
        self.shut: dict[Path, threading.Event] = {}
        read = Scanner.read

        def gated(scanner, scope):
            self.scans += 1
            for root in scope.roots:
                if root in self.shut:
                    self.shut[root].wait()
            return read(scanner, scope)

        monkeypatch.setattr(Scanner, "read", gated)

    def close(self, root):
        self.shut[root] = threading.Event()

    def open(self):
        for event in self.shut.values():
            event.set()


@pytest.fixture
def gate(monkeypatch):
    made = Gate(monkeypatch)
    yield made
    made.open()


async def test_a_model_of_an_added_folder_is_there_for_the_next_request(world):
    world.add("m")
    await world.resolve("m")
    other = write_model(world.root / "other" / "late").parent
    world.change(f"dirs: [{world.dirs}, {other}]\n")
    assert await world.resolve("late") == "late"


async def test_other_folders_are_scanned_without_anybody_asking(world):
    await world.resolve("default")
    other = write_model(world.root / "other" / "late").parent
    world.change(f"dirs: [{other}]\n")
    for _ in range(500):
        if len(world.catalog.known()) == 2:
            break
        await asyncio.sleep(0.01)
    assert [card.name for card in world.catalog.known()] == ["late", GUIDE]


async def test_a_removed_folder_takes_its_models_along_at_once(world):
    world.add("m")
    await world.resolve("m")
    world.change("dirs: []\n")
    assert [card.name for card in world.catalog.known()] == [GUIDE]
    with pytest.raises(ModelNotFound):
        await world.resolve("m")
    assert [card.name for card in await world.catalog.cards(world.policies)] == [GUIDE]


async def test_what_is_right_all_the_same_is_answered_while_a_disk_hangs(world, gate):
    for name in ("m", "small", "org/inner"):
        world.add(name)
    more = "chains: {coding: [large, small]}\nmodels: {small: {aliases: ['any*']}}\n"
    world.declare(more)
    await world.resolve("m")
    hung = write_model(world.root / "hung" / "large").parent
    gate.close(hung)
    world.change(f"dirs: [{world.dirs}, {hung}]\n{more}")
    for name in ("m", "org/inner", GUIDE, "default"):
        await asyncio.wait_for(world.resolve(name), 5)
    unsure = ("coding", "inner", "large", "anything")
    waiting = [asyncio.create_task(world.resolve(name)) for name in unsure]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in waiting), "what the new folder holds may change these"
    assert world.catalog.default(world.policies) == "m"
    gate.open()
    assert await asyncio.gather(*waiting) == ["large", "org/inner", "large", "small"]


async def test_what_may_be_found_elsewhere_first_is_not_answered_by_the_old_scan(world, gate):
    world.add("m")
    old = (await world.catalog.resolve("m", world.policies)).spec
    other = write_model(world.root / "other" / "m").parent
    gate.close(other)
    for models in (
        f"dirs: [{other}, {world.dirs}]\n",
        f"dirs: [{world.dirs}, {other}]\nmodels: {{M: {{path: {other / 'm'}}}}}\n",
    ):
        world.change(models)
        task = asyncio.create_task(world.catalog.resolve("m", world.policies))
        await asyncio.sleep(0.05)
        assert not task.done()
        gate.open()
        assert (await task).spec != old
        gate.close(other)


async def test_a_declared_path_that_stays_is_answered_and_one_that_moved_is_not(world, gate):
    first, second = (write_model(world.root / name) for name in ("one", "two"))
    stays = f"stays: {{path: {first}}}"
    world.declare(f"models:\n  {stays}\n  moves: {{path: {first}}}\n")
    await world.resolve("stays")
    gate.close(world.dirs)
    world.change(f"dirs: [{world.dirs}]\nmodels:\n  {stays}\n  moves: {{path: {second}}}\n")
    await asyncio.wait_for(world.resolve("stays"), 5)
    assert world.catalog.find("moves", world.policies) is None
    gate.open()
    assert (await world.catalog.resolve("moves", world.policies)).path == str(second)


async def test_a_scan_for_other_folders_does_not_count(world, gate):
    await world.resolve("default")
    world.clock.advance(10)
    gate.close(world.dirs)
    before = asyncio.create_task(world.catalog.cards(world.policies))
    await asyncio.sleep(0.05)
    other = write_model(world.root / "other" / "late").parent
    world.change(f"dirs: [{other}]\n")
    assert await asyncio.wait_for(world.resolve("late"), 5) == "late"
    gate.open()
    await before
    assert await world.resolve("late") == "late"


async def test_folders_are_scanned_again_only_where_others_count(world, gate):
    world.add("m")
    await world.resolve("m")
    same = f"dirs: [{world.dirs}]\n"
    world.change(f"{same}preload: [m]\nchains: {{coding: [m]}}\ndefaults: {{ttl: 1m}}\n")
    assert await world.resolve("coding") == "m"
    world.change(f"{same}models: {{m: {{aliases: [nick], context: 99}}}}\n")
    assert (await world.catalog.resolve("nick", world.policies)).context == 99
    await world.catalog.refreshed(world.policies)
    await asyncio.sleep(0.05)
    assert gate.scans == 1


async def test_a_request_keeps_the_names_of_its_policies(world):
    world.add("m")
    await world.resolve("m")
    old = world.policies
    world.change("dirs: []\n")
    assert (await world.catalog.resolve("m", old)).name == "m"
    await world.catalog.refreshed(world.policies)
    assert (await world.catalog.resolve("m", old)).name == "m"
    assert [card.name for card in world.catalog.known()] == [GUIDE]


async def test_the_default_outlasts_a_change_of_folders(world):
    world.add("middle")
    await world.resolve("default")
    other = write_model(world.root / "other" / "alpha").parent
    world.change(f"dirs: [{other}, {world.dirs}]\n")
    await world.catalog.refreshed(world.policies)
    assert await world.resolve("default") == "middle"


async def test_names_are_worked_out_anew_only_where_something_has_changed(world, monkeypatch):
    made: list[Names] = []
    copies: dict[str, OwnName] = {}

    def counted(*arguments, **options):
        made.append(Names(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(catalog, "Names", counted)
    world.catalog = Catalog(world.root / "guide", world.clock, names=lambda: copies)
    world.add("m")
    for _ in range(5):
        assert await world.names() == ["m", GUIDE]
    assert len(made) == 1
    world.add("n")
    assert await world.names() == ["m", "n", GUIDE]
    assert len(made) == 2
    world.catalog.apply(world.policies)
    assert await world.names() == ["m", "n", GUIDE]
    assert len(made) == 2, "an edit of other files leaves these policies as they are"


async def test_names_of_many_models_and_many_entries_are_compared_once_each(world, monkeypatch):
    said = 0

    def counted(name):
        nonlocal said
        said += 1
        return canonical(name)

    for number in range(MANY):
        world.add(f"org/m{number}-1b-4bit")
    entries = "".join(f"  m{number}: {{context: 99}}\n" for number in range(MANY))
    world.declare(f"models:\n{entries}")
    monkeypatch.setattr(written_names, "canonical", counted)
    await world.names()
    assert MANY <= said <= 10 * MANY


async def test_equal_policies_that_come_as_many_objects_are_not_kept(world):
    world.add("m")
    for _ in range(20):
        world.declare("")
        await world.resolve("m")
    assert len(world.catalog._views) <= 8
    world.change(f"dirs: [{world.dirs}]\n")
    await world.resolve("m")
    assert len(world.catalog._views) == 1, "those of earlier generations are let go"


CODER = "Qwen2.5-Coder-32B-Instruct-4bit"


async def test_a_model_answers_to_the_name_that_people_type(world):
    world.add(f"mlx-community/{CODER}")
    world.add("Llama-3.2-3B-Instruct-4bit")
    for name in ("qwen2.5-coder:32b", "Qwen2.5-Coder:32B", "qwen2.5-coder", CODER):
        assert await world.resolve(name) == f"mlx-community/{CODER}"
    assert await world.resolve("llama3.2:3b") == "Llama-3.2-3B-Instruct-4bit"
    card = await world.card(f"mlx-community/{CODER}")
    assert card.short_name == "qwen2.5-coder:32b"
    for name in ("qwen2.5:32b", "qwen2.5-coder:7b", "qwen", "coder:32b", "32b"):
        await world.refused(name)


async def test_a_short_name_with_two_candidates_is_refused_with_both(world):
    for name in (CODER, "org/Qwen2.5-Coder-32B-Instruct-8bit", "Qwen2.5-Coder-7B-Instruct-4bit"):
        world.add(name)
    refused = await world.refused("qwen2.5-coder:32b")
    both = f"it may be {CODER} or org/Qwen2.5-Coder-32B-Instruct-8bit;"
    assert both in refused.message
    assert "Qwen2.5-Coder-7B-Instruct-4bit" in (await world.refused("qwen2.5-coder")).message
    assert await world.resolve("qwen2.5-coder:7b") == "Qwen2.5-Coder-7B-Instruct-4bit"
    assert (await world.card(CODER)).short_name == ""
    assert "did you mean" in (await world.refused("qwen2.5-coder:3b")).message


async def test_of_many_candidates_some_are_named_and_the_others_counted(world):
    for number in range(10, 10 + MANY):
        world.add(f"org/Qwen2.5-Coder-{number}B-4bit")
    message = (await world.refused("qwen2.5-coder")).message
    assert message.count("org/Qwen2.5-Coder-") == 8
    assert f"17B-4bit or one of {MANY - 8} more; ask by" in message


async def test_of_many_names_few_are_compared_letter_by_letter(world, monkeypatch):
    compared = []

    def counted(wanted, names, **limits):
        compared.extend(names)
        return get_close_matches(wanted, names, **limits)

    for number in range(10, 10 + MANY):
        world.add(f"org/Granite-{number}B-4bit")
    world.add("org/Qwen2.5-Coder-7B-4bit")
    monkeypatch.setattr("difflib.get_close_matches", counted)
    message = (await world.refused("qwen2.5-codr-7b")).message
    assert "did you mean qwen2.5-coder:7b" in message
    assert len(compared) < MANY


async def test_what_cannot_be_served_makes_no_short_name_ambiguous(world):
    world.add(CODER)
    gguf = world.dirs / "lmstudio-community" / "Qwen2.5-Coder-32B-Instruct-GGUF"
    gguf.mkdir(parents=True)
    (gguf / "q.gguf").touch()
    assert await world.resolve("qwen2.5-coder:32b") == CODER
    (world.dirs / "again-4bit").symlink_to(world.dirs / CODER)
    (world.dirs / "Qwen2.5-Coder-32B-4bit").symlink_to(world.dirs / CODER)
    await world.names()
    assert await world.resolve("qwen2.5-coder:32b") == "Qwen2.5-Coder-32B-4bit", "one folder"


async def test_what_is_written_wins_over_a_short_name(world):
    world.add(CODER)
    world.add("small")
    world.declare("models: {small: {aliases: ['qwen2.5-coder:32b']}}\n")
    assert await world.resolve("qwen2.5-coder:32b") == "small"
    assert await world.resolve("qwen2.5-coder") == CODER
    assert (await world.card(CODER)).short_name == ""
    world.declare("models: {small: {aliases: ['qwen*']}}\n")
    assert await world.resolve("qwen2.5-coder:32b") == "small"
    assert await world.resolve(CODER) == CODER
    world.declare("chains: {'qwen2.5-coder:32b': [small]}\n")
    assert await world.resolve("qwen2.5-coder:32b") == "small"


async def test_a_chain_and_an_entry_may_name_a_model_by_its_short_name(world):
    world.add(CODER)
    world.declare(
        "chains: {coding: ['qwen2.5-coder:32b'], fast: [nick]}\n"
        "models: {'qwen2.5-coder:32b': {aliases: [nick, 'claude-*'], context: 99}}\n"
    )
    for name in ("coding", "fast", "nick", "claude-opus"):
        assert await world.resolve(name) == CODER
    card = await world.card(CODER)
    assert (card.context, card.aliases) == (99, ("nick", "claude-*"))


async def test_of_aliases_with_a_star_the_one_with_the_longest_beginning_counts(world):
    for name in ("a", "b", "c", "org/gpt-x"):
        world.add(name)
    world.declare(
        "models:\n  a: {aliases: ['*', 'claude-*-fast']}\n"
        "  b: {aliases: ['claude-*', '*-4']}\n  c: {aliases: ['claude-opus*', 'claude-exact']}\n"
    )
    for name, model in {
        "claude-sonnet": "b",
        "Claude-Opus-4.5": "c",
        "claude-exact": "c",
        "claude-x-fast": "a",
        "gpt-4": "b",
        "whatever": "a",
        "gpt-x": "org/gpt-x",
        "a": "a",
    }.items():
        assert await world.resolve(name) == model, name
    refused = await world.refused("reasoning")
    assert "chains: {reasoning: [MODEL]}" in refused.message, "an empty chain is no unknown name"
    await world.refused("")


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
async def test_of_aliases_with_a_star_that_fit_alike_the_same_counts_in_whatever_order(
    world, order
):
    for name in order:
        world.add(name)
    world.declare("models:\n" + "".join(f"  {n}: {{aliases: ['x*{n}*']}}\n" for n in order))
    assert await world.resolve("x-ab") == "a"


async def test_an_alias_of_an_entry_that_leads_nowhere_is_not_found(world):
    world.declare("models: {'gone:7b': {aliases: ['*', nick]}}\n")
    for name in ("nick", "anything", "gone:7b"):
        await world.refused(name)


async def test_settings_count_for_every_model_of_a_short_name_and_the_whole_name_first(world):
    for name in (CODER, "org/Qwen2.5-Coder-32B-Instruct-8bit", "Qwen2.5-Coder-7B"):
        world.add(name)
    world.declare(f"models:\n  'qwen2.5-coder:32b': {{context: 64}}\n  {CODER}: {{context: 32}}\n")
    contexts = {c.name: c.context for c in await world.catalog.cards(world.policies)}
    assert contexts[CODER] == 32
    assert contexts["org/Qwen2.5-Coder-32B-Instruct-8bit"] == 64
    assert contexts["Qwen2.5-Coder-7B"] == 2048


async def test_a_copy_is_a_model_of_its_own_name_and_the_same_weights(world):
    world.add(CODER)
    world.add("small")
    await world.names()
    world.copies = {"mine": CODER, "again:1b": "mine", "lost": "gone", "small": CODER}
    assert await world.resolve("Mine:latest") == "mine"
    assert (await world.card("mine")).spec == (await world.card(CODER)).spec
    assert [(await world.card(name)).original for name in ("mine", CODER)] == [CODER, CODER]
    assert await world.resolve("small") == "small", "a folder is not hidden by a copy"
    await world.refused("lost")
    assert (await world.names())[-1] == GUIDE
    assert await world.resolve("default") == CODER
    world.copies = {}
    await world.refused("mine")


async def test_a_created_model_is_loaded_as_the_one_it_was_made_of(world):
    files = {"chat_template.jinja": "{{ tools }}", "generation_config.json": '{"top_k": 20}'}
    world.add("m", files=files)
    world.declare("models: {m: {sampling: {temperature: 0.1, top_p: 0.5}}}")
    world.copies = {"kind": "m", "small": "m"}
    said = Sampling(temperature=0.9)
    world.presets = {
        "kind": Preset(system="S", template="T", sampling=said, context=10**9, license="L"),
        "small": Preset(context=64),
    }
    plain, kind, small = [await world.card(name) for name in ("m", "kind", "small")]
    assert plain.spec == kind.spec == small.spec
    assert (kind.chat_template, kind.license, kind.preset.system) == ("T", "L", "S")
    assert ("tools" in plain.capabilities, "tools" in kind.capabilities) == (True, False)
    wanted = Sampling(temperature=0.9, top_p=0.5, top_k=20)
    assert kind.sampling == wanted, "who created it, then models.yaml, then its files"
    assert (plain.context, kind.context, small.context) == (2048, 2048, 64)
    world.presets = {"kind": Preset(system="other")}
    assert (await world.card("kind")).preset == Preset(system="other")


async def test_a_model_of_uploaded_files_has_what_is_said_of_its_own_name(world):
    world.add("m")
    world.copies, world.presets = {"m": "m"}, {"m": Preset(system="S")}
    card = await world.card("m")
    assert (card.preset, card.copy_of) == (Preset(system="S"), "")


async def test_a_folder_takes_nothing_from_a_created_model_of_its_name(world):
    world.add("m")
    world.add("small")
    world.copies, world.presets = {"small": "m"}, {"small": Preset(system="S")}
    assert (await world.card("small")).preset is None


async def test_what_was_pulled_is_found_before_a_folder_of_its_name(world):
    world.add("org/m")
    assert (await world.card("org/m")).source == "folder"
    write_model(world.pulled / "org" / "m")
    card = await world.card("org/m")
    assert (card.source, card.path) == ("pulled", str(world.pulled / "org" / "m"))
    world.change("dirs: []\n")
    assert world.catalog.find("org/m", world.policies).path == card.path


async def test_a_flawed_model_is_shown_and_served_only_where_policy_says_so(world):
    folder = world.add("m")
    world.add("good")
    write_weights(folder / "model.safetensors", {"w": ("F16", [4])}, trailing=b"x")
    refused = await world.refused("m", ModelLoadFailed)
    assert "its last 1 bytes are no tensor's" in refused.message
    assert await world.resolve("good") == "good"
    world.declare("defaults: {verify: none}\n")
    assert await world.resolve("m") == "m"
    world.declare("")
    write_weights(folder / "model.safetensors", {"w": ("F16", [4])})
    world.clock.advance(2)
    assert await world.resolve("m") == "m", "it is read anew as soon as it changes"


@pytest.mark.parametrize("setting", ["path", "adapter", "chat_template"])
async def test_a_user_without_a_home_is_served(world, monkeypatch, setting):
    homeless(monkeypatch)
    world.add("m")
    world.add("other")
    world.declare(f"models: {{other: {{{setting}: ~/nowhere}}}}\n")
    assert await world.resolve("m") == "m"


async def test_bytes_are_compared_before_a_load_where_policy_says_so(world):
    folder = world.add("m")
    world.add("good")
    by_list(folder)
    flip(folder / "model.safetensors")
    assert await world.resolve("m") == "m"
    world.declare("defaults: {verify: sha256}\n")
    assert (await world.catalog.look_up("m", world.policies)).name == "m", "shown without that"
    tenants = load(world.root / "policies", tenants_of("agents", "other"))
    with pytest.raises(Forbidden):
        await world.catalog.resolve("m", tenants, Caller("10.0.0.1", "k", "agents"))
    refused = await world.refused("m", ModelLoadFailed)
    assert "recorded checksum" in refused.message
    assert "recorded checksum" in world.catalog.find("m", world.policies).unavailable
    assert "recorded checksum" in (await world.card("m")).unavailable
    assert await world.resolve("good") == await world.resolve("default") == "good"
    flip(folder / "model.safetensors")
    world.clock.advance(10)
    assert await world.resolve("m") == "m"


async def test_a_list_of_checksums_that_was_mended_is_held_against_the_files_again(world):
    folder = world.add("m")
    by_list(folder)
    right = (folder / SUMS).read_text()
    (folder / SUMS).write_text(f"{'0' * 64} *model.safetensors\n")
    world.declare("defaults: {verify: sha256}\n")
    assert "recorded checksum" in (await world.refused("m", ModelLoadFailed)).message
    (folder / SUMS).write_text(right)
    world.clock.advance(10)
    assert await world.resolve("m") == "m"


async def test_damage_that_was_mended_by_a_copy_that_keeps_times_is_damage_no_more(world):
    """As `rsync -a` does: the newest of the files is as old as before."""
    folder = world.add("m", files={"vocab.txt": "a b c"})
    (folder / SUMS).write_text(f"{sha256(folder / 'vocab.txt')} *vocab.txt\n")
    world.declare("defaults: {verify: sha256}\n")
    before = (folder / "vocab.txt").stat()
    flip(folder / "vocab.txt")
    os.utime(folder / "vocab.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "recorded checksum" in (await world.refused("m", ModelLoadFailed)).message
    flip(folder / "vocab.txt")
    os.utime(folder / "vocab.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    world.clock.advance(10)
    assert await world.resolve("m") == "m"


async def test_what_policy_adds_to_a_model_makes_it_another_worker(world):
    folder = world.add("m", config={"auto_map": {"x": "y"}})
    plain = await world.catalog.resolve("m", world.policies)
    adapter = write_adapter(world.root / "adapter")
    template = world.root / "t.jinja"
    template.write_text("{{ tools }}<think>")
    world.declare(
        f"models: {{m: {{adapter: {adapter}, chat_template: {template}, kv_bits: 8, "
        "trust_remote_code: true}}\n"
    )
    card = await world.catalog.resolve("m", world.policies)
    spec = card.spec
    assert (spec.path, spec.adapter) == (str(folder), str(adapter))
    assert (spec.chat_template, spec.kv_bits, spec.trust_remote_code) == (str(template), 8, True)
    assert spec != plain.spec
    assert card.chat_template == "{{ tools }}<think>"
    assert card.capabilities == ("completion", "tools", "thinking", "embedding")
    assert card.weights_bytes == plain.weights_bytes + 12
    assert card.digest != plain.digest
    template.write_text("none of it")
    assert (await world.card("m")).capabilities == ("completion", "embedding")


async def test_trust_in_code_that_a_model_has_not_is_no_other_worker(world):
    world.add("m")
    plain = await world.catalog.resolve("m", world.policies)
    world.declare("models: {m: {trust_remote_code: true, context: 64}}\n")
    assert (await world.catalog.resolve("m", world.policies)).spec == plain.spec


async def test_a_model_that_needs_code_says_so_until_it_is_trusted(world):
    world.add("m", config={"model_file": "own.py"}, files={"own.py": ""})
    refused = await world.refused("m", ModelLoadFailed)
    assert "own.py" in refused.message
    assert "models.models.m.trust_remote_code: true would allow that" in refused.message
    assert refused.policy.key == "models.models.m.trust_remote_code"
    assert refused.policy.value == "false"
    assert refused.would_pass == "the same request once models.models.m.trust_remote_code is true"
    world.declare("models: {m: {trust_remote_code: true}}\n")
    assert (await world.catalog.resolve("m", world.policies)).spec.trust_remote_code


def _cut(folder):
    file = folder / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda f: (f / "adapters.safetensors").unlink(), "adapters.safetensors cannot be read"),
        (lambda f: (f / "adapter_config.json").unlink(), "it has no adapter_config.json"),
        (lambda f: (f / "adapter_config.json").write_text("["), "adapter_config.json is not JSON"),
        (
            lambda f: (f / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}'),
            "its adapter_config.json is PEFT's",
        ),
        (lambda f: f.rename(f.with_name("elsewhere")), "no such file or directory"),
        (_cut, "its adapters.safetensors is cut short"),
    ],
)
async def test_an_adapter_that_cannot_be_used_makes_its_model_unavailable(world, damage, why):
    world.add("m")
    world.add("other")
    adapter = write_adapter(world.root / "adapter")
    damage(adapter)
    world.declare(f"models: {{m: {{adapter: {adapter}}}}}\n")
    refused = await world.refused("m", ModelLoadFailed)
    assert "its adapter cannot be used: " in refused.message
    assert why in refused.message
    assert str(world.root) not in refused.message
    assert await world.resolve("other") == "other"
    elsewhere = world.root / "elsewhere"
    if elsewhere.exists():
        elsewhere.rename(adapter)
    write_adapter(adapter)
    world.clock.advance(10)
    assert await world.resolve("m") == "m"


async def test_what_is_wrong_with_a_model_is_not_told_to_whoever_may_not_use_it(world):
    world.add("m")
    world.declare("models: {m: {adapter: /nowhere/secret}}\n")
    policies = load(world.root / "policies", tenants_of("agents", "other"))
    with pytest.raises(Forbidden):
        await world.catalog.resolve("m", policies, Caller("10.0.0.1", "k", "agents"))
    with pytest.raises(ModelLoadFailed):
        await world.catalog.resolve("m", policies, Caller("10.0.0.1"))


@pytest.mark.parametrize("setting", ["adapter", "chat_template"])
async def test_what_policy_adds_and_is_away_just_now_is_waited_for(world, setting):
    """An answer that was begun with it is not to end because it is not there for a moment."""
    added, gone = write_adapter(world.root / "adapter"), world.root / "gone"
    if setting == "chat_template":
        added = world.root / "t.jinja"
        added.write_text("{{ messages }}")
    world.add("m")
    world.declare(f"models: {{m: {{{setting}: {added}}}}}\n")
    card = await world.catalog.resolve("m", world.policies)
    added.rename(gone)
    with pytest.raises(ModelLoadFailed, match=f"its {setting} cannot be") as caught:
        await world.catalog.check(card, world.policies)
    assert (caught.value.of_files, caught.value.setting) == (True, setting)
    gone.rename(added)
    assert (await world.catalog.check(card, world.policies)).digest == card.digest


async def test_an_adapter_of_mlx_lm_that_has_pefts_words_too_is_used(world):
    world.add("m")
    adapter = write_adapter(world.root / "adapter")
    said = '{"peft_type": "LORA", "num_layers": 2, "lora_parameters": {"rank": 8, "scale": 1}}'
    (adapter / "adapter_config.json").write_text(said)
    world.declare(f"models: {{m: {{adapter: {adapter}}}}}\n")
    assert await world.resolve("m") == "m"


@pytest.mark.parametrize("write", [None, "", " \n"])
async def test_a_template_that_is_missing_or_empty_makes_its_model_unavailable(world, write):
    world.add("m")
    template = world.root / "t.jinja"
    if write is not None:
        template.write_text(write)
    world.declare(f"models: {{m: {{chat_template: {template}}}}}\n")
    refused = await world.refused("m", ModelLoadFailed)
    assert "chat_template" in refused.message
    assert str(template) not in refused.message


MENDED = "the same request once its files are mended"


@pytest.mark.parametrize(
    ("setting", "cure"),
    [
        ("path", "leads to a folder with a model"),
        ("adapter", "leads to a folder with an adapter, or is left out"),
        ("chat_template", "leads to a file with a template, or is left out"),
    ],
)
@pytest.mark.parametrize("called", ["m", "copy"])
async def test_a_setting_that_leads_nowhere_is_named_and_its_path_is_not(
    world, setting, cure, called
):
    world.add("m")
    world.copies = {"copy": "m"}
    world.declare(f"models:\n  m:\n    {setting}: {world.root}/typo\n")
    refused = await world.refused(called, ModelLoadFailed)
    key = f"models.models.m.{setting}"
    assert (refused.policy.key, refused.policy.place) == (key, "policies/models.yaml:5")
    assert refused.would_pass == f"the same request once {key} {cure}"
    assert str(world.root) not in refused.explained()
    assert "<name>" not in refused.explained()


async def test_files_that_are_broken_are_no_settings_fault(world):
    folder = world.add("m")
    adapter, template = write_adapter(world.root / "adapter"), world.root / "t.jinja"
    _cut(adapter)
    template.write_text("")
    for setting in (f"adapter: {adapter}", f"chat_template: {template}"):
        world.declare(f"models: {{m: {{{setting}}}}}\n")
        refused = await world.refused("m", ModelLoadFailed)
        assert (refused.policy, refused.would_pass) == (None, MENDED)
    (folder / "config.json").unlink()
    for setting in (f"path: {folder}", f"adapter: {world.root}/typo"):
        world.declare(f"models: {{m: {{{setting}}}}}\n")
        world.clock.advance(10)
        refused = await world.refused("m", ModelLoadFailed)
        assert (refused.policy, refused.would_pass) == (None, MENDED)


async def test_sampling_is_what_policy_says_and_else_what_the_model_stores(world):
    stored = json.dumps({"temperature": 0.6, "top_p": 0.9})
    world.add("m", files={"generation_config.json": stored})
    world.declare("models: {m: {sampling: {temperature: 0.2, top_k: 7}}}\n")
    sampling = (await world.catalog.resolve("m", world.policies)).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.2, 0.9, 7)
    assert isinstance(sampling.top_k, int)
    assert Sampling(temperature=1.0).over(sampling).temperature == 1.0


async def test_what_needs_a_file_that_was_not_read_yet_is_not_answered_by_the_old_scan(world, gate):
    world.add("m")
    world.add("other")
    await world.resolve("m")
    adapter = write_adapter(world.root / "adapter")
    gate.close(world.dirs)
    world.change(f"dirs: [{world.dirs}]\nmodels: {{m: {{adapter: {adapter}}}}}\n")
    assert world.catalog.find("m", world.policies) is None
    assert await asyncio.wait_for(world.resolve("other"), 5) == "other"
    gate.open()
    assert (await world.catalog.resolve("m", world.policies)).adapter == str(adapter)


async def test_names_of_any_length_and_letters_are_answered(world):
    world.add(CODER)
    for name in ("qwen2.5-coder:" + "3" * 100_000, "-" * 100_000, ":", "::", "a:b:c", "*", "/"):
        await world.refused(name)


async def test_a_model_that_drafts_makes_another_worker(world):
    large, small = world.add("org/large"), world.add("org/small")
    world.declare("")
    before = (await world.card("org/large")).spec
    world.declare("models: {large: {draft: SMALL, draft_tokens: 4}}\n")
    card = await world.card("org/large")
    assert (card.spec.path, card.spec.draft, card.spec.draft_tokens) == (str(large), str(small), 4)
    assert card.spec != before
    assert (card.draft.name, card.undrafted, card.unavailable) == ("org/small", "", "")


@pytest.mark.parametrize(
    ("drafter", "why"),
    [
        ("nobody", "nobody is no model that is here"),
        ("broken", "broken cannot be used: "),
        ("same", "same is the model itself"),
    ],
)
async def test_a_model_that_cannot_draft_leaves_the_other_as_it_is(world, drafter, why):
    folder = world.add("large")
    (world.dirs / "same").symlink_to(folder)
    (world.add("broken") / "model.safetensors").unlink()
    world.declare(f"models: {{large: {{draft: {drafter}, draft_tokens: 4}}}}\n")
    card = await world.card("large")
    assert card.undrafted.startswith(why)
    assert (card.draft, card.spec.draft, card.spec.draft_tokens) == (None, "", 0)
    assert await world.resolve("large") == "large"


async def test_while_folders_are_read_a_model_whose_drafter_is_not_known_waits(world, gate):
    world.add("large")
    other = write_model(world.root / "more" / "small").parent
    await world.names()
    world.change(f"dirs: [{world.dirs}, {other}]\nmodels: {{large: {{draft: small}}}}\n")
    assert world.catalog.find("large", world.policies) is None
    assert (await world.card("large")).draft.name == "small"


async def test_out_of_files_every_model_stays_known(world):
    world.add("plain")
    world.add("organisation/inner")
    world.declare(f"models: {{own: {{path: {write_model(world.root / 'own')}}}}}")
    known = await world.names()
    assert len(known) == 4
    with no_files():
        assert await world.names() == known
        assert await world.resolve("plain") == "plain"
    world.add("another")
    assert len(await world.names()) == 5


async def test_without_threads_every_model_stays_known(world, monkeypatch):
    world.add("plain")
    known = await world.names()
    card = await world.card("plain")
    with monkeypatch.context() as patched, no_threads():
        patched.setattr(world.catalog, "_threads", Threads("none"))
        assert await world.names() == known
        with pytest.raises(Overloaded, match="no thread"):
            await world.catalog.check(card, world.policies)


async def test_out_of_files_before_the_first_scan_nobody_is_told_that_a_model_is_not_there(world):
    world.add("plain")
    with no_files():
        error = await world.refused("plain", Overloaded)
        assert error.retry_after
    assert await world.resolve("plain") == "plain"


async def test_a_load_of_what_was_known_long_ago_is_of_the_weights_of_now(world):
    folder = world.add("m")
    adapter = write_adapter(world.root / "adapter")
    for entry in ("{}", f"{{adapter: {adapter}}}"):
        world.declare(f"models: {{m: {entry}}}\n")
        world.catalog.apply(world.policies)
        known = await world.card("m")
        assert await world.catalog.check(known, world.policies) == known
        write_weights(folder / "model.safetensors", {entry: ("F16", [9, 9])})
        now = await world.catalog.check(known, world.policies)
        assert now.digest != known.digest
        await asyncio.gather(*world.catalog._scans.values())
        (found, _) = world.catalog.known()
        assert now == found


async def test_a_load_is_foreseen_by_the_config_of_now(world):
    folder = world.add("m", config={"model_type": "llama", "num_hidden_layers": 1})
    known = await world.card("m")
    config = {"model_type": "qwen2", "quantization": {"bits": 4}}
    tensors = {"a.weight": ("U32", [4, 8]), "a.scales": ("F16", [4, 1])}
    write_model(folder, config=config, tensors=tensors)
    assert await world.catalog.check(known, world.policies) == await world.card("m")


async def test_out_of_files_a_model_is_not_called_unusable(world):
    world.add("plain")
    card = await world.card("plain")
    with no_files(), pytest.raises(Overloaded):
        await world.catalog.check(card, world.policies)
    await world.catalog.check(card, world.policies)


async def test_out_of_files_bytes_are_not_called_damaged(world):
    by_list(world.add("plain"))
    world.declare("defaults: {verify: sha256}")
    card = await world.card("plain")
    with no_files():
        await world.refused("plain", Overloaded)
    assert await world.resolve("plain") == card.name


async def test_what_was_loaded_beside_an_edit_that_cannot_be_is_served(world):
    """Whoever asked between the edit and the end of that load has not been told for good."""
    world.add("m")
    before = await world.card("m")
    world.change(f"dirs: [{world.dirs}]\nmodels: {{m: {{adapter: {world.root / 'missing'}}}}}\n")
    assert (await world.card("m")).unavailable
    world.catalog._predecessors.served(before)
    assert (await world.card("m")).held
    assert await world.resolve("m") == "m"


async def test_damage_that_is_found_when_nobody_waits_any_more_is_known(world):
    folder = world.add("m")
    by_list(folder)
    flip(folder / "model.safetensors")
    world.declare("defaults: {verify: sha256}\n")
    assert not (await world.card("m")).unavailable
    begun, go_on = asyncio.Event(), threading.Event()
    check, loop = world.catalog._checksums._check, asyncio.get_running_loop()

    def slowly(folder):
        loop.call_soon_threadsafe(begun.set)
        go_on.wait()
        return check(folder)

    world.catalog._checksums._check = slowly
    asking = asyncio.create_task(world.resolve("m"))
    await begun.wait()
    (comparing,) = world.catalog._checksums._running.values()
    asking.cancel()
    go_on.set()
    await comparing
    assert "recorded checksum" in (await world.card("m")).unavailable
