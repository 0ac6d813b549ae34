"""A thing is said once, and a program that says ever new things falls quiet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ksearch.runtime import notice


@pytest.fixture(autouse=True)
def nothing_said() -> Iterator[None]:
    notice.forget()
    yield
    notice.forget()


def test_the_same_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        notice.warn_once("key", "it runs PyTorch")
    assert caplog.messages == ["it runs PyTorch"]
    notice.forget()
    notice.warn_once("key", "it runs PyTorch")
    assert len(caplog.messages) == 2


def test_a_thousand_things_are_enough(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(1500):
        notice.warn_once(number, "another number")
    assert len(caplog.messages) == 1000
