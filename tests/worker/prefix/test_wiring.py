"""What is known of a request reaches its prompt; and which models have a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx_lm.utils
import pytest

from mlxd.core.footprint import Footprint
from mlxd.core.request import GenerationRequest, Message, Sampling
from mlxd.ipc.messages import Generate, Launch, Resume, packed
from mlxd.worker.assembly import _engine
from mlxd.worker.budget import Ledger
from mlxd.worker.checks import Checks
from mlxd.worker.detokenize import Detokenizers
from mlxd.worker.loading import Loaded, load, prepare_mlx
from mlxd.worker.making import Maker
from mlxd.worker.markup import Markup
from mlxd.worker.prefix.boundaries import Outlines
from mlxd.worker.prefix.parts import prefix_parts
from mlxd.worker.prefix.store import Store
from mlxd.worker.prompt import Prompter
from mlxd.worker.sampling import Guard
from mlxd.worker.tuning import Tuned
from tests.support.model_maker import HYBRID, UNMERGEABLE, Shape, _write_tokenizer
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx

MESSAGES = (Message("system", "Be brief. " * 30), Message("user", "hi"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    _write_tokenizer(folder, Shape())
    return mlx_lm.utils.load_tokenizer(folder)


def store_of(loaded: Loaded, model: Path) -> Store | None:
    launch = Launch(str(model), 4096)
    nobody: list[Any] = []
    add = nobody.append
    return prefix_parts(loaded, launch, "", tell=add, lacks=add, post=add).store


def checks_of(tokenizer: Any) -> Checks:
    grammars: Any = None
    return Checks(Prompter(tokenizer), grammars, 512, 4096, outlines=Outlines(tokenizer))


def asked(**more: Any) -> Generate:
    request = GenerationRequest(model="m", messages=MESSAGES)
    return Generate(1, request, Sampling(temperature=0), 4096, 100, 4096, **more)


def test_a_prompt_knows_whose_it_is_and_where_it_parts_from_others(tokenizer: Any) -> None:
    job = checks_of(tokenizer).job_of(asked(owner="team"))
    assert job.packed == packed(job.tokens)
    assert len(job.outline.turns) == 2
    maker = Maker(Detokenizers(tokenizer), Markup(tokenizer), 512)
    prompt = maker.prompt(job, Guard(), [7, 8])
    assert prompt.ids == packed(prompt.tokens)
    assert prompt.tokens == [*job.tokens, 7, 8]
    assert prompt.owner == "team"
    assert prompt.shared == job.outline.turns[1] > 0
    assert prompt.boundaries == (prompt.shared,)


def test_what_another_worker_has_begun_is_known_the_same(tokenizer: Any) -> None:
    checks = checks_of(tokenizer)
    job = checks.job_of(asked())
    again = checks.job_of(asked(resume=Resume(packed(job.tokens), packed([9]))))
    assert (again.tokens, again.outline) == (job.tokens, job.outline)


@pytest.mark.parametrize(
    ("shape", "trimmable"), [(Shape(), True), (HYBRID, False), (UNMERGEABLE, None)]
)
def test_a_store_is_made_where_caches_batch(
    model_of: MakeModel, shape: Shape, trimmable: bool | None
) -> None:
    prepare_mlx()
    store = store_of(load(model_of(shape)), model_of(shape))
    assert (None if store is None else store.trimmable) is trimmable


def test_another_engine_begins_with_nothing_kept(model_of: MakeModel) -> None:
    """What was kept may be what broke the one before."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    prepare_mlx()
    loaded = load(model_of(Shape()))
    store = store_of(loaded, model_of(Shape()))
    assert store is not None
    store.shrink(1 << 20)
    caches = make_prompt_cache(loaded.model)
    loaded.model(mx.array([[5] * 40]), cache=caches)
    assert store.adopt(packed([5] * 40), caches, "prompt", "", 0) is not None
    footprint = Footprint(0, ())
    _engine(
        loaded,
        footprint,
        Ledger(footprint, 1),
        prefixes=store,
        tuned=Tuned(),
        speculating=lambda: None,
    )
    assert len(store) == store.nbytes == 0
