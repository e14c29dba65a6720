"""What a hook of the plug-in raises."""

from __future__ import annotations

import logging

import pytest

from etcd_pd.sglang.guard import Original, guard, guard_around


def own(number: int) -> int:
    """SGLang's own function."""
    if number < 0:
        raise RuntimeError("SGLang's own")
    return number


def test_a_hook_raises_nothing_when_it_has_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    def faulty(result: object, *args: object) -> None:
        raise KeyError("a fault")

    assert guard(faulty)(None, "request") is None
    assert "a fault of its own in faulty" in caplog.text and "KeyError" in caplog.text


def test_sglangs_own_function_is_called_when_the_hook_around_it_has_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    def faulty(original: Original, number: int) -> int:
        raise KeyError("a fault")

    assert guard_around(faulty)(own, 7) == 7
    assert "a fault of its own in faulty" in caplog.text


def test_an_error_of_sglangs_own_function_is_passed_on_when_a_hook_calls_it(caplog: pytest.LogCaptureFixture) -> None:
    def around(original: Original, number: int) -> int:
        return int(original(number)) + 1

    assert guard_around(around)(own, 7) == 8
    with caplog.at_level(logging.ERROR), pytest.raises(RuntimeError, match="SGLang's own"):
        guard_around(around)(own, -1)
    assert not caplog.records


def fetch(address: str) -> int:
    """As SGLang's own function that fetches and checks in one."""
    answer = requests.get(address)  # type: ignore[name-defined]  # noqa: F821
    if answer.json()["page_size"] != 1:
        raise RuntimeError("Page size mismatch")
    return int(answer.status_code)


def test_an_error_of_sglangs_own_check_is_passed_on_when_it_is_called_with_an_answer() -> None:
    def around(original: Original, page_size: int) -> int:
        return int(original.call_answered({"page_size": page_size}, "host:1"))

    assert guard_around(around)(fetch, 1) == 200
    with pytest.raises(RuntimeError, match="Page size mismatch"):
        guard_around(around)(fetch, 2)
