"""The xenstore client against a peer that may lie: every request ends, and all memory is given back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from oracles import judge
from reference_impl.scenario import OPERATIONS, Blob, Operation, operation, operations_of, scenario
from reference_impl.trace import Kind
from reference_impl.world import run
from tests.scenarios import records

ASK = operation("ask")


def ring(*operations):
    """The trace of a scenario of the ring world."""
    return run(scenario(world="ring", operations=operations))


def answers(what, data=b""):
    """The peer's plan for one request."""
    return operation("answer", what=what, data=data)


def waits(trace):
    """How often the client waited."""
    return len(records(trace, Kind.SERVICE, "WaitForEvent"))


def test_an_honest_peer_is_not_waited_for():
    """Every kind of request is answered at once."""
    kinds = OPERATIONS["ask"].fields[0].values
    trace = ring(*(operation("ask", request=kind) for kind in kinds))
    assert waits(trace) == 0


def test_a_silent_peer_is_given_up_after_a_bounded_wait():
    """The client waits `PATIENCE` times, and then the request fails."""
    from reference_impl.xenbus.xenstore_client import PATIENCE

    assert waits(ring(answers("nothing"), ASK)) == PATIENCE


def test_many_bounded_waits_are_no_wait_without_end():
    """A silent peer and many requests use up the budget of steps between them, in whichever call: each would have ended."""
    calls = set()
    for before in range(8):
        trace = ring(*[operation("fail")] * before, *[answers("nothing"), ASK] * 24)
        (stuck,) = records(trace, Kind.STUCK)
        calls |= {stuck.arguments}
        assert judge(trace) == []
    assert ("WaitForEvent",) in calls


def test_an_answer_to_another_request_is_passed_over():
    """The right answer behind it is found without a wait."""
    assert waits(ring(answers("wrong-id"), ASK)) == 0


def test_a_watch_event_between_request_and_answer_is_taken():
    """Events of known and of unknown watches are told apart by their token."""
    watch = operation("ask", request="WATCH")
    trace = ring(watch, answers("watch-event"), ASK, answers("watch-event", b"no token"), ASK)
    assert waits(trace) == 0


def test_a_body_longer_than_the_protocol_allows_ends_the_request():
    """Nothing of that length is allocated."""
    trace = ring(answers("too-long"), ASK)
    assert all(record.arguments[1] < 4096 for record in records(trace, Kind.SERVICE, "AllocatePool"))


def test_what_is_left_of_a_cut_answer_does_not_stop_later_requests_from_ending():
    """The conversation is out of step; each request still ends."""
    ring(answers("cut", b"1234"), ASK, ASK, ASK)


def test_a_wrong_type_and_an_error_end_the_request():
    """Both are errors at once, without a wait."""
    assert waits(ring(answers("wrong-type"), ASK, answers("error", b"EACCES\0"), ASK)) == 0


def test_a_transaction_id_that_is_no_number_is_refused():
    """The peer's text is not trusted."""
    start = operation("ask", request="TRANSACTION_START")
    ring(answers("raw"), start)
    assert waits(ring(answers("error", b""), start)) == 0


def test_refused_memory_keeps_the_conversation_in_step():
    """A message for which there is no memory is still taken from the ring."""
    for nth in range(1, 4):
        trace = ring(operation("fail", call="AllocatePool -> EFI_OUT_OF_RESOURCES", nth=nth), ASK, ASK)
        assert records(trace, Kind.INJECTED)
        assert waits(trace) == 0


def values(field):
    """Any value of a field."""
    return st.binary(max_size=field.size_max) if isinstance(field, Blob) else st.sampled_from(field.values)


OPERATION = st.sampled_from(operations_of("ring")).flatmap(
    lambda kind: st.tuples(*map(values, OPERATIONS[kind].fields)).map(lambda arguments: Operation(kind, arguments))
)


@settings(max_examples=150, deadline=None)
@given(st.lists(OPERATION, max_size=12))
def test_no_peer_makes_the_client_crash_hang_or_leak(operations):
    """Whatever the peer says and whichever index it moves: requests end and memory comes back (asserted inside)."""
    trace = ring(*operations)
    assert len(trace.records) > 0 or not operations
