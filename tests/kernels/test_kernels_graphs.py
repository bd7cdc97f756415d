"""A captured function is used only where it does what the function does; the stand-in of replaying.py captures on a CPU."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from replaying import Remembering, remembering
from torch import Tensor, nn

from ctcovid.kernels import choice, graphs
from ctcovid.kernels.graphs import Graphs, Outputs

CPU = torch.device("cpu")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Remembering:
    return remembering(monkeypatch)


class Layer(nn.Module):
    """A linear layer behind a batch norm and a dropout, whose weight may be kept `ready`, as convolutions keep theirs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.drop, self.fc = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)
        self.ready: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.fc.weight if self.ready is None else self.ready
        return nn.functional.linear(self.drop(self.norm(x)), weight, self.fc.bias)


def inputs(count: int, rows: int = 6) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(rows, 4, generator=generator) for _ in range(count))


def pair() -> tuple[Layer, Layer, Graphs]:
    """Two equal networks, and the graphs of the second one."""
    one, other = Layer(), Layer()
    return one, other, Graphs(other, CPU, torch.float32)


def gradients_of(layer: Layer) -> Callable[[Tensor], Outputs]:
    def function(x: Tensor) -> Outputs:
        loss = layer(x).square().mean()
        return loss.detach(), *torch.autograd.grad(loss, list(layer.parameters()))

    return function


def equal(found: Outputs, expected: Outputs) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True) if one is not None and other is not None)


def test_replays_are_what_the_function_gives_while_weights_change_and_statistics_and_random_numbers_go_on(recorder: Remembering) -> None:
    one, other, captured = pair()
    for number, x in enumerate(inputs(5)):
        torch.manual_seed(number)
        expected = gradients_of(one)(x)
        after = torch.randn(1)
        torch.manual_seed(number)
        assert equal(captured.run("a step", gradients_of(other), x), expected)
        assert torch.equal(torch.randn(1), after)
        for layer in (one, other):
            with torch.no_grad():
                layer.fc.weight.mul_(1.1)
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    # The capture is followed by two replays that are held against the function, of which the second counts.
    assert (recorder.captures, recorder.replays) == (1, 2 + 4)


def test_each_shape_and_key_has_a_graph_and_results_that_are_not_lent_outlive_the_next_run(recorder: Remembering) -> None:
    _, layer, captured = pair()
    layer.eval()
    first, second = inputs(2)

    def run(x: Tensor, key: int = 0, lent: bool = False) -> Tensor:
        (found,) = captured.run("a pass", lambda x: (layer(x),), x, key=key, lent=lent)
        assert found is not None
        return found.detach()

    found, lent = run(first), run(first, lent=True)
    assert torch.equal(found, layer(first)) and torch.equal(lent, found)
    run(second)
    assert torch.equal(found, layer(first)) and torch.equal(lent, layer(second))
    run(first[:3])
    run(first, key=1)
    assert recorder.captures == 3


def test_a_graph_that_reads_weights_that_were_kept_from_before_is_not_used(
    recorder: Remembering, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a kernel would be that was made ready in the first run and is not made again by the graph."""
    monkeypatch.setattr(choice, "_said", set())
    _, layer, captured = pair()
    layer.eval()
    record = recorder.record

    def keeping(work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        layer.ready = layer.fc.weight.detach().clone()
        return record(work)

    recorder.record = keeping  # type: ignore[method-assign]
    for x in inputs(3):
        expected = (layer(x),)
        assert equal(captured.run("a step", lambda x: (layer(x),), x), expected)
        layer.ready = None
    assert recorder.captures == 1
    assert "Warning: the CUDA graph of a step differs by" in capsys.readouterr().err


def test_what_cannot_be_captured_runs_as_it_is_and_says_why_as_a_detail(recorder: Remembering, caplog: pytest.LogCaptureFixture) -> None:
    one, other, captured = pair()

    def refuse(work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        work()
        raise RuntimeError("operation not permitted when stream is capturing.\nMore.")

    recorder.record = refuse  # type: ignore[method-assign]
    with caplog.at_level(logging.INFO, "ctcovid"):
        for number, x in enumerate(inputs(3)):
            torch.manual_seed(number)
            expected = gradients_of(one)(x)
            torch.manual_seed(number)
            assert equal(captured.run("a step", gradients_of(other), x), expected)
    assert equal(tuple(other.buffers()), tuple(one.buffers()))
    assert [record.getMessage() for record in caplog.records] == [
        "No CUDA graph of a step: operation not permitted when stream is capturing."
    ]


def test_results_that_are_not_finite_are_returned_and_captured_another_time(recorder: Remembering) -> None:
    one, other, captured = pair()
    good, bad = next(inputs(1)), torch.full((6, 4), torch.inf)
    for x in (bad, good):
        torch.manual_seed(0)
        expected = gradients_of(one)(x)
        torch.manual_seed(0)
        found = captured.run("a step", gradients_of(other), x)
        assert torch.equal(torch.isnan(found[0]), torch.isnan(expected[0]))  # type: ignore[arg-type]
        for layer in (one, other):
            layer.norm.reset_running_stats()
    assert equal(found, expected)
    assert recorder.captures == 1


def test_frozen_weights_that_change_and_tensors_that_are_replaced_are_captured_again(recorder: Remembering) -> None:
    _, layer, captured = pair()
    layer.eval().requires_grad_(False)
    x = next(inputs(1))

    def run() -> bool:
        (found,) = captured.run("a pass", lambda x: (layer(x),), x)
        assert found is not None
        return torch.equal(found, layer(x))

    assert run() and run() and recorder.captures == 1
    layer.fc.weight.mul_(2)
    assert run() and run() and recorder.captures == 2
    layer.fc.weight = nn.Parameter(torch.ones(3, 4), requires_grad=False)
    assert run() and recorder.captures == 3


def test_hooks_are_called_as_without_graphs(recorder: Remembering) -> None:
    _, layer, captured = pair()
    layer.eval()
    seen: list[int] = []
    x = next(inputs(1))
    with layer.norm.register_forward_hook(lambda *_: seen.append(1)):
        captured.run("a pass", lambda x: (layer(x),), x)
        captured.run("a pass", lambda x: (layer(x),), x)
    assert (seen, recorder.captures) == ([1, 1], 0)
    captured.run("a pass", lambda x: (layer(x),), x)
    assert recorder.captures == 1


def test_hooks_that_belong_to_the_network_are_captured(recorder: Remembering) -> None:
    """Such as the one that makes three channels of one for torchvision's networks."""
    layer = Layer().eval()
    layer.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    captured = Graphs(layer, CPU, torch.float32)
    for x in inputs(2):
        assert equal(captured.run("a pass", lambda x: (layer(x),), x), (layer(x),))
    assert recorder.captures == 1


def test_graphs_give_up_their_memory_where_as_much_is_not_free(recorder: Remembering) -> None:
    _, layer, captured = pair()
    x = next(inputs(1))
    captured.run("a step", gradients_of(layer), x)
    captured.make_room()
    captured.run("a step", gradients_of(layer), x)
    assert recorder.captures == 1
    recorder.room = 999
    captured.make_room()
    captured.run("a step", gradients_of(layer), x)
    assert recorder.captures == 2


def test_a_run_without_a_graph_takes_the_memory_of_the_graphs_of_others(recorder: Remembering) -> None:
    _, layer, captured = pair()
    x = next(inputs(1))
    captured.run("a step", gradients_of(layer), x)
    short = [True]

    def needing(x: Tensor) -> Outputs:
        if captured._known and short:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (x,)

    other = Graphs(Layer(), CPU, torch.float32)
    assert equal(other.run("a pass", needing, x), (x,))
    assert not captured._known


def test_there_are_no_graphs_on_a_cpu_nor_where_torchs_own_operations_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert graphs.recorder(CPU) is None
    monkeypatch.setattr(graphs, "plain_torch", lambda: True)
    assert graphs.recorder(torch.device("cuda")) is None


def test_graphs_of_a_gpu_share_stream_and_memory_and_a_capture_that_fails_gives_the_stream_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """With functions in place of torch's that note what they are called with."""
    called: list[Any] = []

    class Graph:
        def pool(self) -> str:
            return f"the memory of graph {called.index(self)}"

        def replay(self) -> None:
            called.append("replay")

    def graph() -> Graph:
        called.append(Graph())
        return called[-1]

    @contextlib.contextmanager
    def capturing(one: Graph, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        called.append((pool, stream, capture_error_mode))
        assert not gc.isenabled()
        yield

    fakes = {"Stream": lambda device: "its own stream", "current_stream": lambda device: "the usual stream", "CUDAGraph": graph}
    fakes |= {"graph": capturing, "device": lambda device: contextlib.nullcontext(), "set_stream": called.append}  # type: ignore[dict-item]
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(graphs.CudaRecorder, "_shared", {})
    first, second = (graphs.CudaRecorder(torch.device("cuda")) for _ in range(2))
    replay, outputs = first.record(lambda: (torch.ones(1),))
    replay()
    assert called[1:] == [(None, "its own stream", "thread_local"), "the usual stream", "replay"] and outputs[0] is not None
    with pytest.raises(RuntimeError, match="capturing"):
        second.record(refuse)
    assert called[-2:] == [("the memory of graph 0", "its own stream", "thread_local"), "the usual stream"]
    assert gc.isenabled() and not graphs._one_at_a_time.locked()


def refuse() -> Outputs:
    raise RuntimeError("operation not permitted when stream is capturing")
