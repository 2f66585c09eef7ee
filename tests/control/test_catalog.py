import asyncio
import threading
from pathlib import Path

import pytest

from mlxd.control.catalog import Catalog
from mlxd.control.scan import GUIDE, Scanner
from mlxd.core.clock import ManualClock
from mlxd.core.errors import ModelLoadFailed, ModelNotFound
from mlxd.policy.load import load
from tests.control.test_model_files import write_model
from tests.support.daemon import write_policies


class World:
    """A catalogue over folders that a test fills."""

    def __init__(self, root):
        self.root = root
        self.dirs = root / "models"
        self.dirs.mkdir()
        self.clock = ManualClock()
        self.catalog = Catalog(write_model(root / "guide"), self.clock)
        self.declare("")

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
    world.declare("chains: {coding: [large, small]}\n")
    await world.resolve("m")
    hung = write_model(world.root / "hung" / "large").parent
    gate.close(hung)
    world.change(f"dirs: [{world.dirs}, {hung}]\nchains: {{coding: [large, small]}}\n")
    for name in ("m", "org/inner", GUIDE, "default"):
        await asyncio.wait_for(world.resolve(name), 5)
    waiting = [asyncio.create_task(world.resolve(name)) for name in ("coding", "inner", "large")]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in waiting), "what the new folder holds may change these"
    assert world.catalog.default(world.policies) == "m"
    gate.open()
    assert await asyncio.gather(*waiting) == ["large", "org/inner", "large"]


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


async def test_equal_policies_that_come_as_many_objects_are_not_kept(world):
    world.add("m")
    for _ in range(20):
        world.declare("")
        await world.resolve("m")
    assert len(world.catalog._views) <= 8
    world.change(f"dirs: [{world.dirs}]\n")
    await world.resolve("m")
    assert len(world.catalog._views) == 1, "those of earlier generations are let go"
