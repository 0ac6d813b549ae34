"""A loaded kernel is called only with what it was tuned for; the fake one fills its output with 42."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

import ksearch
from ksearch.errors import UsageError
from ksearch.runtime.handle import call_pytorch
from tests.runtime.conftest import promote

SHAPE = (4, 8)


@pytest.fixture(params=[False, True], ids=["each time", "ready"])
def handle(request, backend):
    """Of a kernel that is started each time, or by starts that were made ready."""
    backend.is_plain = request.param
    promote("softmax", SHAPE, alignment=16)
    return ksearch.load("softmax", SHAPE)


def expect_pytorch(handle, caplog, words: str, *tensors, **options) -> torch.Tensor:
    """PyTorch's answer, and one line of log however often it is called."""
    wanted = torch.softmax(tensors[0].detach(), -1).clone()
    result = handle(*tensors, **options)
    torch.testing.assert_close(result.detach(), wanted)
    if not options:
        handle(*tensors)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert words in said[0]
    return result


def test_what_fits_runs_the_kernel(handle):
    assert (handle(torch.randn(SHAPE)) == 42).all()


def test_the_kernel_gets_inputs_then_output_and_rows(handle, backend):
    x, out = torch.randn(SHAPE), torch.empty(SHAPE)
    assert handle(x, out=out) is out
    assert backend.launched == [((x.data_ptr(), out.data_ptr()), 4, 0)]


def test_another_shape(handle, caplog):
    expect_pytorch(handle, caplog, "not of shape (4, 8)", torch.randn(4, 9))


def test_the_same_number_of_elements_in_another_shape(handle, caplog):
    expect_pytorch(handle, caplog, "not of shape (4, 8)", torch.randn(8, 4))


def test_another_dtype(handle, caplog):
    expect_pytorch(handle, caplog, "not torch.float32", torch.randn(SHAPE, dtype=torch.float64))


def test_not_contiguous(handle, caplog):
    expect_pytorch(handle, caplog, "not contiguous", torch.randn(8, 4).t())


def test_not_aligned(handle, caplog):
    x = torch.randn(33)[1:].view(SHAPE)
    assert x.is_contiguous()
    expect_pytorch(handle, caplog, "multiple of 16 bytes", x)


def test_an_out_that_is_not_aligned(handle, caplog):
    out = torch.empty(33)[1:].view(SHAPE)
    expect_pytorch(handle, caplog, "multiple of 16 bytes", torch.randn(SHAPE), out=out)
    assert not (out == 42).any()


def test_an_out_that_is_not_contiguous(handle, caplog):
    expect_pytorch(handle, caplog, "out is not contiguous", torch.randn(SHAPE), out=torch.empty(8, 4).t())


def test_in_place(handle, caplog):
    x = torch.randn(SHAPE)
    assert expect_pytorch(handle, caplog, "overlaps", x, out=x) is x


def test_an_out_that_overlaps_in_part(handle, caplog):
    memory = torch.randn(64)
    expect_pytorch(handle, caplog, "overlaps", memory[:32].view(SHAPE), out=memory[16:48].view(SHAPE))


def test_an_out_right_behind_the_input_does_not_overlap(handle):
    memory = torch.randn(64)
    x, out = memory[:32].view(SHAPE), memory[32:].view(SHAPE)
    assert (handle(x, out=out) == 42).all()
    assert (handle(out, out=x) == 42).all()


@pytest.mark.parametrize("found", [True, False])
@pytest.mark.parametrize(
    "out", [torch.empty(4, 9), torch.empty(4, 8, dtype=torch.float16), torch.empty(4, 8, device="meta")]
)
def test_an_out_that_cannot_hold_the_result_is_an_error(handle, out, found):
    called = handle if found else ksearch.load("softmax", SHAPE, "float16")
    with pytest.raises(UsageError, match=r"softmax: out is \(4, "):
        called(torch.randn(SHAPE), out=out)


def test_gradients_come_from_pytorch(handle, caplog):
    x = torch.randn(SHAPE, requires_grad=True)
    weights = torch.randn(SHAPE)
    result = expect_pytorch(handle, caplog, "requires a gradient", x)
    (ours,) = torch.autograd.grad((result * weights).sum(), x)
    (wanted,) = torch.autograd.grad((torch.softmax(x, -1) * weights).sum(), x)
    torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_wanted(handle, mode):
    x = torch.randn(SHAPE, requires_grad=True)
    with mode():
        assert (handle(x) == 42).all()
        assert (handle(x, out=torch.empty(SHAPE)) == 42).all()


def test_a_parameter_is_a_plain_tensor(handle):
    assert (handle(torch.nn.Parameter(torch.randn(SHAPE), requires_grad=False)) == 42).all()


def test_writing_out_is_seen_by_autograd(handle):
    out = torch.ones(SHAPE)
    x = torch.ones(SHAPE, requires_grad=True)
    later = (x * out).sum()
    handle(torch.randn(SHAPE), out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        later.backward()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_vmap_and_forward_mode_derivatives_go_to_pytorch(handle):
    x = torch.randn(3, *SHAPE)
    torch.testing.assert_close(torch.func.vmap(handle)(x), torch.softmax(x, -1))
    one, tangent = torch.randn(SHAPE), torch.randn(SHAPE)
    wanted = torch.func.jvp(lambda t: torch.softmax(t, -1), (one,), (tangent,))
    for ours, theirs in zip(torch.func.jvp(handle, (one,), (tangent,)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(one, tangent)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(handle(dual)).tangent, wanted[1])


def test_a_tensor_subclass_goes_to_pytorch(handle, caplog):
    class Tagged(torch.Tensor):
        pass

    x = torch.randn(SHAPE).as_subclass(Tagged)
    assert type(handle(x)) is Tagged
    assert "not a plain tensor" in caplog.text


def test_sparse_goes_to_pytorch_which_has_the_last_word(handle):
    with pytest.raises(Exception, match=r"(?i)sparse"):
        handle(torch.randn(SHAPE).to_sparse())


def test_a_wrong_number_of_tensors_is_an_error(handle):
    with pytest.raises(UsageError, match="takes 1 tensors"):
        handle()
    with pytest.raises(UsageError, match="takes 1 tensors"):
        handle(torch.randn(SHAPE), torch.randn(SHAPE))


def test_an_out_does_not_pass_for_an_input_that_is_missing(backend):
    """Of one shape, they look the same to what is asked on calls after the first."""
    promote("rmsnorm", (8,), weight="row")
    handle = ksearch.load("rmsnorm", (8,), weight="row")
    x, weight, out = torch.randn(8), torch.randn(8), torch.empty(8)
    for call in (handle, ksearch.ops.rmsnorm):
        assert (call(x, weight) == 42).all()
    count = len(backend.launched)
    with pytest.raises(UsageError, match="takes 2 tensors"):
        handle(x, out=out)
    torch.testing.assert_close(
        ksearch.ops.rmsnorm(x, out=out), torch.nn.functional.rms_norm(x, (8,), eps=1e-6)
    )
    with pytest.raises(UsageError, match="out must be a tensor"):
        ksearch.ops.rmsnorm(x, weight, out=())
    assert len(backend.launched) == count


def test_a_kernel_that_does_not_start(handle, backend, caplog):
    backend.refuse_launch = True
    expect_pytorch(handle, caplog, "CUDA_ERROR_INVALID_VALUE", torch.randn(SHAPE))


def test_the_dtype_stays_under_autocast_whoever_runs():
    def product(x: torch.Tensor) -> torch.Tensor:
        return torch.prod(x, -1)

    op = SimpleNamespace(name="product", reference=product)
    x, out = torch.randn(SHAPE, dtype=torch.bfloat16), torch.empty(4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(x).dtype is torch.float32, "what torch would do"
        assert call_pytorch(op.name, op.reference, (x,), {}, None).dtype is torch.bfloat16
        assert call_pytorch(op.name, op.reference, (x,), {}, out) is out


def test_several_inputs_each_by_its_role(backend, caplog):
    @ksearch.op
    def scaled_by(x, weight):
        return x * weight

    promote("scaled_by", SHAPE)
    handle = ksearch.load("scaled_by", SHAPE)
    x, weight = torch.randn(SHAPE), torch.randn(8)
    assert (handle(x, weight) == 42).all()
    wide = torch.randn(SHAPE)
    torch.testing.assert_close(handle(x, wide), x * wide)
    assert "an input is not of shape (8,)" in caplog.text
    assert (handle(x, weight, out=torch.empty(SHAPE)) == 42).all()
    torch.testing.assert_close(handle(x.clone(), weight, out=x), x)


def test_threads_call_one_handle(handle):
    right = []

    def call() -> None:
        right.extend(bool((handle(torch.randn(SHAPE)) == 42).all()) for _ in range(200))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 800


@pytest.mark.parametrize("through", ["handle", "ops"])
def test_torch_compile_sees_the_ops_own_function_or_a_kernel(handle, through):
    called = handle if through == "handle" else ksearch.ops.softmax
    compiled = torch.compile(lambda x: called(x) + 1, backend="eager", fullgraph=True)
    x = torch.randn(SHAPE)
    wanted = torch.softmax(x, -1) if through == "handle" else torch.full(SHAPE, 42.0)
    torch.testing.assert_close(compiled(x), wanted + 1)


def test_what_was_learned_without_gradients_does_not_hold_with_them(handle):
    """torch's guards know whether a tensor requires a gradient, and not whether one is taken."""
    x, plain = torch.randn(SHAPE, requires_grad=True), torch.randn(SHAPE)
    for mode in (torch.no_grad, torch.inference_mode):
        for _ in range(3):
            with mode():
                assert (handle(x) == 42).all()
                assert (handle(x, out=torch.empty(SHAPE)) == 42).all()
            result = handle(x)
            assert result.requires_grad
            torch.testing.assert_close(result, torch.softmax(x, -1))
            assert (handle(plain) == 42).all()


def test_a_call_like_an_earlier_one_is_looked_at_in_one_step(handle, backend, monkeypatch):
    x, out = torch.randn(SHAPE), torch.empty(SHAPE)
    handle(x), handle(x, out=out)
    monkeypatch.setattr(handle.kernel, "_unfit", lambda *given: pytest.fail("it was looked at again"))
    assert (handle(torch.randn(SHAPE)) == 42).all()
    assert (handle(x, out=out) == 42).all()
    with torch.no_grad():
        assert (handle(x) == 42).all()
    assert len(backend.launched) == 5


def test_a_call_that_cannot_be_known_again_does_not_push_out_those_that_can(handle, monkeypatch):
    x = torch.randn(SHAPE)
    handle(x, out=torch.empty(SHAPE))
    for _ in range(8):
        handle.kernel._learn((x, x))
    monkeypatch.setattr(handle.kernel, "_unfit", lambda *given: pytest.fail("it was looked at again"))
    assert (handle(x, out=torch.empty(SHAPE)) == 42).all()


def test_without_torchs_guards_every_tensor_is_looked_at(handle, monkeypatch):
    monkeypatch.setattr("ksearch.runtime.quick._Guards", None)
    for _ in range(3):
        assert (handle(torch.randn(SHAPE)) == 42).all()
        torch.testing.assert_close(handle(torch.zeros(4, 9)), torch.softmax(torch.zeros(4, 9), -1))
