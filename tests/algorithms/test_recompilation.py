"""``--compile`` compiles a block once: no algorithm makes torch compile anew at each step."""

from collections.abc import Iterator

import pytest
import torch
from twins import TRAINED, batch_of, build

from dabsmix.model.encoder import Encoder
from dabsmix.registry import algorithm_class

STEPS = 5


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("kind", ["sensor", "image+text"])  # without padding, and with a mask of it
def test_later_steps_do_not_recompile(kind: str, name: str) -> None:
    """Only tracing matters here, so a backend that generates no code suffices."""
    graphs = 0

    def counted(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        nonlocal graphs
        graphs += 1
        return graph.forward

    algorithm = build(name, kind, dropout=0.1)
    for part in algorithm.modules():
        if isinstance(part, Encoder):
            for block in part.blocks:
                block.compile(backend=counted)
    after = []
    for step in range(STEPS):
        batch = batch_of(kind, label=algorithm_class(name).needs_labels, seed=step, num_views=algorithm.num_views)
        algorithm(batch).value.backward()
        algorithm.after_step((step + 1) / STEPS)
        after.append(graphs)
    assert after[0] > 0
    assert after[-1] == after[1], f"graphs after each step: {after}"
