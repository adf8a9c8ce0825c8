"""``--compile`` compiles a block once: no algorithm makes torch compile anew at each step."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from twins import TRAINED, batch_of, build

from dabsmix.config import PretrainConfig
from dabsmix.model.encoder import Encoder
from dabsmix.registry import algorithm_class
from dabsmix.source import Source
from dabsmix.training import accelerate
from dabsmix.verbs.pretrain import pretrain

STEPS = 5


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """A backend that generates no code, since only tracing matters here, and counts what it is given."""

    number = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        self.number += 1
        return graph.forward


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("kind", ["sensor", "image+text"])  # without padding, and with a mask of it
def test_later_steps_do_not_recompile(kind: str, name: str) -> None:
    graphs = Graphs()
    algorithm = build(name, kind, dropout=0.1)
    for part in algorithm.modules():
        if isinstance(part, Encoder):
            for block in part.blocks:
                block.compile(backend=graphs)
    after = []
    for step in range(STEPS):
        batch = batch_of(kind, label=algorithm_class(name).needs_labels, seed=step, num_views=algorithm.num_views)
        algorithm(batch).value.backward()
        algorithm.after_step((step + 1) / STEPS)
        after.append(graphs.number)
    assert after[0] > 0
    assert after[-1] == after[1], f"graphs after each step: {after}"


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_the_loop_compiles_nothing_after_its_first_evaluation(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps, the online probe's pass without gradient, and evaluation in eval mode, as ``--compile`` takes them."""
    graphs, compiled = Graphs(), torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled(module, backend=graphs))
    after: list[int] = []
    config = PretrainConfig(
        Source("digits"), algo=name, encoder="tiny", batch_size=16, steps=30, evaluate_every=10, compile=True
    )
    pretrain(replace(config, out=tmp_path), accelerator=accelerate(), observe=lambda step: after.append(graphs.number))
    assert after[0] > 0
    assert after[-1] == after[9], f"graphs after each step: {after}"
