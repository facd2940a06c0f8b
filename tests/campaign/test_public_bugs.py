"""The table of public bugs: whole, and with places that can be looked up."""

from __future__ import annotations

import re

from campaign import public_bugs
from campaign.public_bugs import BUGS, link_of, similar_to
from oracles import RULES


def test_a_rule_has_the_bugs_that_it_is_like():
    """The one that this project began with among them."""
    bugs = similar_to("memory-services", "direct-call")
    assert "tianocore/edk2#9802" in bugs["ebs-memory-direct"].places
    assert similar_to("canary", "planted") == {}


def test_every_bug_is_told_and_every_id_is_known():
    """A sentence without a full stop, as it stands in a list; and no id that is nobody's."""
    for bug in BUGS.values():
        assert re.fullmatch(r"[A-Za-z].*[^.]", bug.what)
        assert bug.places
    assert {name for names in public_bugs._RULES.values() for name in names} <= set(BUGS)


def test_no_rule_is_misspelt() -> None:
    """What the table says is about rules that an oracle has."""
    assert set(public_bugs._RULES) <= {f"{oracle}/{rule}" for oracle, rules in RULES.items() for rule in rules}


def test_places_lead_to_issues_and_commits():
    """What is said in words leads nowhere."""
    assert link_of("tianocore/edk2#9802") == "https://github.com/tianocore/edk2/issues/9802"
    assert link_of("ipxe/ipxe@6769a7c3c") == "https://github.com/ipxe/ipxe/commit/6769a7c3c"
    assert link_of("XenBusDxe as shipped") == ""
    places = [place for bug in BUGS.values() for place in bug.places if " " not in place]
    assert all(re.fullmatch(r"[\w-]+/[\w-]+(#\d+|@[0-9a-f]{9,11})", place) for place in places)
