"""Threads that call softmax at the same time, while what was found is forgotten now and then."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from ksearch import runtime


def wrong_answers(softmax: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: str) -> list[int]:
    """Numbers of the threads that got another answer than PyTorch's, once for each."""
    inputs = [torch.randn(shape, device=device) for _ in range(8)]
    wrong: list[int] = []

    def work(place: int) -> None:
        x, wanted = inputs[place], torch.softmax(inputs[place], -1)
        for turn in range(300):
            if turn % 100 == 50 and place == 0:
                runtime.refresh()
            if not torch.allclose(softmax(x), wanted, rtol=2e-5, atol=2e-6):
                wrong.append(place)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong
