from dataclasses import replace

import pytest

from mlxd.control.predecessors import Predecessors
from mlxd.core.models import ModelCard
from mlxd.core.preset import Preset
from mlxd.core.request import Sampling

PLAIN = ModelCard("a", "/m/a", 1, "0" * 64, 0.0, "llama", 1, "4bit", 512, ("completion",))
EDITED = replace(PLAIN, kv_bits=8)
ADAPTED = replace(PLAIN, adapter="/m/adapter", digest="1" * 64, weights_bytes=2)


@pytest.fixture
def known():
    made = Predecessors()
    made.served(PLAIN)
    return made


@pytest.mark.parametrize("wanted", [EDITED, ADAPTED])
def test_what_cannot_be_loaded_is_served_as_before(known, wanted):
    assert known.settled(wanted) is wanted, "nobody has tried"
    assert known.refuse(wanted, "no") is PLAIN
    assert known.changes
    assert known.settled(wanted) == replace(PLAIN, held="no")


def test_what_says_nothing_of_loading_follows_its_edits_meanwhile(known):
    known.refuse(EDITED, "no")
    warm = Sampling(temperature=0.5)
    now = known.settled(
        replace(EDITED, sampling=warm, aliases=("b",), context=64, trained_context=512)
    )
    assert (now.sampling, now.aliases, now.context, now.kv_bits) == (warm, ("b",), 64, 0)


def test_another_edit_or_other_files_are_tried(known):
    known.refuse(ADAPTED, "no")
    for other in (EDITED, replace(ADAPTED, digest="2" * 64), PLAIN):
        assert known.settled(other) is other


def test_what_can_be_loaded_after_all_is_what_stays_from_then_on(known):
    known.refuse(ADAPTED, "no")
    known.served(known.settled(ADAPTED))
    assert known.settled(ADAPTED).held, "a load of what stays says nothing of the edit"
    before = known.changes
    known.served(EDITED)
    assert known.changes > before
    assert known.settled(ADAPTED) is ADAPTED
    assert known.refuse(ADAPTED, "no") is EDITED


def test_a_load_as_the_last_one_changes_nothing(known):
    before = known.changes
    known.served(replace(PLAIN))
    assert known.changes == before


def test_an_adapter_that_is_not_there_is_as_good_as_a_broken_one(known):
    missing = replace(ADAPTED, unavailable="it is not there", fault="adapter")
    now = known.settled(missing)
    assert (now.unavailable, now.held, now.spec) == ("", "it is not there", PLAIN.spec)
    broken = replace(missing, fault="")
    assert known.settled(broken) is broken, "its own files are to blame"


def test_nothing_stays_for_what_is_another_model_or_was_never_served(known):
    for other in (replace(EDITED, path="/m/b"), replace(EDITED, name="b"), PLAIN):
        assert known.refuse(other, "no") is None
        assert known.settled(other) is other


def test_code_that_is_trusted_no_more_does_not_come_back():
    known = Predecessors()
    known.served(replace(PLAIN, trust_remote_code=True))
    assert known.refuse(EDITED, "no") is None
    distrusted = replace(PLAIN, unavailable="it runs only with code", fault="trust_remote_code")
    assert known.settled(distrusted) is distrusted


def test_a_copy_follows_its_model_and_lends_it_nothing_of_its_own(known):
    copy = replace(PLAIN, name="c", copy_of="a", preset=Preset(), chat_template="its own")
    known.served(copy)
    assert known.refuse(replace(copy, kv_bits=8), "no") is PLAIN
    assert known.settled(EDITED).chat_template == ""
