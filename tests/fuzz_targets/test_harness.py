"""Running a scenario in several orders."""

from __future__ import annotations

import pytest

from fuzz_targets.harness import orders_to_compare, run_and_judge, run_in_orders
from fuzz_targets.registry import TARGETS
from tests.scenarios import CONNECT, CORRECT_DESIGNS, EXIT, platform


def orders(scenario):
    """Which others would be run."""
    return orders_to_compare(scenario.order, run_and_judge(scenario).trace)


@pytest.mark.parametrize(
    ("devices", "order", "others"),
    [
        (0, "edk2", []),
        (1, "edk2", ["fifo"]),
        (1, "fifo", ["edk2"]),
        (2, "edk2", ["fifo", (1, 2, 0)]),
        (2, (1, 2, 0), ["edk2", "fifo"]),
        (2, (2, 0, 1), ["edk2", "fifo", (1, 2, 0)]),
    ],
)
def test_other_orders_are_those_that_make_a_difference(devices, order, others):
    """With one notification there are none; the scenario's own does not come again."""
    assert orders(platform("reference-count", CONNECT, EXIT, devices=["block"] * devices, order=order)) == others


def test_without_an_exit_there_is_nothing_to_compare():
    """Nobody is notified."""
    assert orders(platform("reference-count", CONNECT, devices=["block", "block"])) == []


@pytest.mark.parametrize("design", CORRECT_DESIGNS)
def test_correct_designs_do_not_depend_on_the_order(design):
    """Nor does it matter in which order the comparison begins."""
    for order in ("edk2", "fifo", (2, 0, 1)):
        scenario = platform(design, CONNECT, EXIT, devices=["block", "network"], order=order)
        assert run_in_orders(scenario).findings == []


def test_what_depends_on_the_order_is_found_in_any_order():
    """A device that hands off as in Stop leaves the reset to the bus, which comes too early or too late."""
    scenarios = [
        platform("reference-count", CONNECT, EXIT, devices=["block"], fault="handed-off-as-false", order=order)
        for order in ("edk2", "fifo")
    ]
    for scenario in scenarios:
        assert "order-independence/verdict-differs/XenBusDxe/missed-reset" in {
            finding.signature for finding in run_in_orders(scenario).findings
        }
        assert not any(finding.oracle == "order-independence" for finding in run_and_judge(scenario).findings)


def test_only_one_target_shuffles():
    """The others keep their speed; what is replayed by hand is compared as well."""
    assert [name for name, target in TARGETS.items() if target.shuffles] == ["exit_boot_services"]
    scenario = platform("reference-count", CONNECT, EXIT, devices=["block"], fault="handed-off-as-false")
    assert any(
        finding.oracle == "order-independence" for finding in TARGETS["exit_boot_services"].run(scenario).findings
    )
    assert not any(finding.oracle == "order-independence" for finding in TARGETS["lifecycle"].run(scenario).findings)
