"""A run on the Hugging Face hub: the files that its encoder needs, and a model card of its data, scores and licence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, ModelHubMixin, snapshot_download

from dabsmix.errors import UserError
from dabsmix.registry import domain
from dabsmix.run import Run
from dabsmix.scoring.results import Result, TransferRecord, in_percent, read_transfer

__all__ = ["HUB", "Published", "downloaded", "published"]

HUB = "hub:"

TAGS = ["self-supervised-learning", "feature-extraction", "dabsmix"]


class Published(ModelHubMixin, library_name="dabsmix", tags=TAGS):
    """A run as a repository of the hub: ``from_pretrained``, ``save_pretrained`` and ``push_to_hub``.

    Args:
        run: the run.
        licence: of the weights, as the hub names licences (``cc-by-4.0``); None leaves it open.
        repository: ``ORG/NAME``, for the model card.
    """

    def __init__(self, run: Run, licence: str | None = None, repository: str = "") -> None:
        self.run = run
        self.licence = licence
        self.repository = repository

    def _save_pretrained(self, save_directory: Path) -> None:
        """What `dabsmix.load_encoder` needs, without the paths and the names of files of who made it."""
        for name, values in (("run.json", _shared_record(self.run)), ("config.yaml", _shared_config(self.run))):
            text = json.dumps(values, indent=1) if name == "run.json" else yaml.safe_dump(values, sort_keys=False)
            (save_directory / name).write_text(text, encoding="utf-8")
        shutil.copyfile(self.run.encoder_file(), save_directory / "encoder.safetensors")
        for path, transfer in _transfers(self.run).items():
            (save_directory / "transfer").mkdir(exist_ok=True)
            text = json.dumps(_shared_transfer(self.run, transfer).as_plain(), indent=1)
            (save_directory / "transfer" / path.name).write_text(text, encoding="utf-8")

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, revision: str | None = None, cache_dir: Any = None, **options: Any
    ) -> Published:
        download_options = {
            name: options[name] for name in ("force_download", "local_files_only", "token") if name in options
        }
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(snapshot_download(model_id, revision=revision, cache_dir=cache_dir, **download_options))
        return cls(Run(folder))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The README of the repository."""
        return ModelCard(_card(self.run, self.licence, self.repository))


def published(run: Run, repository: str, folder: Path, licence: str | None, say: Callable[[str], None]) -> str:
    """Write a repository's folder and, where the repository is named, upload it; its address, or the folder.

    Raises:
        UserError: the folder cannot be written; the hub refuses or cannot be reached.
    """
    publication = Published(run, licence, repository)
    try:
        publication.save_pretrained(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}; choose another --out") from error
    if not repository:
        return str(folder)
    say(f"uploading {folder} to {repository}")
    try:
        publication.push_to_hub(repository, commit_message=f"{run.record.name}, exported by dabsmix")
    except (OSError, ValueError) as error:  # what huggingface_hub raises of network, names and rights
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"--to {HUB}{repository}: not uploaded ({reason}); log in with `hf auth login`, check the name and the "
            f"network; the files are in {folder}"
        ) from error
    return f"https://huggingface.co/{repository}"


def downloaded(name: str) -> Run:
    """The run of a repository, ``ORG/NAME``, from the hub or its cache.

    Raises:
        UserError: it cannot be fetched, or is not a run.
    """
    try:
        publication: Published = Published.from_pretrained(name)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{HUB}{name}: cannot be fetched ({reason}); check the name and the network") from error
    return publication.run


# --- what is shared, and what is not


def _shared_record(run: Run) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    state = {name: value for name, value in values.get("data_state", {}).items() if name != "skipped"}
    return values | {"data_state": state, "notes": [] if run.record.own_data else values.get("notes", [])}


def _shared_config(run: Run) -> dict[str, Any]:
    """Paths by their last part, so that nobody's folders are published."""
    values: dict[str, Any] = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    paths = ("data", "options", "out", "data_root", "init")
    return {name: PurePath(value).name if value and name in paths else value for name, value in values.items()}


def _shared_transfer(run: Run, transfer: TransferRecord) -> TransferRecord:
    """Without the flags that name a user's files, and the notes that may name some of them."""
    of_files = transfer.of or (run.record.own_data and transfer.task == run.record.domain)
    return replace(transfer, of="", notes=() if of_files else transfer.notes)


def _transfers(run: Run) -> dict[Path, TransferRecord]:
    """The records of a run's scores by file, except damaged ones."""
    records = {}
    for path in sorted(run.path.glob("transfer/*.json")):
        with suppress(UserError):
            records[path] = read_transfer(path)
    return records


# --- the card


def _card(run: Run, licence: str | None, repository: str) -> str:
    record, transfers = run.record, list(_transfers(run).values())
    results = [
        EvalResult(
            task_type="feature-extraction",
            dataset_type=transfer.task,
            dataset_name=transfer.task,
            metric_type=transfer.headline.metric,
            metric_value=round(transfer.headline.value, 6),
            metric_name=f"{transfer.headline.metric}, {transfer.headline.probe} probe, protocol {transfer.protocol}",
        )
        for transfer in transfers
    ]
    head = ModelCardData(
        license=licence,
        library_name="dabsmix",
        tags=[*TAGS, record.modality or record.own_data or "", record.algorithm],
        model_name=record.name,
        eval_results=results or None,
    )
    steps = f"{record.steps:,} steps of {record.batch_size}" if record.steps else "no step: these are its first weights"
    hyper = ", ".join(f"{name} {value}" for name, value in record.hyper.items()) or "none"
    return f"""---
{head.to_yaml()}
---

# {record.name}

The encoder `{record.encoder}` ({record.parameters:,} weights), pretrained without labels by `{record.algorithm}` with
dabsmix {record.version}: {steps}, seed {record.seed}, protocol {record.protocol}.
Hyperparameters: {hyper}. Labels were {"used" if record.uses_labels else "not used"} in pretraining.

```python
import dabsmix

encoder = dabsmix.load_encoder("hub:{repository or "ORG/NAME"}")  # or the folder of these files
features = encoder.features(x)  # float32 (n, D)
```

## Data

{_data(record)}

## Scores

{_scores(run, transfers)}

## Licence

{_licence(record, licence)}
"""


def _data(record: Any) -> str:
    name = "own data of the modality " + record.own_data if record.own_data else f"`{record.domain}`"
    about = ""
    if not record.own_data:
        with suppress(UserError):
            about = f": {domain(record.domain).title}"
    notes = "" if record.own_data else "\n".join(f"- {note}" for note in record.notes)
    fingerprint = f"Fingerprint of the files: `{record.data_fingerprint[:16]}`."
    return f"Pretrained on {name}{about}. {fingerprint}\n\n{notes}".rstrip()


def _licence(record: Any, licence: str | None) -> str:
    stated = f"The weights: {licence}." if licence else "Nobody has stated a licence of the weights."
    if record.own_data:
        return f"{stated} They were learnt from data that are not published here; their licence holds too."
    with suppress(UserError):
        return f"{stated} The data that they were learnt from: {domain(record.domain).licence}."
    return stated


def _scores(run: Run, transfers: list[TransferRecord]) -> str:
    if not transfers:
        return "The encoder has not been scored."
    lines = ["| task | metric | probe | labels | score | 95 % interval | n |", "|---|---|---|---|---|---|---|"]
    for transfer in transfers:
        for name, results in {"": transfer.results, **transfer.yardsticks}.items():
            lines += [_line(transfer, result, name) for result in results]
    lines += ["", "Lines in italics are what needs no pretraining, on the same test examples."]
    for transfer in transfers:
        lines += ["", f"{transfer.task}: {transfer.answer}"] if transfer.answer else []
        notes = _shared_transfer(run, transfer).notes
        lines += (
            ["", f"About {transfer.task} ({transfer.protocol}):", *(f"- {note}" for note in notes)] if notes else []
        )
    return "\n".join(lines)


def _line(transfer: TransferRecord, result: Result, yardstick: str) -> str:
    scale, unit = (100, " %") if in_percent(result.metric) else (1, "")
    cells = (
        f"{transfer.task} ({transfer.protocol})",
        result.metric,
        f"*{yardstick}, {result.probe}*" if yardstick else result.probe,
        result.label_fraction,
        f"{scale * result.value:.2f}{unit}",
        " to ".join(f"{scale * end:.2f}" for end in result.ends or ()),
        f"{result.n} in {result.units} groups" if 0 < result.units < result.n else result.n,
    )
    return f"| {' | '.join(map(str, cells))} |"
