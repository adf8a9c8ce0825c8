"""``scripts/bench_scaling.py`` counts the bytes of gradients and gathered rows, and what a ring sends of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from dabsmix.model.encoder import make_encoder
from dabsmix.registry import algorithm_class
from dabsmix.spec import Grid

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_scaling.py"
OPTIONS = ["--encoder", "tiny", "--size", "16", "--patch", "4", "--algos", "emix", "shed"]


@pytest.mark.slow
def test_counted_bytes_are_those_of_the_weights_and_of_the_gathered_rows() -> None:
    script = subprocess.run([sys.executable, SCRIPT, *OPTIONS], capture_output=True, text=True, check=True, timeout=200)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in script.stdout.splitlines()]
    for name, gathered in (("emix", {"inputs": 3 * 16 * 16, "embeddings": 128, "sums": 128}), ("shed", {})):
        counted, estimated = [row for row in rows if row[0] == name]
        algorithm = algorithm_class(name)(make_encoder("tiny", (Grid(3, (16, 16), (4, 4)),)))
        gradients = 4 * sum(weight.numel() for weight in algorithm.parameters() if weight.requires_grad)
        inputs, embeddings, sums = (4 * gathered.get(kind, 0) for kind in ("inputs", "embeddings", "sums"))
        expected = [f"{gradients / 1e6:.1f}", *(f"{size / 1e3:.2f}" for size in (inputs, embeddings, sums))]
        assert counted[1:5] == expected
        for gpus, megabytes in ((8, estimated[3]), (64, estimated[6])):
            n = gpus * 64
            sent = (gpus - 1) / gpus * (2 * (gradients + n * sums) + n * (inputs + embeddings))
            assert float(megabytes) == pytest.approx(sent / 1e6, abs=0.51)
