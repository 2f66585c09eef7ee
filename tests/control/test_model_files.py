import json
import math
import os
import struct

import pytest

from mlxd.control.model_files import count_of, fingerprint, read_card
from mlxd.control.reading import readable
from mlxd.control.safetensors import BITS


def _short(value):
    return repr(value)[:20]


def write_weights(file, tensors, *, trailing=b""):
    """A safetensors file of zeros; a shape that is none has no bytes."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = _bytes_of(dtype, shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(offset) + trailing)
    return file


def _bytes_of(dtype, shape):
    try:
        size = math.prod(shape) * BITS[dtype] // 8
    except (TypeError, KeyError):
        return 0
    return size if 0 <= size < 2**20 and isinstance(size, int) else 0


def write_model(folder, *, config=None, tensors=None, files=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "max_position_embeddings": 2048} | (config or {}))
    )
    tensors = {"w": ("F16", [4, 8])} if tensors is None else tensors
    write_weights(folder / "model.safetensors", tensors)
    for name, text in (files or {}).items():
        (folder / name).write_text(text)
    return folder


def test_a_card_says_what_the_files_say(tmp_path):
    folder = write_model(
        tmp_path / "m",
        files={
            "chat_template.jinja": "{% if tools %}{% endif %}<think>",
            "tokenizer.json": "{}",
            "generation_config.json": json.dumps({"temperature": 0.6, "top_k": 20, "top_p": 2}),
        },
    )
    card = read_card(folder, "M")
    assert (card.family, card.context, card.parameters) == ("llama", 2048, 32)
    assert card.quantization == "f16"
    assert card.capabilities == ("completion", "tools", "thinking")
    assert (card.sampling.temperature, card.sampling.top_k, card.sampling.top_p) == (0.6, 20, None)
    assert len(card.digest) == 64
    assert not card.unavailable


def test_quantised_weights_are_counted_unpacked(tmp_path):
    tensors = {"w": ("U32", [4, 8]), "w.scales": ("F16", [4, 1]), "w.biases": ("F16", [4, 1])}
    card = read_card(
        write_model(tmp_path / "m", config={"quantization": {"bits": 4}}, tensors=tensors), "m"
    )
    assert (card.parameters, card.quantization) == (256, "4bit")


def test_do_sample_false_is_greedy(tmp_path):
    stored = {"generation_config.json": '{"do_sample": false, "temperature": 0.9}'}
    assert read_card(write_model(tmp_path / "m", files=stored), "m").sampling.temperature == 0


def test_a_named_template_list_gives_its_default(tmp_path):
    config = {
        "chat_template": [{"name": "x", "template": "X"}, {"name": "default", "template": "D"}]
    }
    files = {"tokenizer_config.json": json.dumps(config)}
    assert read_card(write_model(tmp_path / "m", files=files), "m").chat_template == "D"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "config.json").unlink(), "it has no config.json"),
        (lambda f: (f / "config.json").write_text("["), "its config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "its config.json is not a JSON object"),
        (lambda f: (f / "config.json").write_text("[" * 99999), "its config.json is not JSON"),
        (lambda f: (f / "model.safetensors").unlink(), "it has no model*.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"123"), "is cut short"),
        (
            lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}"),
            "is cut short or damaged",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"[]"),
            "the header of its model.safetensors is damaged",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{!"),
            "the header of its model.safetensors is damaged",
        ),
    ],
)
def test_a_damaged_folder_says_why_and_names_no_path(tmp_path, damage, reason):
    folder = write_model(tmp_path / "m")
    damage(folder)
    card = read_card(folder, "m")
    assert reason in card.unavailable
    assert str(tmp_path) not in card.unavailable
    assert len(card.digest) == 64


def test_a_dangling_link_is_unavailable(tmp_path):
    (tmp_path / "m").symlink_to(tmp_path / "gone")
    assert "no such file" in read_card(tmp_path / "m", "m").unavailable


def test_a_loop_of_links_is_unavailable(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert read_card(tmp_path / "a", "a").unavailable


@pytest.mark.parametrize(
    "shape", [[10**400], [2**48], [-1], [True], [4.0], ["4"], [None], 4, "44", None, [2**40, 2**40]]
)
def test_an_impossible_shape_is_unavailable(tmp_path, shape):
    folder = write_model(tmp_path / "m", tensors={"w": ("F16", shape)})
    assert read_card(folder, "m").unavailable == "the header of its model.safetensors is damaged"


def test_sizes_that_add_up_to_the_impossible_are_unavailable(tmp_path):
    tensors = {f"w{n}": ("F16", [2**47]) for n in range(2**7)}
    folder = write_model(tmp_path / "m", tensors=tensors)
    assert read_card(folder, "m").unavailable == "its weights have an impossible size"


@pytest.mark.parametrize("bits", [True, -4, 10**400, "4", 4.5, [4], None], ids=_short)
def test_bits_that_are_none_are_not_shown(tmp_path, bits):
    folder = write_model(tmp_path / "m", config={"quantization": {"bits": bits}})
    assert read_card(folder, "m").quantization == "f16"


@pytest.mark.parametrize("value", [True, -1, 2**48, 10**400, "big", 1.5, [1], {}, None], ids=_short)
def test_only_a_number_counts(tmp_path, value):
    config = {"hidden_size": value, "max_position_embeddings": value}
    card = read_card(write_model(tmp_path / "m", config=config), "m")
    assert count_of(card.config, "hidden_size") is None
    assert card.context == 4096
    assert not card.unavailable


def test_the_shape_of_a_text_model_inside_is_the_cards(tmp_path):
    inner = {"hidden_size": 64, "num_hidden_layers": 3, "max_position_embeddings": 512}
    config = {"text_config": inner, "hidden_size": 1}
    card = read_card(write_model(tmp_path / "m", config=config), "m")
    assert [count_of(card.config, key) for key in inner] == [64, 3, 512]
    assert card.context == 512


def test_names_that_are_no_unicode_can_be_shown(tmp_path):
    name = os.fsdecode(b"bad\xff\xfe\n")
    folder = write_model(tmp_path / name, config={"model_type": "\ud800"})
    card = read_card(folder, name)
    assert card.name == "bad\ufffd\ufffd\ufffd"
    assert card.family == "\ufffd"
    assert len(card.digest) == 64
    (folder / "config.json").unlink()
    assert read_card(folder, name).unavailable == "it has no config.json"
    assert readable("Qwen 2.5 Жé/模型:1b") == "Qwen 2.5 Жé/模型:1b"


def test_a_weight_file_whose_name_is_no_unicode_is_named_all_the_same(tmp_path):
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / os.fsdecode(b"model\xff.safetensors"))
    assert len(read_card(folder, "m").digest) == 64
    (folder / os.fsdecode(b"model\xff.safetensors")).write_bytes(b"12")
    assert read_card(folder, "m").unavailable == "its model\ufffd.safetensors is cut short"


def test_a_pipe_in_place_of_weights_is_not_waited_for(tmp_path):
    folder = write_model(tmp_path / "m")
    os.mkfifo(folder / "model-2.safetensors")
    assert read_card(folder, "m").unavailable == "its model-2.safetensors is no file"


def test_a_date_beyond_all_calendars_is_the_last_one(tmp_path, monkeypatch):
    far = [("config.json", 2, 10**30, 0), ("model.safetensors", 2, 0, 0)]
    monkeypatch.setattr("mlxd.control.model_files.fingerprint", lambda folder: far)
    assert read_card(write_model(tmp_path / "m"), "m").modified == 253402300799.0


def test_templates_named_by_anything_are_read(tmp_path):
    template = [{"name": ["x"], "template": "X\ud800"}, {"template": 1}, 7]
    files = {"tokenizer_config.json": json.dumps({"chat_template": template})}
    assert read_card(write_model(tmp_path / "m", files=files), "m").chat_template == "X?"


def test_the_fingerprint_changes_with_a_file(tmp_path):
    folder = write_model(tmp_path / "m")
    before = fingerprint(folder)
    (folder / "config.json").write_text("{}")
    assert fingerprint(folder) != before
