"""Norms over groups of channels: what is a row of them, what cannot be traced, and which calls are theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import ksearch
from ksearch import operators
from ksearch.errors import BadShape, TraceError
from ksearch.evaluate.inputs import split
from ksearch.operators.program import Input, Role
from ksearch.operators.trace import trace
from ksearch.runtime.reading import Reader
from ksearch.runtime.region import _is_near
from ksearch.types import Option, Workload

F = torch.nn.functional
SHAPE = (3, 12, 5, 7)


def of(name: str, shape: tuple[int, ...] = SHAPE, **options: Option) -> Workload:
    return operators.get(name).workload(shape, **options)


def test_rows_are_groups_channels_or_what_all_samples_have_of_a_channel() -> None:
    found = {
        name: (work.layout, work.rows, work.cols, work.together, work.segment)
        for name, options in {
            "groupnorm": {"groups": 4}, "instancenorm": {}, "batchnorm": {}, "batchnorm_training": {}
        }.items()
        if (work := of(name, **options))  # type: ignore[arg-type]
    }  # fmt: skip
    assert found == {
        "groupnorm": ("groups 4", 12, 105, 4, 0),
        "instancenorm": ("groups each", 36, 35, 12, 0),
        "batchnorm": ("channels", 180, 7, 60, 0),
        "batchnorm_training": ("groups across", 12, 105, 1, 35),
    }


def test_what_is_near_differs_in_the_number_of_samples_alone() -> None:
    one = of("groupnorm", groups=4)
    assert _is_near(one, of("groupnorm", (9, 12, 5, 7), groups=4))
    assert not _is_near(one, of("groupnorm", (3, 12, 7, 5), groups=4))
    assert not _is_near(one, of("groupnorm", (3, 4, 15, 7), groups=4))
    across = of("batchnorm_training")
    assert _is_near(across, of("batchnorm_training", (3, 40, 5, 7)))
    assert not _is_near(across, of("batchnorm_training", (5, 12, 3, 7)))


@pytest.mark.parametrize("most", [10**6, 4 * 105, 1])
def test_parts_are_every_channel_once(most: int) -> None:
    tensor = torch.arange(3 * 12 * 35).view(3, 12, 35)
    parts = split(12, 105, flat=False, max_elements=most, segment=35)
    lines = torch.cat([part.take(tensor.view(12, 105), Role.FULL) for part in parts])
    assert torch.equal(lines, tensor.transpose(0, 1).reshape(12, 105))
    weights = torch.cat([part.take(torch.arange(12).view(1, 12), Role.CHANNEL) for part in parts])
    assert torch.equal(weights, torch.arange(12))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, w: F.group_norm(x, 4, w * 2), "must be a tensor of the op as it is"),
        (lambda x, w: F.batch_norm(x, w, w, training=True), "running statistics that it changes"),
        (lambda x, w: F.instance_norm(x, w, w), "running_mean"),
        (lambda x, w: F.group_norm(x, 4, w).softmax(-1), "and another reduction over something else"),
        (lambda x, w: F.group_norm(x.softmax(-1), 4, w), "and another reduction over something else"),
        (lambda x, w: F.layer_norm(x.softmax(-2), x.shape[-1:]), "all of an op are over the same dims"),
        (lambda x, w: F.group_norm(x, 4, w) * x.shape[-1], "the last dim is not what it reduces over"),
    ],
)
def test_what_cannot_be_traced_is_told(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        trace(function, [Input("x"), Input("w")], {})


def test_a_shape_without_channels_is_refused() -> None:
    with pytest.raises(BadShape, match="needs a second dim, that of the channels"):
        of("groupnorm", (12,), groups=4)
    with pytest.raises(BadShape, match="does not run on shape 3x12x5x7"):
        of("groupnorm", groups=5)


def test_calls_in_pytorchs_form_are_read() -> None:
    x, w = torch.randn(SHAPE), torch.rand(12)
    for function, name, args, named in (
        (F.group_norm, "group_norm", (4, w, w), {"eps": 1e-3}),
        (F.instance_norm, "instance_norm", (), {"weight": w, "bias": w}),
        (F.batch_norm, "batch_norm", (w, w, w, w), {}),
        (F.batch_norm, "batch_norm", (None, None, w, w, True), {}),
    ):
        given = getattr(ksearch.ops, name)(x, *args, **named)
        torch.testing.assert_close(given, function(x, *args, **named), rtol=0, atol=0)
    reading = Reader(operators.get("groupnorm")).read((x, 4, w), {})
    assert (reading.options, reading.roles) == (
        {"groups": 4, "eps": 1e-5},
        {"weight": "channel", "bias": "none"},
    )
    assert not reading.reason
    reading = Reader(operators.get("batchnorm")).read((x, w, w), {"training": True})
    assert reading.reason == "the statistics are those of the batch"
