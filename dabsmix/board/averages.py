"""Averages over data sets as DABS reports them: GLUE, PAWS-X and each of its domains (Tamkin et al. 2021).

An average is the plain mean of the scores over every transfer data set of a list, each score in its own metric and each
the mean over its seeds. It exists only under the protocol ``dabs``, and only if no data set is missing.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from dabsmix.board.standings import Line, Section

__all__ = ["AVERAGES", "HEADINGS", "TITLE", "Average", "averages", "cells"]

GLUE = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli_matched", "mnli_mismatched", "qnli", "rte", "wnli")
PAWS_X = tuple(f"paws_{language}" for language in ("en", "fr", "es", "de", "zh", "ja", "ko"))
_IMAGES = ("cifar10", "aircraft", "cu_birds", "dtd", "traffic_sign", "vgg_flower")

AVERAGES: dict[str, tuple[str, ...]] = {
    "GLUE": GLUE,
    "PAWS-X": PAWS_X,
    "natural images": tuple(f"{name}_224" for name in _IMAGES),
    "natural images, small": _IMAGES,
    "captioned images": ("mismatched_caption_224", "vqa_224"),
    "medical images": ("chexpert_224", "xray8_224"),
    "sensors": ("pamap2",),
    "speech": (
        *("librispeech_transfer", "audio_mnist_224", "speech_commands_v2_224", "voxceleb1"),
        *("fluent_speech_action", "fluent_speech_object", "fluent_speech_location"),
    ),
    "proteins": ("pfam_transfer", "scop", "secondary_struct", "stability", "fluorescence"),
    "genomics": ("genomics_transfer_id", "genomics_transfer_ood"),
    "particle physics": ("higgs_transfer",),
    "satellite images": ("eurosat_all",),
    "semiconductors": ("wafer_transfer",),
}
"""The transfer data sets of each average. English and multilingual text are GLUE and PAWS-X."""


@dataclass(frozen=True)
class Average:
    """One algorithm's mean over the data sets of a list.

    Attributes:
        name: of the list, a key of `AVERAGES`.
        domain: what was pretrained on.
        encoder, algorithm, marks, budget: of the runs; see `Line`.
        value: mean of the scores as fractions, each the mean over its seeds.
        seeds: of the data set with the fewest.
        tasks: how many data sets.
    """

    name: str
    domain: str
    encoder: str
    algorithm: str
    marks: str
    budget: str
    value: float
    seeds: int
    tasks: int


def averages(sections: Iterable[Section]) -> list[Average]:
    """The complete averages, by list and pretraining data, the best first."""
    lines: dict[tuple[str, ...], dict[str, Line]] = defaultdict(dict)
    for section in sections:
        for block in section.blocks if section.protocol == "dabs" else ():
            for line in block.lines:
                if line.rows and (block.probe, block.label_fraction) == ("linear", "1"):
                    run = line.rows[0]
                    key = (
                        section.domain,
                        run.pretrain_fingerprint,
                        section.encoder,
                        line.name,
                        run.recipe,
                        run.version,
                    )
                    lines[key][section.task] = line
    all_averages = []
    for (domain, _, encoder, algorithm, *_), by_task in lines.items():
        for name, tasks in AVERAGES.items():
            if by_task.keys() >= set(tasks):
                chosen = [by_task[task] for task in tasks]
                value, seeds = fmean(line.mean for line in chosen), min(line.seeds for line in chosen)
                first = chosen[0]
                all_averages.append(
                    Average(name, domain, encoder, algorithm, first.marks, first.budget, value, seeds, len(tasks))
                )
    names = list(AVERAGES)
    return sorted(
        all_averages, key=lambda average: (names.index(average.name), average.domain, average.encoder, -average.value)
    )


TITLE = "Averages as DABS defines them: plain means over all data sets of a list"
HEADINGS = ("average", "pretrained on", "encoder", "algorithm", "budget", "mean, %", "data sets", "seeds")


def cells(average: Average) -> tuple[str, ...]:
    """An average as a table shows it, under `HEADINGS`."""
    algorithm = f"{average.algorithm} ({average.marks})" if average.marks else average.algorithm
    return (
        *(average.name, average.domain, average.encoder, algorithm, average.budget),
        *(f"{100 * average.value:.2f}", str(average.tasks), str(average.seeds)),
    )
