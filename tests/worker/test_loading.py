"""A folder that cannot be loaded says why, and not where it is."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.architecture_shapes import ARCHITECTURES
from mlxd.ipc.messages import Loading
from mlxd.worker.refusal import LoadError
from tests.support.long import short
from tests.support.model_maker import (
    HYBRID,
    TOOL_TEMPLATE,
    TOOLS,
    UNMERGEABLE,
    Shape,
    make_model,
    write_model,
)
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx


def change(folder: Path, **config: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def unknown_architecture(folder: Path) -> None:
    change(folder, model_type="no_such")


def missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:1000])


def other_size(folder: Path) -> None:
    change(folder, hidden_size=128)


def missing_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 5}')


def own_code(folder: Path) -> None:
    change(folder, model_file="evil.py")
    (folder / "evil.py").write_text("raise SystemExit(42)")


def missing_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


HARMS = [
    broken_config,
    unknown_architecture,
    missing_weights,
    cut_weights,
    other_size,
    missing_tokenizer,
    broken_tokenizer,
    own_code,
    missing_folder,
]


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_a_folder_that_cannot_be_loaded_says_why(tmp_path: Path, harm):
    from mlxd.worker.loading import load

    folder = make_model(tmp_path / "secret-place" / "m", Shape())
    harm(folder)
    with pytest.raises(LoadError) as caught:
        load(folder)
    reason = str(caught.value)
    assert str(tmp_path) not in reason
    assert "secret-place" not in reason
    assert "Traceback" not in reason
    assert len(reason) > 20


def test_what_does_not_fit_is_named(tmp_path: Path):
    from mlxd.worker.loading import load

    folder = make_model(tmp_path / "m", Shape())
    change(folder, tie_word_embeddings=False)
    with pytest.raises(LoadError, match=r"^the weights: Missing 1 parameters: lm_head\.weight$"):
        load(folder)


def test_bytes_that_others_have_packed_are_no_numbers(tmp_path: Path):
    import mlx.core as mx

    from mlxd.worker.loading import load

    folder = make_model(tmp_path / "m", Shape())
    file = str(folder / "model.safetensors")
    weights: Any = mx.load(file)
    packed = "model.layers.1.mlp.up_proj.weight"
    weights[packed] = mx.zeros(weights[packed].shape, mx.uint8)
    mx.save_safetensors(file, weights)
    with pytest.raises(LoadError, match=rf"^the weights: {packed} is packed \(uint8\)"):
        load(folder)


def test_what_a_config_does_not_say_is_named(tmp_path: Path):
    from mlxd.worker.loading import load

    folder = make_model(tmp_path / "m", Shape())
    change(folder, quantization={"group_size": 64})
    with pytest.raises(LoadError, match=r"^the weights: there is no 'bits'$"):
        load(folder)


def test_a_path_at_the_end_is_not_shown_and_not_gone(tmp_path: Path, monkeypatch):
    import mlx_lm.utils

    from mlxd.worker.loading import load

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("[load] Failed to open file /home/somebody/model.safetensors")

    monkeypatch.setattr(mlx_lm.utils, "load_model", fail)
    with pytest.raises(LoadError, match=r"Failed to open file \.\.\.$"):
        load(make_model(tmp_path / "m", Shape()))


def test_an_answer_ends_with_tokens_that_there_are(tmp_path: Path):
    from mlxd.worker.loading import load

    folder = make_model(tmp_path / "m", Shape())
    ends = [7, None, -1, "<|im_end|>", 512, 100_000]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert load(folder).tokenizer.eos_token_ids == {0, 7}


def test_the_tokens_of_a_text_model_are_counted_by_its_own_config(tmp_path: Path):
    from mlxd.worker.loading import load

    folder = make_model(tmp_path / "m", UNMERGEABLE)
    change(folder, vocab_size=100)
    assert load(folder).vocabulary == 512


def test_a_template_for_requests_with_tools_says_how_calls_are_written(tmp_path: Path):
    from mlxd.worker.loading import load

    folder = make_model(tmp_path / "m", Shape(markers=TOOLS, template=""))
    (folder / "chat_template.jinja").write_text("D")
    assert not load(folder).tokenizer.has_tool_calling
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TOOL_TEMPLATE)
    tokenizer = load(folder).tokenizer
    assert tokenizer.tool_call_start == "<tool_call>"
    assert tokenizer.chat_template == {"default": "D", "tool_use": TOOL_TEMPLATE}


def test_caches_that_cannot_have_few_bits_are_that_settings_fault(tmp_path: Path):
    from mlxd.worker.loading import load

    folder = make_model(tmp_path / "m", Shape())
    with pytest.raises(LoadError, match="kv_bits 3: a head's size is no multiple") as caught:
        load(folder, kv_bits=3)
    assert caught.value.setting == "kv_bits"
    missing_weights(folder)
    with pytest.raises(LoadError) as broken:
        load(folder, kv_bits=3)
    assert broken.value.setting == ""


def test_what_a_model_is_found_to_be(model_of: MakeModel):
    from mlxd.worker.loading import load

    loaded = load(model_of(Shape()))
    assert (loaded.vocabulary, loaded.width, loaded.batchable) == (512, 512, True)
    assert not load(model_of(replace(UNMERGEABLE, spread=3.0))).batchable
    assert load(model_of(replace(HYBRID, spread=3.0))).batchable


def test_models_that_fail_with_several_rows_serve_one_sequence_at_a_time(
    model_of: MakeModel,
) -> None:
    """Their caches merge, but no mask or position of theirs fits a padded row."""
    from mlxd.worker.loading import load, prepare_mlx

    prepare_mlx()
    assert not load(model_of(Shape(model_type="gemma2"))).batchable
    sizes = {"n_embd": 64, "n_layer": 2, "n_inner": 128, "n_head": 4, "n_positions": 4096}
    gpt = Shape(model_type="gpt_bigcode", extra={**sizes, "layer_norm_epsilon": 1e-5})
    assert not load(model_of(gpt)).batchable
    kinds: list[Any] = [{"no_op": True}, {"n_heads_in_group": 2}, {"replace_with_linear": True}]
    blocks = [{"attention": kind, "ffn": {"ffn_mult": 1.0}} for kind in kinds]
    idle = Shape(layers=3, model_type="nemotron-nas", extra={"block_configs": blocks})
    assert not load(model_of(idle)).batchable  # a cache that no layer fills


@pytest.mark.parametrize("dtype", short(["float32", "bfloat16", "float16"], "bfloat16"))
def test_models_that_count_padding_as_text_are_found(dtype: str, tmp_path: Path) -> None:
    """Rounding is not taken for that."""
    from mlxd.worker.loading import load, prepare_mlx

    prepare_mlx()
    found = {}
    for name in ("llama", "mamba2", "minicpm3", "rwkv7", "afm7", "gemma2"):
        config = ARCHITECTURES[name].config | {"torch_dtype": dtype}
        folder = write_model(tmp_path / name, config, Shape(spread=2.0))
        found[name] = load(folder).sharing
    assert found == {
        "llama": "any",
        "mamba2": "any",
        "minicpm3": "any",
        "rwkv7": "like",
        "afm7": "none",
        "gemma2": "none",
    }


@pytest.mark.parametrize(("measured", "found"), [(True, "any"), (False, "like")])
def test_what_an_earlier_load_has_tried_out_is_known(
    measured: bool, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.worker.bench import Bench

    model = make_model(tmp_path / "m", Shape())
    footprint = Bench(model).ready.footprint
    assert footprint.sharing == "any"
    monkeypatch.setattr("mlxd.worker.loading.sharing", lambda *_: "like")
    again = Bench(model, footprint=footprint, measured=measured)
    assert again.ready.footprint.sharing == found


def make_adapter(folder: Path, model: Path, *, size: int = 64) -> Path:
    """A LoRA adapter for the queries of the last layer; its numbers are not small."""
    import mlx.core as mx

    folder.mkdir(parents=True)
    config = {
        "fine_tune_type": "lora",
        "num_layers": 1,
        "lora_parameters": {
            "rank": 4, "scale": 20.0, "dropout": 0.0, "keys": ["self_attn.q_proj"],
        },
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = "model.layers.1.self_attn.q_proj"
    weights = {f"{name}.lora_a": mx.ones((size, 4)), f"{name}.lora_b": mx.ones((4, 64))}
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    return folder


def test_an_adapter_changes_what_the_model_says(model_of: MakeModel, tmp_path: Path):
    import mlx.core as mx

    from mlxd.worker.loading import load

    folder = model_of(Shape(spread=3.0))
    adapter = make_adapter(tmp_path / "a", folder)
    prompt = mx.array([[5, 6, 7]])
    plain, adapted = load(folder).model(prompt), load(folder, adapter=adapter).model(prompt)
    assert not mx.allclose(plain, adapted)


def no_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def no_adapter_weights(folder: Path) -> None:
    (folder / "adapters.safetensors").unlink()


def another_models_adapter(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    make_adapter(folder, folder, size=99)


@pytest.mark.parametrize("harm", [no_adapter, no_adapter_weights, another_models_adapter])
def test_an_adapter_that_cannot_be_put_on_says_why(model_of: MakeModel, tmp_path: Path, harm):
    from mlxd.worker.loading import load

    adapter = make_adapter(tmp_path / "secret place" / "a", tmp_path)
    harm(adapter)
    with pytest.raises(LoadError, match="the adapter: ") as caught:
        load(model_of(Shape(spread=3.0)), adapter=adapter)
    assert "secret place" not in str(caught.value)


@pytest.mark.parametrize("own_file", [False, True])
def test_a_given_chat_template_goes_before_the_models_own(tmp_path: Path, own_file: bool):
    from mlxd.worker.loading import load
    from mlxd.worker.markup import Markup

    folder = make_model(tmp_path / "m", Shape(markers=TOOLS))
    if own_file:
        (folder / "chat_template.jinja").write_text("from the folder")
    template = tmp_path / "t.jinja"
    template.write_text(TOOL_TEMPLATE + "привет")
    plain, other = load(folder), load(folder, template=template)
    messages = [{"role": "user", "content": "hi"}]
    text = other.tokenizer.apply_chat_template(messages, tokenize=False)
    assert text.endswith("привет")
    assert text != plain.tokenizer.apply_chat_template(messages, tokenize=False)
    assert Markup(other.tokenizer).tools, "which calls it makes is read off the template in force"
    assert not Markup(plain.tokenizer).tools


def test_a_chat_template_that_is_not_there_says_so(model_of: MakeModel, tmp_path: Path):
    from mlxd.worker.loading import load

    with pytest.raises(LoadError, match="the tokenizer: ") as caught:
        load(model_of(Shape()), template=tmp_path / "secret place" / "t.jinja")
    assert "secret place" not in str(caught.value)


def test_weights_come_through_a_file_object_that_one_thread_reads(
    varied: Path, monkeypatch: pytest.MonkeyPatch
):
    import mlx.core as mx

    from mlxd.worker.loading import load

    given: list[Any] = []
    real = mx.load

    def noting(file: Any, *arguments: Any, **options: Any) -> Any:
        given.append(file)
        return real(file, *arguments, **options)

    monkeypatch.setattr(mx, "load", noting)
    load(varied)
    assert [isinstance(file, io.FileIO) for file in given] == [True]
    assert given[0].closed
    assert mx.load is noting, "put back"


def test_a_load_tells_how_many_bytes_of_its_weights_it_has_read(
    varied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlxd.worker import loading

    monkeypatch.setattr(loading, "TELL_SECONDS", 0.0)
    told: list[Loading] = []
    loading.load(varied, tell=told.append)
    shares = [(said.done, said.total) for said in told if said.stage == "weights"]
    size = sum(file.stat().st_size for file in varied.glob("model*.safetensors"))
    assert len(shares) > 3
    assert shares == sorted(shares)
    assert {total for _, total in shares} == {size}
    assert shares[-1][0] > 0.95 * size, "the header is read before"
    stages = list(dict.fromkeys(said.stage for said in told))
    assert stages[:3] == ["weights", "tokenizer", "first_step"]
