import json
import math
import os
import re
import shutil
import socket
import struct
from pathlib import Path

import pytest

from mlxd.control.additions import read_adapter
from mlxd.control.model_files import count_of, fingerprint, read_card, with_template
from mlxd.control.reading import readable
from mlxd.control.safetensors import BITS
from mlxd.control.weights import read_weights


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


COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


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


def write_adapter(folder):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    write_weights(folder / "adapters.safetensors", {"lora_a": ("F16", [2, 3])})
    return folder


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_with_marks_of_a_gap_can_insert(tmp_path, file):
    marks = [{"content": f"<|fim_{part}|>"} for part in ("prefix", "suffix", "middle")]
    folder = write_model(tmp_path / "m", files={file: json.dumps({"added_tokens": marks})})
    card = read_card(folder, "m")
    assert {"completion", "insert"} <= set(card.capabilities)
    assert {"tools", "insert"} <= set(with_template(card, "{{ tools }}").capabilities)
    (folder / file).write_text(json.dumps({"added_tokens": marks[:2]}))
    assert "insert" not in read_card(folder, "m").capabilities


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
    assert card.capabilities == ("completion", "tools", "thinking", "embedding")
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


@pytest.mark.parametrize("text", ["", '{"top_k": 20,}'])
def test_what_is_stored_for_generation_and_is_no_json_is_passed_over(tmp_path, text):
    card = read_card(write_model(tmp_path / "m", files={"generation_config.json": text}), "m")
    assert (card.unavailable, card.sampling.top_k) == ("", None)


def test_a_template_for_requests_with_tools_makes_a_model_that_calls_them(tmp_path):
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "{{ tools }}"}]
    files = {"tokenizer_config.json": json.dumps({"chat_template": named})}
    card = read_card(write_model(tmp_path / "named", files=files), "m")
    assert (card.chat_template, "tools" in card.capabilities) == ("D", True)
    by_name = {"tool_use": "{{ tools }}", "default": "D"}
    files = {"tokenizer_config.json": json.dumps({"chat_template": by_name})}
    card = read_card(write_model(tmp_path / "by_name", files=files), "m")
    assert (card.chat_template, "tools" in card.capabilities) == ("D", True)
    folder = write_model(tmp_path / "apart", files={"chat_template.jinja": "D"})
    assert "tools" not in read_card(folder, "m").capabilities
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    card = read_card(folder, "m")
    assert (card.chat_template, "tools" in card.capabilities) == ("D", True)
    assert "tools" not in with_template(card, "E").capabilities


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


def trained(file, *tensors):
    """Other numbers in these tensors, in place: of the file's times the one is put back."""
    raw, status = bytearray(file.read_bytes()), file.stat()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    for name in tensors or header:
        begin, end = (8 + length + offset for offset in header[name]["data_offsets"])
        raw[begin:end] = b"\x01" * (end - begin)
    file.write_bytes(raw)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


LAYERS = {
    f"model.layers.{layer}.{part}.weight": ("F16", [4, 8])
    for layer in range(32)
    for part in ("down", "gate", "k", "norm", "o", "q", "up", "v")
}


@pytest.mark.parametrize("parts", [("",), ("q", "v")], ids=["everywhere", "in some layers"])
def test_models_of_one_shape_that_were_trained_otherwise_have_other_digests(tmp_path, parts):
    one, other = (write_model(tmp_path / name, tensors=LAYERS) for name in ("a", "b"))
    assert read_card(one, "a").digest == read_card(other, "b").digest
    changed = [name for name in LAYERS if parts == ("",) or name.split(".")[-2] in parts]
    trained(other / "model.safetensors", *changed)
    assert read_card(one, "a").digest != read_card(other, "b").digest


def test_a_copy_of_a_model_has_its_digest(tmp_path):
    folder = write_model(tmp_path / "a", tensors=LAYERS)
    trained(folder / "model.safetensors")
    shutil.copytree(folder, tmp_path / "b", copy_function=shutil.copyfile)
    os.utime(tmp_path / "b" / "model.safetensors", (1, 1))
    assert read_card(folder, "a").digest == read_card(tmp_path / "b", "b").digest


def test_adapters_of_one_shape_have_digests_of_their_own(tmp_path):
    one, other = (write_adapter(tmp_path / name) for name in ("a", "b"))
    assert read_adapter(one) == read_adapter(other)
    trained(other / "adapters.safetensors")
    assert read_adapter(one).digest != read_adapter(other).digest


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
    folder = write_model(tmp_path / "good", config={"model_type": "\ud800"})
    card = read_card(folder, name)
    assert card.name == "bad\ufffd\ufffd\ufffd"
    assert card.family == "\ufffd"
    assert len(card.digest) == 64
    (folder / "config.json").unlink()
    assert read_card(folder, name).unavailable == "it has no config.json"
    assert readable("Qwen 2.5 Жé/模型:1b") == "Qwen 2.5 Жé/模型:1b"


@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_whose_path_is_no_unicode_cannot_be_loaded(tmp_path, linked):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        write_model(folder)
    except OSError:
        pytest.skip("this file system takes no such name")
    if linked:
        (tmp_path / "link").symlink_to(folder)
    card = read_card(tmp_path / "link" if linked else folder, "some")
    assert card.unavailable == "the path of its folder is not UTF-8"


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


def test_the_fingerprint_changes_with_a_template_beside_the_usual_one(tmp_path):
    folder = write_model(tmp_path / "m", files={"chat_template.jinja": "D"})
    (folder / "additional_chat_templates").mkdir()
    for text in ("{{ tools }}", "D"):
        before = fingerprint(folder)
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(text)
        assert fingerprint(folder) != before
    (folder / "plain" / "additional_chat_templates").parent.mkdir()
    (folder / "plain" / "additional_chat_templates").write_text("no folder")
    assert [mark[0] for mark in fingerprint(folder / "plain")] == ["additional_chat_templates"]


def test_bytes_of_weights_are_those_of_the_tensors_alone(tmp_path):
    tensors = {"a.weight": ("U32", [4, 8]), "a.scales": ("F16", [4, 1])}
    card = read_card(write_model(tmp_path / "m", tensors=tensors), "m")
    assert card.weights_bytes == 4 * 8 * 4 + 4 * 2
    assert card.size_bytes == (tmp_path / "m" / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, "4bit"),
        ({"quantization": {"group_size": 64, "bits": 6, "mode": "affine"}}, "6bit"),
        ({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}, "mxfp4"),
        ({"quantization": {"group_size": 16, "bits": 4, "mode": "nvfp4"}}, "nvfp4"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "4bit"),
        ({"quantization_config": {"quant_method": "bitnet"}}, "bitnet"),
        ({"quantization_config": COMPRESSED | {"format": "nvfp4-pack-quantized"}}, "nvfp4"),
        (
            {
                "quantization_config": COMPRESSED
                | {"config_groups": {"a": {"weights": {"num_bits": 4}}}}
            },
            "4bit",
        ),
        ({"quantization_config": COMPRESSED | {"config_groups": {"a": [4]}}}, "f16"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8", "bits": 8}}}, "fp8"),
        ({"quantization": [4]}, "f16"),
        ({}, "f16"),
    ],
)
def test_the_quantisation_is_bits_or_a_format_of_its_own(tmp_path, config, shown):
    assert read_card(write_model(tmp_path / "m", config=config), "m").quantization == shown


@pytest.mark.parametrize(
    ("stated", "tensors"),
    [
        (
            {"quant_method": "awq", "bits": 4},
            {"a.qweight": ("I32", [8, 2]), "a.qzeros": ("I32", [1, 2]), "a.scales": ("F16", [16])},
        ),
        (
            {"quant_method": "mxfp4"},
            {"a.up_proj_blocks": ("U8", [2, 2, 16]), "a.up_proj_scales": ("U8", [2, 2])},
        ),
        ({"quant_method": "bitnet"}, {"a.weight": ("U8", [32]), "a.weight_scale": ("F32", [1])}),
        (
            {"quant_method": "fp8"},
            {"a.weight": ("F8_E4M3", [8, 16]), "a.weight_scale_inv": ("F32", [1, 1])},
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4"},
            {"a.weight": ("U8", [8, 8]), "a.weight_scale": ("F8_E4M3", [8, 1])},
        ),
    ],
)
def test_weights_that_others_have_packed_are_counted_unpacked(tmp_path, stated, tensors):
    config = {"quantization_config": stated}
    assert (
        read_card(write_model(tmp_path / "m", config=config, tensors=tensors), "m").parameters
        == 128
    )


@pytest.mark.parametrize(
    ("stated", "tensors", "words"),
    [
        ({"bits": 4}, {}, "names no quant_method"),
        ([4], {}, "names no quant_method"),
        ({"quant_method": "bitsandbytes"}, {"w.weight": ("U8", [16, 1])}, "by bitsandbytes,"),
        (
            {"quant_method": "compressed-tensors", "format": "float-quantized"},
            {},
            r"by compressed-tensors \(float-quantized\)",
        ),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, {}, r"by modelopt \(FP8\)"),
        ({"quant_method": "modelopt", "quantization": [1]}, {}, r"by modelopt \(not said\)"),
        ({"quant_method": "gptq", "bits": 8}, {}, "by gptq in 8 bits"),
        ({"quant_method": "gptq"}, {"w.g_idx": ("I32", [4])}, r"by gptq .*\(g_idx\)"),
        ({}, {"w.weight": ("F8_E4M3", [4, 4])}, "FP8 without scales"),
    ],
)
def test_what_no_model_of_mlx_lm_unpacks_is_not_served(tmp_path, stated, tensors, words):
    tensors = {"norm.weight": ("F16", [4])} | tensors
    config = {"quantization_config": stated}
    card = read_card(write_model(tmp_path / "m", config=config, tensors=tensors), "m")
    assert re.search(words, card.unavailable)
    assert card.foreign
    own = config | {"quantization": {"group_size": 64, "bits": 4}}
    card = read_card(write_model(tmp_path / "own", config=own, tensors=tensors), "own")
    assert bool(card.unavailable) == ("w.weight" in tensors and not stated)


@pytest.mark.parametrize(
    ("stated", "tensors"),
    [
        ({"quant_method": "bitsandbytes"}, {}),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, {}),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4"}}, {}),
        ({"quant_method": "awq", "bits": 4}, {}),
        ({"quant_method": "of-tomorrow"}, {}),
        (
            {"quant_method": "fp8"},
            {"w.weight": ("F8_E4M3", [4, 4]), "w.weight_scale_inv": ("F32", [1, 1])},
        ),
    ],
)
def test_what_some_model_may_unpack_a_worker_is_to_find_out(tmp_path, stated, tensors):
    tensors = {"norm.weight": ("F16", [4])} | tensors
    config = {"quantization_config": stated}
    card = read_card(write_model(tmp_path / "m", config=config, tensors=tensors), "m")
    assert not card.unavailable


def test_a_layer_with_other_bits_is_counted_by_its_own(tmp_path):
    config = {"quantization": {"group_size": 64, "bits": 4, "b": {"group_size": 64, "bits": 8}}}
    tensors = {
        "a.weight": ("U32", [4, 8]),
        "a.scales": ("F16", [4, 1]),
        "a.biases": ("F16", [4, 1]),
        "b.weight": ("U32", [4, 8]),
        "b.scales": ("F16", [4, 1]),
        "norm": ("F16", [5]),
    }
    card = read_card(write_model(tmp_path / "m", config=config, tensors=tensors), "m")
    assert card.parameters == 4 * 8 * 8 + 4 * 8 * 4 + 5


def test_a_model_that_makes_vectors_completes_nothing(tmp_path):
    folder = write_model(tmp_path / "m", files={"config_sentence_transformers.json": "{}"})
    assert read_card(folder, "m").capabilities == ("embedding",)


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 8194, "pad_token_id": 1}, 8192),
        ({"model_type": "mpnet", "max_position_embeddings": 514}, 512),
        ({"model_type": "nomic_bert", "n_positions": 8192, "max_trained_positions": 2048,
          "max_position_embeddings": None}, 2048),
    ],
)  # fmt: skip
def test_an_encoder_makes_vectors_as_long_as_it_has_places(tmp_path, config, context):
    card = read_card(write_model(tmp_path / "m", config=config), "m")
    assert not card.unavailable
    assert (card.capabilities, card.context) == (("embedding",), context)


def test_an_encoder_that_sorts_texts_is_none_of_ours(tmp_path):
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    card = read_card(write_model(tmp_path / "m", config=config), "m")
    assert card.foreign
    assert card.unavailable.startswith("it sorts texts into classes")


INDEX = "model.safetensors.index.json"


def _part(folder, number, of, tensors):
    return write_weights(folder / f"model-{number:05d}-of-{of:05d}.safetensors", tensors)


def _sharded(folder, shards=2):
    write_model(folder)
    (folder / "model.safetensors").unlink()
    places = {}
    for number in range(1, shards + 1):
        file = _part(folder, number, shards, {f"t{number}": ("F16", [2, number])})
        places[f"t{number}"] = file.name
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    return folder


def test_all_parts_of_a_model_count(tmp_path):
    card = read_card(_sharded(tmp_path / "m", 3), "m")
    assert (card.parameters, card.weights_bytes) == (2 + 4 + 6, 2 * (2 + 4 + 6))
    assert card.flaw == card.unavailable == ""


def _index(weight_map):
    return lambda folder: (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("damage", "flaw"),
    [
        (
            lambda f: (f / "model-00002-of-00002.safetensors").unlink(),
            "its model-00002-of-00002.safetensors is missing",
        ),
        (
            lambda f: [
                (f / INDEX).unlink(),
                (f / "model-00001-of-00002.safetensors").unlink(),
            ],
            "its model-00001-of-00002.safetensors is missing",
        ),
        (_index({"x": "model-9.safetensors"}), "its model-9.safetensors is missing"),
        (_index({"x": "../../etc/passwd"}), "its passwd is missing"),
        (_index({"x": 7}), f"its {INDEX} does not say which file holds which tensor"),
        (_index([]), f"its {INDEX} does not say which file holds which tensor"),
        (lambda f: (f / INDEX).write_text("{"), f"its {INDEX} is not JSON"),
        (
            lambda f: write_weights(f / "model-a.safetensors", {"t2": ("F32", [2, 2])}),
            "its model-00002-of-00002.safetensors and model-a.safetensors differ in a tensor",
        ),
        (
            lambda f: write_weights(f / "model-a.safetensors", {}, trailing=b"\0"),
            "its model-a.safetensors is damaged",
        ),
    ],
)
def test_headers_that_do_not_fit_are_a_flaw_that_policy_may_pass_over(tmp_path, damage, flaw):
    folder = _sharded(tmp_path / "m")
    damage(folder)
    card = read_card(folder, "m")
    assert card.flaw.startswith(flaw)
    assert card.unavailable == ""


def test_an_index_that_was_left_behind_does_not_matter(tmp_path):
    folder = write_model(tmp_path / "m", tensors={"t1": ("F16", [2]), "t2": ("F16", [2])})
    parts = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    _index({"t1": parts[0], "t2": parts[1]})(folder)
    assert read_card(folder, "m").flaw == ""
    _index({"t1": parts[0], "t3": parts[1]})(folder)
    assert read_card(folder, "m").flaw == f"its {parts[1]} is missing"


def test_of_two_equal_tensors_of_one_name_one_counts(tmp_path):
    folder = _sharded(tmp_path / "m")
    write_weights(folder / "model-a.safetensors", {"t2": ("F16", [2, 2])})
    card = read_card(folder, "m")
    assert (card.flaw, card.parameters, card.weights_bytes) == ("", 6, 12)


def test_parts_of_a_million_are_not_counted_through(tmp_path):
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model-000001-of-999999.safetensors")
    assert read_card(folder, "m").flaw == "its model-000002-of-999999.safetensors is missing"


def _linked(target):
    return lambda file: (file.unlink(), file.symlink_to(target))


def _pipe(file):
    file.unlink()
    os.mkfifo(file)


def _socket(file):
    file.unlink()
    here = Path.cwd()
    os.chdir(file.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(file.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_pipe, "is no file"),
        (_socket, "is no file"),
        (lambda file: (file.unlink(), file.mkdir()), "is no file"),
        (_linked("/dev/zero"), "is no file"),
        (_linked("../blobs/gone"), "cannot be read: it is a link that leads nowhere"),
    ],
    ids=["pipe", "socket", "folder", "device", "dangling blob"],
)
def test_what_is_no_file_is_said_and_not_waited_for(tmp_path, name, damage, reason):
    folder = write_model(tmp_path / "m", files={"tokenizer_config.json": "{}"})
    damage(folder / name)
    assert read_card(folder, "m").unavailable == f"its {name} {reason}"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_a_link_to_itself_is_said(tmp_path, name):
    folder = write_model(tmp_path / "m")
    _linked(name)(folder / name)
    assert read_card(folder, "m").unavailable.startswith(f"its {name} cannot be read: too many")


def test_files_that_change_while_they_are_read_are_not_believed(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "m")

    def meanwhile(folder, quantization):
        (folder / "config.json").write_text("{}")
        return read_weights(folder, quantization)

    monkeypatch.setattr("mlxd.control.model_files.read_weights", meanwhile)
    assert read_card(folder, "m").unavailable == "its files change while they are read"


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write_bytes(file.read_bytes().replace(b"llama", b"LLAMA")),
        lambda file: file.chmod(file.stat().st_mode ^ 0o040),
        lambda file: (file.parent / "dangling").symlink_to("nowhere"),
    ],
    ids=["bytes", "mode", "a dead link"],
)
def test_the_fingerprint_sees_what_keeps_its_size_and_time(tmp_path, change):
    folder = write_model(tmp_path / "m")
    file = folder / "config.json"
    before, status = fingerprint(folder), file.stat()
    change(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint(folder) != before


@pytest.mark.parametrize(
    ("files", "config", "reason"),
    [
        (["x-Q4_K_M.gguf"], None, "its weights are GGUF"),
        (["weights.npz"], {"n_mels": 80}, "its weights are .npz"),
        (["pytorch_model.bin"], {"model_type": "llama"}, r"its weights are PyTorch's \(.bin\)"),
        (["model_index.json"], None, "it makes pictures"),
        (
            ["adapters.safetensors", "adapter_config.json"],
            None,
            "it is an adapter: name its folder in models.models.<name>.adapter",
        ),
        (["model.safetensors"], {"model_type": "whisper"}, "it works on sound"),
        (["model.safetensors"], {"model_type": "siglip"}, "it works on pictures"),
        (["model.safetensors"], {"model_type": "albert"}, "it is an encoder of a kind"),
        (["model.safetensors"], {"model_type": "t5"}, "it is an encoder with a decoder"),
    ],
)
def test_what_is_no_text_model_says_what_it_is(tmp_path, files, config, reason):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    card = read_card(tmp_path, "m")
    assert re.match(reason, card.unavailable)
    assert card.foreign


def test_a_broken_text_model_is_not_foreign(tmp_path):
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"")
    assert not read_card(folder, "m").foreign


@pytest.mark.parametrize(
    ("config", "files", "code", "needs"),
    [
        ({}, {}, "", False),
        ({"model_file": "model.py"}, {"model.py": ""}, "model.py", True),
        ({"auto_map": {"AutoModel": "m.M"}}, {}, "auto_map", False),
        (
            {},
            {"tokenizer_config.json": '{"auto_map": {"x": "t.T"}}', "tokenizer.json": "{}"},
            "auto_map",
            False,
        ),
        ({}, {"tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["t.T"]}}'}, "auto_map", 1),
    ],
)
def test_code_of_its_own_is_seen(tmp_path, config, files, code, needs):
    card = read_card(write_model(tmp_path / "m", config=config, files=files), "m")
    assert (card.code, card.needs_code) == (code, bool(needs))


@pytest.mark.parametrize("name", ["../model.py", "/etc/passwd", "gone.py", 7, ["x"]])
def test_code_beside_the_folder_is_never_named(tmp_path, name):
    (tmp_path / "model.py").write_text("")
    card = read_card(write_model(tmp_path / "m", config={"model_file": name}), "m")
    assert card.unavailable == "its config names a model_file that is not in its folder"


def test_a_large_tokenizer_config_is_no_hindrance(tmp_path):
    words = {str(n): {"content": "x" * 50} for n in range(40_000)}
    told = json.dumps({"added_tokens_decoder": words, "chat_template": "{{ tools }}"})
    card = read_card(write_model(tmp_path / "m", files={"tokenizer_config.json": told}), "m")
    assert (card.unavailable, card.chat_template) == ("", "{{ tools }}")


def test_a_large_index_is_no_hindrance(tmp_path):
    folder = _sharded(tmp_path / "m")
    _index({f"model.layers.{n}.weight": "model-00001-of-00002.safetensors" for n in range(40_000)})(
        folder
    )
    assert read_card(folder, "m").flaw == ""


@pytest.mark.parametrize("name", ["config.json", "chat_template.jinja", "generation_config.json"])
def test_a_file_that_is_larger_than_any_of_its_kind_is_not_read(tmp_path, name):
    folder = write_model(tmp_path / "m")
    (folder / name).write_text('{"model_type":"llama","x":[' + "[]," * 2**20 + "1]}")
    assert read_card(folder, "m").unavailable == f"its {name} is too large"


@pytest.mark.parametrize("linked", ["LICENSE", "chat_template.jinja"])
def test_no_text_is_shown_that_a_link_leads_to(tmp_path, linked):
    (tmp_path / "secret").write_text("mine")
    folder = write_model(tmp_path / "m")
    (folder / linked).symlink_to("../secret")
    card = read_card(folder, "m")
    assert "mine" not in (card.license, card.chat_template)
    words = "its chat_template.jinja is a link out of its folder"
    assert card.unavailable == ("" if linked == "LICENSE" else words)


def test_links_within_the_folder_and_the_hubs_cache_are_followed(tmp_path):
    folder = write_model(tmp_path / "models--a--b" / "snapshots" / "0", files={"terms": "as is"})
    blob = tmp_path / "models--a--b" / "blobs" / "1"
    blob.parent.mkdir()
    blob.write_text("{{ x }}")
    (folder / "chat_template.jinja").symlink_to("../../blobs/1")
    (folder / "LICENSE").symlink_to("terms")
    card = read_card(folder, "m")
    assert (card.license, card.chat_template, card.unavailable) == ("as is", "{{ x }}", "")


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layers", "num_kv_reuse_layers"])
@pytest.mark.parametrize("inside", [False, True])
def test_more_layers_than_tensors_are_none_that_can_be_loaded(tmp_path, key, inside):
    config = {key: 10**9}
    folder = write_model(tmp_path / "m", config={"text_config": config} if inside else config)
    flaw = "its config says of more layers than its weights have tensors (1)"
    assert read_card(folder, "m").flaw == flaw
    assert read_card(write_model(tmp_path / "n", config={key: 1}), "n").flaw == ""


def test_layers_that_only_the_top_of_a_config_tells_of_are_counted_too(tmp_path):
    config = {"num_hidden_layers": 10**9, "text_config": {"num_hidden_layers": 1}}
    card = read_card(write_model(tmp_path / "m", config=config), "m")
    assert card.flaw == "its config says of more layers than its weights have tensors (1)"


@pytest.mark.parametrize("name", [".model.safetensors.Xq3vZa", "training.log"])
def test_what_grows_beside_its_files_does_not_matter(tmp_path, monkeypatch, name):
    folder = write_model(tmp_path / "m")

    def meanwhile(folder, quantization):
        (folder / name).write_text("more of it")
        return read_weights(folder, quantization)

    before = read_card(folder, "m")
    monkeypatch.setattr("mlxd.control.model_files.read_weights", meanwhile)
    assert read_card(folder, "m") == before
