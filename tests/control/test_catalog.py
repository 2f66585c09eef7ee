import asyncio

import pytest

from mlxd.control.catalog import GUIDE, Catalog
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
