import sys

from mlxd.control.ledger import Account, first_budget, free_bytes, reserve_of
from mlxd.control.memory import MemoryReading
from mlxd.ipc.messages import FrameReader, decode_down, encode
from mlxd.policy.schema import Memory

GIB = 2**30


def test_what_is_promised_and_not_yet_taken_is_not_free():
    reading = MemoryReading(total=1000, available=600)
    assert free_bytes(reading, 50, [], 0) == 550
    assert free_bytes(reading, 50, [Account(300, 0)], 0) == 250
    assert free_bytes(reading, 50, [Account(300, 200)], 0) == 450
    assert free_bytes(reading, 50, [Account(300, 400)], 0) == 550, "what is taken is counted once"
    assert free_bytes(reading, 50, [Account(900, 0)], 0) == -350


def test_a_gpu_bounds_the_sum_of_shares():
    reading = MemoryReading(total=1000, available=600)
    assert free_bytes(reading, 50, [Account(300, 200)], 400) == 100
    assert free_bytes(reading, 50, [Account(300, 350)], 400) == 50
    assert free_bytes(None, 50, [Account(300, 200)], 400) == 100


def test_without_a_reading_nobody_can_tell():
    assert free_bytes(None, 50, [Account(300, 0)], 0) is None


def test_an_account_frees_what_it_holds_or_may_hold():
    assert (Account(300, 200).share, Account(300, 400).share) == (300, 400)


def test_the_reserve_of_a_large_machine_and_of_a_small_one():
    assert reserve_of(Memory(), 128 * GIB) == 4 * GIB
    assert reserve_of(Memory(), 8 * GIB) == 8 * GIB // 10
    assert reserve_of(_memory(reserve={"system": "16GiB"}), 8 * GIB) == 16 * GIB


def _memory(**sections):
    return Memory.model_validate(sections)


def test_a_budget_follows_the_model_within_what_policy_says():
    auto = first_budget(64 * GIB, _memory())
    assert (auto.bytes, auto.cache_bytes, auto.wired_bytes) == (64 * GIB, GIB, 65 * GIB)
    assert first_budget(2**20, _memory()).cache_bytes == 16 * 2**20
    assert first_budget(16 * GIB, _memory()).cache_bytes == GIB // 2
    limits = {"mlx_memory_limit": "48GiB", "mlx_cache_limit": "2GiB", "wired_limit": "40GiB"}
    set_ = first_budget(64 * GIB, _memory(worker_limits=limits))
    assert (set_.bytes, set_.cache_bytes, set_.wired_bytes) == (48 * GIB, 2 * GIB, 40 * GIB)
    assert first_budget(GIB, _memory(worker_limits=limits)).bytes == GIB
    assert decode_down(FrameReader().feed(encode(set_))[0]) == set_, "it can be sent"


def test_workers_take_turns_where_metal_is_known_to_hurt(monkeypatch):
    for platform, expected in (("darwin", True), ("linux", False)):
        monkeypatch.setattr(sys, "platform", platform)
        assert first_budget(1, _memory()).exclusive is expected
        assert first_budget(1, _memory(gpu_exclusive=True)).exclusive is True
        assert first_budget(1, _memory(gpu_exclusive=False)).exclusive is False
