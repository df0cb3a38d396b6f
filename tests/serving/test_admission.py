"""How many get in, and what the others are told."""

import pytest

from onebase.serving.admission import Admission
from onebase.serving.errors import ApiError
from onebase.serving.settings import Limits


def refusal(admission: Admission, sequences: int) -> ApiError:
    with pytest.raises(ApiError) as caught, admission.admit(sequences):
        pass
    return caught.value


def test_a_full_queue_is_429_with_retry_after() -> None:
    admission = Admission(Limits(concurrent=2, queue=1, choices=3))
    with admission.admit(2), admission.admit(1):
        refused = refusal(admission, 1)
        assert (refused.status, refused.reason) == (429, "queue_full")
        assert refused.response().headers["Retry-After"] == "1"
    with admission.admit(3):
        pass
    assert admission.sequences == 0


@pytest.mark.parametrize(
    ("seconds", "times", "expected"),
    [
        (20.0, 1, 3),  # .9 * 1 + .1 * 20 = 2.9
        (20.0, 2, 5),  # .9 * 2.9 + .1 * 20 = 4.61
        (20.0, 100, 20),
        (0.0, 100, 1),
        (1000.0, 100, 60),
    ],
)
def test_retry_after_follows_what_requests_take(seconds: float, times: int, expected: int) -> None:
    admission = Admission(Limits(concurrent=1, queue=0))
    for _ in range(times):
        admission.record_duration(seconds)
    with admission.admit(1):
        assert refusal(admission, 1).retry_after == expected


@pytest.mark.parametrize("limits", [Limits(choices=4), Limits(concurrent=1, queue=3)])
def test_more_sequences_than_ever_fit_are_no_reason_to_wait(limits: Limits) -> None:
    admission = Admission(limits)
    refused = refusal(admission, 5)
    assert (refused.status, refused.reason, refused.param) == (400, "too_many_choices", "n")
    assert refused.retry_after is None
    with admission.admit(4):
        assert admission.sequences == 4


def test_on_the_way_out() -> None:
    admission = Admission(Limits())
    admission.close()
    refused = refusal(admission, 1)
    assert (refused.status, refused.reason) == (503, "shutting_down")
    assert refused.response().headers["Retry-After"] == "5"


def test_an_error_gives_the_place_back() -> None:
    admission = Admission(Limits())
    with pytest.raises(KeyError), admission.admit(2):
        raise KeyError
    assert admission.sequences == 0
