"""How soon a failed load may be tried again."""

from rolemesh.agent.failures import Failures
from rolemesh.names import ModelId

A, B = ModelId("a"), ModelId("b")


def test_each_failure_in_a_row_doubles_the_wait_up_to_a_minute() -> None:
    failures = Failures()
    waits = []
    for _ in range(5):
        failures.record(A, "no memory", now=100.0)
        failure = failures.of(A)
        assert failure is not None
        waits.append(failure.retry_at - 100.0)
    assert waits == [10.0, 20.0, 40.0, 60.0, 60.0]


def test_a_success_forgets_the_failures_of_that_model_only() -> None:
    failures = Failures()
    failures.record(A, "x", now=0.0)
    failures.record(B, "y", now=0.0)
    failures.forget(A)
    failures.forget(ModelId("never heard of"))
    assert failures.of(A) is None
    assert failures.of(B) is not None
    failures.record(A, "x", now=0.0)
    again = failures.of(A)
    assert again is not None
    assert again.backoff_s == 10.0


def test_serials_grow_over_all_models() -> None:
    failures = Failures()
    assert failures.serial == 0
    failures.record(A, "x", now=0.0)
    failures.record(B, "y", now=0.0)
    assert failures.serial == 2
    failure = failures.of(B)
    assert failure is not None
    assert (failure.serial, failure.reason) == (2, "y")
