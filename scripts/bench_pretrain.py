"""The pretraining loop against a plain reference loop and against the bare step, interleaved in one run.

    OMP_NUM_THREADS=2 python scripts/bench_pretrain.py                        # dabs, 64 tokens, batches of 64
    python scripts/bench_pretrain.py --encoder vit_base --size 224 --patch 16 --precisions bf16 --compile

Everything trains the same encoder by e-mix on random pixels; no time depends on their values. The four take steps in
turn, so that a change of the machine's speed affects all of them:

- *loop*: all that `dabsmix pretrain` does in a step under v1. The online probe learns at every second step here; its
  cost is the difference between the two kinds of steps, and a tenth of it is counted, because v1 updates the probe at
  every tenth step. With *fast*, the loop uses `--attention fastest --dropout-masks fast`.
- *reference*: a usual loop, written below: attention as einsums, one pass of the encoder for mixed and one for clean
  examples, a third for the online probe at every step, and ``.item()`` on both losses. It does not clip gradients, and
  its batch is on the device already.
- *bare*: forward, backward and AdamW of the loop's algorithm on one batch that is on the device already.
- *matrix*: a product of two square matrices in the same precision; the table states which share of its speed the loop
  reaches.

The script prints medians; on one thread of a CPU they are of CPU time, which other work on the machine changes little.
Memory is the peak that two steps add to a process of their own: its resident size, or the device's allocations. Model
FLOPs are those of the matrix products that training needs, without the probe.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor, nn

from dabsmix.cli import keep_freed_memory
from dabsmix.config import PretrainConfig
from dabsmix.data.domain import Data, Labelled, Split, Task
from dabsmix.model.encoder import make_encoder
from dabsmix.model.shapes import EncoderConfig, encoder_config
from dabsmix.registry import algorithm_class
from dabsmix.run import Run, commit, device_name
from dabsmix.source import Source
from dabsmix.spec import Batch, Grid
from dabsmix.training import accelerate
from dabsmix.verbs.pretrain import pretrain

COLUMNS = (
    "| precision | loop, examples/s | reference, examples/s | loop / reference | loop / bare, time | model GFLOP/s "
    "| share of a matrix product | peak MiB, loop | peak MiB, reference |"
)
CLASSES, ROWS, MATRIX = 10, 2048, 4096
PROBED, V1_PROBES = 2, 10  # steps between two updates of the online probe: in this script's loop, and under v1


class Stop(Exception):
    """Raised after enough steps; the run is discarded."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="dabs", help="default: %(default)s")
    parser.add_argument("--size", type=int, default=32, help="pixels a side; default: %(default)s")
    parser.add_argument("--patch", type=int, default=4, help="pixels of a patch's side; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--paths", nargs="+", choices=["plain", "fast"], default=["plain", "fast"])
    parser.add_argument("--compile", action="store_true", help="compile the loop's and the bare step's blocks")
    parser.add_argument("--repeats", type=int, default=12, help="steps of each, two more to warm up; default: 12")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)  # a process of its own: precision, path, what
    options = parser.parse_args()
    if options.cell:
        keep_freed_memory()
        precision, path, measured = options.cell
        print(speeds(options, precision, path) if measured == "speeds" else memory(options, precision, path, measured))
        return

    def child(*cell: str) -> str:
        """In a process of its own: Accelerate has one precision per process, and a memory peak never falls."""
        words = [sys.executable, __file__, *sys.argv[1:], "--cell", *cell]
        return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    print(COLUMNS)
    print("|---" * (COLUMNS.count("|") - 1) + "|", flush=True)
    for precision, path in product(options.precisions, options.paths):
        peaks = " | ".join(child(precision, path, measured) for measured in ("loop", "reference"))
        title = precision + (", fast" if path == "fast" else "")
        print(f"| {title} | {child(precision, path, 'speeds')} | {peaks} |", flush=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(
        f"\n{options.encoder}, {(options.size // options.patch) ** 2} tokens, batches of {options.batch_size}"
        f"{', --compile' * options.compile}; {device_name(device)}; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads; commit {commit()}"
    )


# --- what is measured


def speeds(options: argparse.Namespace, precision: str, path: str) -> str:
    """One line of the table, except for the memory."""
    accelerator = accelerate(precision)
    device = accelerator.device
    data = pixels(options)
    bare, reference = bare_step(options, path, data, accelerator), reference_step(options, data, accelerator)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    square = torch.randn(MATRIX, MATRIX, device=device, dtype=dtype)
    times: dict[str, list[float]] = {name: [] for name in ("plain", "probed", "bare", "reference", "matrix")}
    mark = math.nan

    def timed(work: Callable[[], object]) -> float:
        began = now(device)
        work()
        return now(device) - began

    def observe(step: int) -> None:
        nonlocal mark
        loop = now(device) - mark
        others = {"bare": timed(bare), "reference": timed(reference), "matrix": timed(lambda: square @ square)}
        if step > PROBED:  # the first two warm up
            times["plain" if step % PROBED else "probed"].append(loop)
            for name, seconds in others.items():
                times[name].append(seconds)
        if step == options.repeats + PROBED:
            raise Stop
        mark = now(device)

    flops = loop_steps(options, precision, path, data, accelerator, observe)
    usual = {name: median(seconds) for name, seconds in times.items()}
    loop = usual["plain"] + max(0.0, usual["probed"] - usual["plain"]) / V1_PROBES
    rate, peak = flops / loop, 2 * MATRIX**3 / usual["matrix"]
    return (
        f"{options.batch_size / loop:.1f} | {options.batch_size / usual['reference']:.1f} | "
        f"{usual['reference'] / loop:.2f} | {loop / usual['bare']:.3f} | {rate / 1e9:,.0f} | {100 * rate / peak:.0f} %"
    )


def memory(options: argparse.Namespace, precision: str, path: str, measured: str) -> str:
    """MiB that two steps of the loop or the reference add."""
    accelerator = accelerate(precision)
    cuda = accelerator.device.type == "cuda"

    def peak() -> float:
        return (
            torch.cuda.max_memory_allocated() / 2**20
            if cuda
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        )

    data = pixels(options)
    before = peak()
    if measured == "reference":
        step = reference_step(options, data, accelerator)
        for _ in range(2):
            step()
    else:

        def observe(step: int) -> None:
            if step == 2:
                raise Stop

        loop_steps(options, precision, path, data, accelerator, observe)
    return f"{peak() - before:,.0f}"


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


# --- the three loops


def pixels(options: argparse.Namespace) -> Data:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, 3, options.size, options.size), dtype=np.float32)
    split = Split((x,), np.arange(ROWS), rng.integers(0, CLASSES, ROWS))
    task = Task("classes", "accuracy", tuple(map(str, range(CLASSES))))
    spec = Grid(3, (options.size, options.size), (options.patch, options.patch))
    return Data((spec,), split, Labelled(task, split, split, split), "0" * 64, source=Source("synthetic_image"))


def first_batch(options: argparse.Namespace, data: Data, device: torch.device) -> tuple[Tensor, Tensor]:
    assert data.pretrain.label is not None
    x, label = data.pretrain.inputs[0][np.arange(options.batch_size)], data.pretrain.label[: options.batch_size]
    return torch.from_numpy(x).to(device), torch.from_numpy(label).to(device)


def loop_steps(
    options: argparse.Namespace,
    precision: str,
    path: str,
    data: Data,
    accelerator: Accelerator,
    observe: Callable[[int], None],
) -> float:
    """Run `dabsmix pretrain` until ``observe`` stops it; the model FLOPs of one of its steps."""
    steps = 10_000  # the loop would evaluate and write only after the last of them
    with tempfile.TemporaryDirectory() as out:
        config = PretrainConfig(
            Source("synthetic_image"),
            algo="emix",
            encoder=options.encoder,
            steps=steps,
            batch_size=options.batch_size,
            online_every=PROBED,
            evaluate_every=steps,
            checkpoint_every=steps,
            checkpoint_minutes=1e9,
            precision=precision,  # type: ignore[arg-type]  # one of the three
            attention="fastest" if path == "fast" else "fused",
            dropout_masks="fast" if path == "fast" else "torch",
            compile=options.compile,
            out=Path(out),
        )
        with suppress(Stop):
            pretrain(config, accelerator=accelerator, data=data, observe=observe)
        (run,) = [Run(folder) for folder in Path(out).iterdir()]
        assert run.record.flops is not None
        return run.record.flops / steps


def bare_step(options: argparse.Namespace, path: str, data: Data, accelerator: Accelerator) -> Callable[[], None]:
    x, _ = first_batch(options, data, accelerator.device)
    encoder = make_encoder(
        options.encoder,
        data.specs,
        attention="fastest" if path == "fast" else "fused",
        dropout_masks="fast" if path == "fast" else "torch",
    )
    algorithm = algorithm_class("emix")(encoder).to(accelerator.device)
    if options.compile:
        for block in encoder.blocks:
            block.compile()
    optimizer = torch.optim.AdamW(algorithm.parameters(), lr=1e-4, fused=True)
    ids = torch.arange(len(x))

    def step() -> None:
        with accelerator.autocast():
            loss = algorithm(Batch(((x,),), None, ids, 0)).value
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def reference_step(
    options: argparse.Namespace, data: Data, accelerator: Accelerator
) -> Callable[[], tuple[float, float]]:
    x, label = first_batch(options, data, accelerator.device)
    config = encoder_config(options.encoder)
    assert isinstance(config, EncoderConfig), "the reference is a transformer"
    encoder = Reference(options.patch, (options.size // options.patch) ** 2, config)
    agree(encoder, options, data, x[:4].cpu())
    encoder = encoder.to(accelerator.device)
    head = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, 128)).to(accelerator.device)
    probe = nn.Linear(config.width, CLASSES).to(accelerator.device)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-4)
    probe_optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3)
    weights = torch.distributions.Beta(1.0, 1.0)
    own = torch.arange(len(x), device=accelerator.device)

    def step() -> tuple[float, float]:
        weight = weights.sample((len(x),)).to(x.device)
        weight = torch.maximum(weight, 1 - weight)
        order = torch.randperm(len(x), device=x.device)
        with accelerator.autocast():
            tokens = encoder.embed(x)
            share = weight[:, None, None]
            anchors = head(encoder.encode(share * tokens + (1 - share) * tokens[order].detach()).mean(dim=1))
            keys = head(encoder.encode(tokens).mean(dim=1))
        logits = F.normalize(anchors.float(), dim=1) @ F.normalize(keys.float(), dim=1).T / 0.2
        to_own = F.cross_entropy(logits, own, reduction="none")
        to_partner = F.cross_entropy(logits, order, reduction="none")
        loss = (weight * to_own + (1 - weight) * to_partner).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        with torch.no_grad(), accelerator.autocast():
            features = encoder.encode(encoder.embed(x)).mean(dim=1).float()
        probe_loss = F.cross_entropy(probe(features), label)
        probe_optimizer.zero_grad()
        probe_loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        probe_optimizer.step()
        return loss.item(), probe_loss.item()

    return step


# --- the reference's encoder, with the names of ours so that weights can be compared


class Reference(nn.Module):
    """A vision transformer on square patches."""

    def __init__(self, patch: int, tokens: int, config: EncoderConfig) -> None:
        super().__init__()
        self.patch = patch
        self.linear = nn.Linear(3 * patch * patch, config.width)
        self.cls = nn.Parameter(torch.zeros(1, 1, config.width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + tokens, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(ReferenceBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.eps) if config.final_norm else nn.Identity()

    def embed(self, x: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` to tokens ``(B, L, D)``."""
        patches = rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=self.patch, q=self.patch)
        tokens: Tensor = self.linear(patches)
        return tokens

    def encode(self, tokens: Tensor) -> Tensor:
        """Tokens ``(B, L, D)`` to features ``(B, 1 + L, D)``."""
        x = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens.float()], dim=1)
        x = self.dropout(x + self.positions)
        for block in self.blocks:
            x = block(x)
        hidden: Tensor = self.norm(x)
        return hidden


class ReferenceBlock(nn.Module):
    """Pre-norm attention and perceptron."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_dim
        self.heads, self.scale = config.heads, config.head_dim**-0.5
        self.norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.qkv = nn.Linear(config.width, 3 * inner, bias=config.qkv_bias)
        self.proj = nn.Linear(inner, config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.fc1 = nn.Linear(config.width, config.mlp)
        self.fc2 = nn.Linear(config.mlp, config.width)
        self.drops = nn.ModuleList(nn.Dropout(config.dropout) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, D)`` to ``(B, N, D)``."""
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        weight = (torch.einsum("bhid,bhjd->bhij", q, k) * self.scale).softmax(dim=-1)
        attended = rearrange(torch.einsum("bhij,bhjd->bhid", weight, v), "b h n d -> b n (h d)")
        x = x + self.drops[0](self.proj(attended))
        hidden = self.drops[1](F.gelu(self.fc1(self.norm2(x))))
        x = x + self.drops[2](self.fc2(hidden))
        return x


def agree(reference: Reference, options: argparse.Namespace, data: Data, x: Tensor) -> None:
    """Check that both encoders are the same function: with our weights, the reference gives our features."""
    ours = make_encoder(options.encoder, data.specs).eval()
    names = {"embedders.0.linear.": "linear.", ".attn.": ".", ".mlp.": "."}
    state = {}
    for key, value in ours.state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)
        state[key] = value
    reference.load_state_dict(state)
    with torch.no_grad():
        theirs = reference.eval().encode(reference.embed(x)).mean(dim=1)
        torch.testing.assert_close(theirs, ours((x,)).mean, rtol=1e-3, atol=1e-4)
    reference.train()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
