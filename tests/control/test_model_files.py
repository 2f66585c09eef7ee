import json
import struct

import pytest

from mlxd.control.model_files import fingerprint, read_card


def write_model(folder, *, config=None, tensors=None, files=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "max_position_embeddings": 2048} | (config or {}))
    )
    tensors = {"w": ("F16", [4, 8])} if tensors is None else tensors
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset]}
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * 64)
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


def test_the_fingerprint_changes_with_a_file(tmp_path):
    folder = write_model(tmp_path / "m")
    before = fingerprint(folder)
    (folder / "config.json").write_text("{}")
    assert fingerprint(folder) != before
