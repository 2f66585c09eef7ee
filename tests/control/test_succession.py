from dataclasses import replace

from mlxd.control.succession import Fate, Succession
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
