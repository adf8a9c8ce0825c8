"""Does the matrix's encoder hold its scores down? `tiny` beside one of twice the width, on validation.

    python scripts/encoder_pilot.py fsdd cifar10 > pilot.md

Each is pretrained as a cell of leaderboard/plans/cpu.yaml (400 steps of 64, rate 1e-3, seed 0) and scored by the linear
probe of `v2` with all labels; validation both chooses the probe's setting and gives the score, alike for all. The test
split is not read.
"""

import sys
import tempfile
from time import perf_counter

from choose_on_validation import score

import dabsmix
from dabsmix.model.shapes import ENCODERS, EncoderConfig
from dabsmix.run import commit

WIDE = EncoderConfig(width=128, depth=4, heads=4, head_dim=32, mlp=256)


def main(*domains: str) -> None:
    ENCODERS["wide"] = WIDE
    print("| data | algorithm | encoder | validation accuracy, % | examples per second |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for domain in domains:
            for algorithm in ("none", "contdmix"):
                for encoder in ("tiny", "wide"):
                    began = perf_counter()
                    run = dabsmix.pretrain(
                        domain, algorithm, encoder=encoder, steps=400, batch_size=64, lr=1e-3, seed=0, out=folder
                    )
                    rate = "–" if algorithm == "none" else f"{400 * 64 / (perf_counter() - began):.0f}"
                    print(f"| {domain} | {algorithm} | {encoder} | {100 * score(run, '1'):.1f} | {rate} |", flush=True)
    print(f"\nComputed at commit {commit() or 'unknown'}.")


if __name__ == "__main__":
    main(*sys.argv[1:])
