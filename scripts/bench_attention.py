"""How many times as long fused attention takes as explicit products: what ``--attention fastest`` chooses by.

    OMP_NUM_THREADS=1 python scripts/bench_attention.py     # a table in Markdown, two minutes on one CPU core

Forward and backward of torch's ``scaled_dot_product_attention`` and of two products with a softmax between them, in
turn, on random queries, keys and values. Each cell is a ratio of medians, without and with a padding mask that hides a
quarter of the tokens: above 1, explicit products are faster. On one thread of a CPU it is of CPU time, which other work
on the machine changes little. See ``EXPLICIT_BELOW`` in dabsmix/model/encoder.py.
"""

from __future__ import annotations

import argparse
from statistics import median

import torch
from bench_pretrain import now
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dabsmix.model.encoder import explicit_attention
from dabsmix.run import commit, device_name

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOKENS = 4096  # of all examples together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[17, 65, 129, 197, 257, 513, 1025])
    parser.add_argument("--heads", type=int, nargs="+", default=[64, 16], help="their widths; default: 64 16")
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=["bf16", "fp32"])
    parser.add_argument("--repeats", type=int, default=5, help="of each, one more to warm up; default: %(default)s")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print("| precision, width of a head |", *(f"{length} tokens |" for length in options.lengths))
    print("|---" * (1 + len(options.lengths)) + "|")
    for precision in options.precisions:
        for width in options.heads:
            cells = [
                f"{ratio(length, width, DTYPES[precision], masked, device, options.repeats):.2f}"
                for length in options.lengths
                for masked in (False, True)
            ]
            pairs = zip(cells[::2], cells[1::2], strict=True)
            print(f"| {precision}, {width} |", *(f"{plain}, {masked} |" for plain, masked in pairs), flush=True)
    print(
        f"\nWithout, with a mask; {device_name(device)}; torch {torch.__version__}, {torch.get_num_threads()} threads; "
        f"commit {commit()}"
    )


def ratio(length: int, width: int, dtype: torch.dtype, masked: bool, device: torch.device, repeats: int) -> float:
    """The time of fused over that of explicit attention, four heads wide."""
    num = max(1, TOKENS // length)
    q, k, v = (torch.randn(num, 4, length, width, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    real = torch.arange(length, device=device) < 3 * length // 4
    mask = real.expand(num, 1, length, length) if masked else None

    def step(fused: bool) -> float:
        began = now(device)
        attended: Tensor = scaled_dot_product_attention(q, k, v, mask) if fused else explicit_attention(q, k, v, mask)
        torch.autograd.grad(attended, (q, k, v), torch.ones_like(attended))
        return now(device) - began

    times = [(step(True), step(False)) for _ in range(repeats + 1)][1:]
    fused, explicit = (median(each) for each in zip(*times, strict=True))
    return float(fused / explicit)


if __name__ == "__main__":
    main()
