from dataclasses import replace
from typing import Any

from mlxd.control.model_settings import ways_of_loading
from mlxd.control.succession import Fate, Succession
from mlxd.policy.schema import Models
from tests.control.test_residency import card


def test_a_model_whose_name_leads_to_it_stays_under_its_present_card():
    now = replace(card("A"), path="a", context=9, trained_context=512)
    assert Succession([now]).fate(card("a")) == Fate(now)


def test_a_model_whose_name_is_gone_goes():
    assert Succession([card("b")]).fate(card("a")) == Fate(None)


def test_a_model_whose_name_leads_elsewhere_has_a_successor():
    new = card("a", path="new")
    assert Succession([new]).fate(card("a")) == Fate(None, new)


def test_a_model_that_another_name_leads_to_is_called_by_the_first_of_them():
    new, other, third = card("a", path="new"), card("y", path="a"), card("z", path="a")
    assert Succession([new, other, third]).fate(card("a")) == Fate(other, new)
    assert Succession([other]).fate(card("a")) == Fate(other)


def test_a_name_whose_folder_cannot_be_read_says_nothing():
    unmounted = replace(card("a", path="elsewhere"), unavailable="not mounted")
    assert Succession([unmounted]).fate(card("a")) == Fate(card("a"))


def meaning(**own):
    models = {"a": own} if own else {}
    return ways_of_loading(Models.model_validate({"models": models, "dirs": ["/m"]}))


def test_names_mean_the_same_until_a_folder_or_a_shape_changes():
    assert meaning() == meaning(ttl="never", pinned=True, kv_bits="none")
    changes: list[dict[str, Any]] = [
        {"path": "/elsewhere"},
        {"adapter": "/x"},
        {"chat_template": "/x"},
        {"trust_remote_code": True},
        {"kv_bits": 8},
        {"kv_bits": 4},
    ]
    assert len({meaning(**change) for change in changes}) == len(changes)
    assert all(meaning(**change) != meaning() for change in changes)
