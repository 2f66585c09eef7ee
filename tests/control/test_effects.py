import pytest

from mlxd.control.catalog import Catalog
from mlxd.control.effects import effects
from mlxd.control.residency import Residency
from mlxd.core.clock import ManualClock
from mlxd.policy.load import load
from tests.control.test_model_files import write_adapter, write_model
from tests.control.test_residency import AT_ONCE, Processes
from tests.support.daemon import write_policies


class World:
    """Real folders, a real catalogue and residency, and processes that are counted."""

    def __init__(self, root):
        self.root = root
        self.dirs = root / "models"
        for name in ("a", "b", "c"):
            write_model(self.dirs / name)
        clock = ManualClock()
        self.clock = clock
        self.catalog = Catalog(write_model(root / "guide"), clock)
        self.processes = Processes()
        self.residency = Residency(self.processes, clock, lambda: None)  # type: ignore[arg-type]
        self.policies = self.made("")

    def made(self, models, dirs=None):
        text = f"dirs: [{dirs or self.dirs}]\n{models}"
        return load(write_policies(self.root / "policies", {"models": text, "memory": AT_ONCE}))

    async def use(self, *names):
        for number, name in enumerate(names, 1):
            card = await self.catalog.resolve(name, self.policies)
            async with self.residency.lease(card, None, self.policies):
                self.clock.advance(1)
            self.processes.up[card.spec].pid = number

    async def lease(self, name):
        card = await self.catalog.resolve(name, self.policies)
        return self.residency.lease(card, None, self.policies)

    async def told(self, new):
        """The lines; that nothing happens is checked as well."""
        before = [*self.processes.log], self.catalog.known(), self.residency.residents()
        lines = await effects(self.catalog, self.residency, self.policies, new)
        after = [*self.processes.log], self.catalog.known(), self.residency.residents()
        assert after == before
        return lines


@pytest.fixture
async def world(tmp_path):
    made = World(tmp_path)
    yield made
    await made.residency.close(0)


async def test_what_changes_no_loaded_model_has_no_lines(world):
    await world.use("a", "b")
    assert await world.told(world.policies) == []
    other = write_model(world.root / "other" / "late").parent
    assert await world.told(world.made("", dirs=f"{other}, {world.dirs}")) == []
    assert await world.told(world.made("chains: {coding: [a]}\nmax_loaded: 2\n")) == []


async def test_a_moved_path_and_a_removed_folder_are_told_with_what_runs(world):
    await world.use("a", "b")
    other = write_model(world.root / "other" / "new")
    async with await world.lease("a"), await world.lease("a"):
        lines = await world.told(world.made(f"models: {{a: {{path: {other}}}}}\n", dirs=other))
    assert lines == [
        "worker of b (pid 2) would be let go: no name leads to its folder any more",
        "worker of a (pid 1) would be replaced: models.models.a.path changed;"
        " 2 requests running on it would finish first",
    ]


async def test_another_folder_under_the_same_name_is_told(world):
    await world.use("a")
    other = write_model(world.root / "other" / "a").parent
    (line,) = await world.told(world.made("", dirs=f"{other}, {world.dirs}"))
    assert line == "worker of a (pid 1) would be replaced: models.dirs changed"


async def test_a_model_that_keeps_another_name_is_told_by_it(world):
    world.policies = world.made(f"models: {{x: {{path: {world.dirs / 'a'}}}}}\n")
    await world.use("x")
    (line,) = await world.told(world.made(f"models: {{x: {{path: {world.dirs / 'b'}}}}}\n"))
    assert line == "worker of x (pid 1) would be one of a: models.models.x.path changed"


async def test_changed_idle_times_are_told_where_policy_decides(world):
    await world.use("a", "b")
    card = await world.catalog.resolve("c", world.policies)
    async with world.residency.lease(card, 600, world.policies):
        pass
    world.processes.up[card.spec].pid = 3
    models = "defaults: {ttl: 30s}\nmodels: {b: {ttl: never}}\n"
    assert await world.told(world.made(models)) == [
        "b would idle out never instead of after 5m",
        "a would idle out after 30s instead of after 5m",
    ]
    assert await world.told(world.made(f"{models}preload: [a]\n")) == [
        "b would idle out never instead of after 5m",
        "preload would keep a",
    ]


async def test_what_a_lower_limit_would_unload_is_told(world):
    await world.use("a", "b", "c")
    (line,) = await world.told(world.made("max_loaded: 1\n"))
    assert line == "2 idle models would be unloaded: models.max_loaded auto -> 1: a, b"


async def test_what_a_bound_on_weights_would_unload_is_told(world):
    await world.use("a", "b")
    (line,) = await world.told(world.made("max_loaded: 9\nmax_loaded_bytes: 1B\n"))
    assert line == (
        "2 idle models would be unloaded: models.max_loaded auto -> 9,"
        " models.max_loaded_bytes auto -> 1B: a, b"
    )


async def test_preloads_are_told_by_what_their_names_mean(world):
    world.policies = world.made("preload: [a, c]\n")
    await world.use("a")
    models = "preload: [nick, late]\nmodels: {b: {aliases: [nick]}}\n"
    assert await world.told(world.made(models)) == [
        "preload would skip late: there is no such model",
        "preload would load nick",
        "preload would no longer keep a",
    ]


@pytest.mark.parametrize("change", ["kv_bits: 8", "adapter: {0}/lora", "chat_template: {0}/t"])
async def test_another_way_of_loading_is_told_as_another_worker(world, change):
    (world.root / "t").write_text("text")
    write_adapter(world.root / "lora")
    await world.use("a", "b")
    (line,) = await world.told(world.made(f"models: {{a: {{{change.format(world.root)}}}}}\n"))
    key = f"models.models.a.{change.partition(':')[0]}"
    assert line == f"worker of a (pid 1) would be replaced: {key} changed"
