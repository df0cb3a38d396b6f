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
        assert refused.status == 429
        assert int(refused.response().headers["Retry-After"]) >= 1
    with admission.admit(3):
        pass
    assert admission.sequences == 0


def test_retry_after_follows_what_requests_take() -> None:
    admission = Admission(Limits(concurrent=1, queue=0))
    for _ in range(100):
        admission.record_duration(20.0)
    with admission.admit(1):
        assert 15 <= (refusal(admission, 1).retry_after or 0) <= 20


def test_more_choices_than_one_request_may_have() -> None:
    assert refusal(Admission(Limits(choices=4)), 5).status == 400


def test_more_than_ever_fits_is_no_reason_to_wait() -> None:
    assert refusal(Admission(Limits(concurrent=1, queue=1)), 3).status == 400


def test_on_the_way_out() -> None:
    admission = Admission(Limits())
    admission.close()
    refused = refusal(admission, 1)
    assert refused.status == 503
    assert "Retry-After" in refused.response().headers


def test_an_error_gives_the_place_back() -> None:
    admission = Admission(Limits())
    with pytest.raises(KeyError), admission.admit(2):
        raise KeyError
    assert admission.sequences == 0
