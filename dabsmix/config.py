"""What a user can set, as frozen dataclasses: the flags of the command line and the fields of ``--config x.yaml``.

A field that is None takes its value from the protocol or the domain. `resolve` fills it in, so that a run's
``config.yaml`` states every value that was used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dabsmix.errors import UserError
from dabsmix.files import require_writable
from dabsmix.model.shapes import TIMM, encoder_config
from dabsmix.registry import algorithm_added, algorithm_dabs, algorithm_flags, canonical_algorithm, domain
from dabsmix.run import Run, finished_runs
from dabsmix.scoring.results import HeadMixes, MixSchedules, ProtocolName
from dabsmix.source import Modality, Source, absolute, batch_size, modality_of, read_options
from dabsmix.tracking import check_tracker

__all__ = [
    "ADDED",
    "NOT_KEPT",
    "PRETRAIN_PROTOCOLS",
    "AuditConfig",
    "BenchConfig",
    "EmbedConfig",
    "ExportConfig",
    "LeaderboardConfig",
    "ListConfig",
    "PretrainConfig",
    "QuickstartConfig",
    "Recipe",
    "ReportConfig",
    "RunsConfig",
    "SubmitConfig",
    "TransferConfig",
    "as_plain",
    "config_hash",
    "resolve",
    "started_from",
]

# What `--protocol` decides for pretraining. dabs: Tamkin et al. 2021, conf/pretrain.yaml. v1 takes as many steps, so
# that they can be compared. imix: Lee et al. 2021, appendix C.1 and main_pretext.py; its lr is for a batch of 256 and
# grows with the batch; its weight decay is SGD's, on every parameter.
PRETRAIN_PROTOCOLS: dict[str, dict[str, Any]] = {
    "v1": dict(
        steps=100_000, lr=3e-4, weight_decay=0.01, schedule="cosine", clip=1.0, attend_padding=False, columns="own"
    ),
    "dabs": dict(
        steps=100_000, lr=1e-4, weight_decay=1e-4, schedule="constant", clip=0.0, attend_padding=True, columns="shared"
    ),
    "imix": dict(
        epochs=500,
        optimizer="sgd",
        lr=0.125,
        weight_decay=1e-4,
        schedule="epoch-cosine",
        clip=0.0,
        attend_padding=False,
        columns="own",
    ),
}


@dataclass(frozen=True)
class PretrainConfig:
    """Pretrain an encoder without labels. --algo NAME --help also shows the flags of that algorithm."""

    source: tyro.conf.OmitArgPrefixes[Source] = field(default_factory=Source)
    algo: str = "dmix"
    """Algorithm (see: dabsmix list algorithms), or your own: my_package.my_module:MyClass."""
    encoder: str = "dabs"
    """Encoder (see: dabsmix list encoders)."""
    init: str | None = None
    """Weights to begin with, where names and shapes agree: a run's folder, or timm:NAME as timm:vit_base_patch16_224.
    Never ranked with runs from random weights."""
    steps: int | None = None
    """Optimizer steps [100 000]."""
    epochs: int | None = None
    """Passes over the data, in place of --steps; what is left over of an epoch's last batch is dropped [imix: 500]."""
    batch_size: int | None = None
    """Examples per step over all processes [the domain's]."""
    optimizer: Literal["adamw", "sgd"] | None = None
    """AdamW, or SGD with momentum 0.9 [v1 and dabs: adamw, imix: sgd]."""
    lr: float | None = None
    """Learning rate [v1: 3e-4, dabs: 1e-4, imix: 0.125 times the batch over 256]."""
    weight_decay: float | None = None
    """Weight decay, AdamW's decoupled from the rate [v1: 0.01, dabs and imix: 1e-4]."""
    schedule: Literal["cosine", "constant", "epoch-cosine", "epoch-steps"] | None = None
    """Learning rate over time: warm-up (5 % of the steps) and cosine to 0; constant; or as i-Mix a warm-up of 10 epochs
    (5 if there are at most 500), then a cosine by whole epochs, or a tenth of it from 60 and 80 % of them [v1:
    cosine, dabs: constant, imix: epoch-cosine; its reference has epoch-steps for speech]."""
    clip: float | None = None
    """Largest gradient norm, 0 for none [v1: 1, dabs and imix: 0]."""
    attend_padding: bool | None = None
    """Whether padding is attended to and pooled [v1: no, dabs: yes]."""
    columns: Literal["own", "shared"] | None = None
    """Embedding of numeric table columns: weights for each, or one Linear for all [v1: own, dabs: shared]."""
    seed: int = 0
    """Seed of weights, batches, partners, masks and dropout."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the encoder's arithmetic; weights and losses are always fp32. fp16 is for GPUs without bf16: the
    loss is scaled, and a step whose gradients overflow is skipped. bf16 on a CPU takes about half as long with
    --attention fastest --dropout-masks fast."""
    compile: bool = False
    """Apply torch.compile to the transformer's blocks."""
    attention: Literal["fused", "fastest"] = "fused"
    """Path of attention: torch's fused kernel, or in bf16 on a CPU explicit products at up to 1024 tokens, where they
    were measured as faster (5 to 11 times at 17 tokens, 1.1 to 1.8 at 513); they round otherwise. In fp32 and on a GPU
    it is always the fused kernel."""
    dropout_masks: Literal["torch", "fast"] = "torch"
    """Draws of dropout: torch's own, or faster ones, which are others. On a CPU they save a fifth of a bf16 step."""
    online: str | None = None
    """Another labelled data set with the same input, for the online probe [the pretraining data]."""
    online_every: int | None = None
    """Steps between updates of the online probe, each of which takes a separate encoder pass without gradient [v1: 10,
    dabs: 1]."""
    micro_batch: int | None = None
    """Examples per process whose activations are held at a time [all of them]. The loss still sees the whole batch, but
    activations are computed twice, and the draws of dropout differ."""
    checkpoint_activations: bool = False
    """Hold only the input of each transformer block, and compute the rest twice: less memory, a third more time, the
    same numbers. For vit_base and larger."""
    evaluate_every: int | None = None
    """Steps between evaluations of the online probe on the validation split [a tenth of the steps]."""
    checkpoint_every: int | None = None
    """Steps between checkpoints [a tenth of the steps, at most 5000]."""
    checkpoint_minutes: float = 10.0
    """Also write a checkpoint when this much time has passed since the last one."""
    resume: bool = False
    """Continue the newest unfinished run of the same configuration under --out."""
    out: Path = Path("runs")
    """Folder in which the run's folder is made."""
    name: str | None = None
    """Name of the run's folder [DATA-ALGO-sSEED]; with --seeds, -sSEED is added."""
    device: str | None = None
    """Device to compute on: cpu, cuda, cuda:1, mps [the one that Accelerate finds]."""
    track: Literal["tensorboard", "wandb", "mlflow"] | None = None
    """Also send what metrics.jsonl holds to a tracker (needs `pip install dabsmix[track]`)."""
    hyper: Annotated[Mapping[str, Any], tyro.conf.Suppress] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse mistakes that are found without torch and without the data.

        Raises:
            UserError: the algorithm, the encoder, the tracker or the run of --init does not exist, or a number is out
                of range.
        """
        encoder_config(self.encoder)
        check_tracker(self.track)
        if self.init is not None and not self.init.startswith(TIMM):
            init_run(self.init)
        resolve(self, batch_size(self.source), num_examples=1)  # no number of examples is a mistake


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run, all filled in; fields as in `PretrainConfig`."""

    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    schedule: Literal["cosine", "constant", "epoch-cosine", "epoch-steps"]
    clip: float
    attend_padding: bool
    columns: Literal["own", "shared"]
    evaluate_every: int
    checkpoint_every: int
    optimizer: Literal["adamw", "sgd"] = "adamw"


def resolve(
    config: PretrainConfig, domain_batch_size: int, num_examples: int | None = None
) -> tuple[PretrainConfig, Recipe]:
    """The configuration with every open field filled in from protocol, domain and algorithm, and its recipe.

    Args:
        config: the configuration as it was given.
        domain_batch_size: the batch size if none is given.
        num_examples: examples in an epoch, if epochs are given; the configuration then states the steps.

    Raises:
        UserError: a number is out of range, or the algorithm is unknown.
    """
    values = {"batch_size": domain_batch_size, **PRETRAIN_PROTOCOLS[config.source.protocol]}
    chosen = {f.name: getattr(config, f.name) for f in fields(Recipe)}
    values |= {name: value for name, value in chosen.items() if value is not None}
    values["steps"] = _steps(config, values, num_examples)
    if config.source.protocol == "imix" and config.lr is None:
        values["lr"] *= values["batch_size"] / 256
    tenth = max(1, values["steps"] // 10)
    values = {"evaluate_every": tenth, "checkpoint_every": min(5000, tenth), **values}
    at_least = dict(steps=1, batch_size=1, evaluate_every=1, checkpoint_every=1, lr=0, weight_decay=0, clip=0)
    for name, least in at_least.items():
        if not values[name] >= least:  # also refuses NaN
            raise UserError(f"--{name.replace('_', '-')} {values[name]}: must be at least {least}")
    if not config.checkpoint_minutes >= 0:
        raise UserError(f"--checkpoint-minutes {config.checkpoint_minutes}: must be at least 0")
    if config.micro_batch is not None and config.micro_batch < 1:
        raise UserError(f"--micro-batch {config.micro_batch}: must be at least 1")
    if config.online_every is not None and config.online_every < 1:
        raise UserError(f"--online-every {config.online_every}: must be at least 1")
    if config.precision != "bf16":
        config = replace(config, attention="fused")  # the fastest there, so that equal numbers have equal hashes
    if config.seed < 0:
        raise UserError(f"--seed {config.seed}: must be at least 0")
    if config.name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,149}", config.name):
        raise UserError(f"--name {config.name}: use 1 to 150 letters, digits and . _ -, beginning with none of . -")
    recipe = Recipe(**values)
    if config.source.domain is not None:  # an alias is the same data
        config = replace(config, source=replace(config.source, domain=config.source.name))
    algo = canonical_algorithm(config.algo)
    defaults = {flag.name: flag.default for flag in algorithm_flags(algo)}
    dabs = algorithm_dabs(algo) if config.source.protocol == "dabs" else {}
    # i-Mix zeroes values of a table's numeric columns
    masked = config.source.protocol == "imix" and modality_of(config.source) == "tabular" and "views" in defaults
    hyper = defaults | dabs | ({"views": "mask"} if masked else {}) | dict(config.hyper)
    for name in algorithm_added(algo):  # an algorithm that inherits the list may lack some of these arguments
        if name in hyper and hyper[name] == defaults[name]:
            del hyper[name]
    return replace(config, **asdict(recipe), epochs=None, algo=algo, hyper=hyper), recipe


def _steps(config: PretrainConfig, values: dict[str, Any], num_examples: int | None) -> int:
    """The given steps, or those of the given epochs; removes ``epochs`` from ``values``."""
    usual = values.pop("epochs", None)
    if config.epochs is not None and config.steps is not None:
        raise UserError(f"--epochs {config.epochs} and --steps {config.steps}: give one of them")
    epochs = config.epochs if config.epochs is not None or "steps" in values else usual
    if epochs is None:
        return int(values["steps"])
    if epochs < 1:
        raise UserError(f"--epochs {epochs}: must be at least 1")
    if num_examples is None:
        raise UserError(f"--protocol {config.source.protocol} counts epochs: give --steps here")
    return int(epochs * max(1, num_examples // max(1, values["batch_size"])))


NOT_IN_HASH = ("out", "data_root", "checkpoint_every", "checkpoint_minutes", "checkpoint_activations")
"""Fields that change no number: where data and runs are, when checkpoints are written, what is computed twice."""

NOT_KEPT = ("resume", "name", "device", "track")
"""Fields that ``config.yaml`` does not hold either: how one command is carried out, and the name of its folder."""

ADDED: Mapping[str, Any] = {
    "group": None,
    "ignore": None,
    "online_every": None,
    "micro_batch": None,
    "checkpoint_activations": False,
    "attention": "fused",
    "dropout_masks": "torch",
    "init": None,
    "checkpoint_minutes": 10.0,
    "epochs": None,
    "optimizer": "adamw",
}
"""Fields of `PretrainConfig` and `Source` that are younger than the hash (commit 6675b1b), each with its default.

A field that has this value is left out of the hash and of ``config.yaml``, so that a run keeps the hash that it had
before the field existed. The same holds for an algorithm's hyperparameters: see ``Algorithm.added``.
"""


def init_run(init: str) -> Run:
    """The finished run that --init names: its folder, in a ``config.yaml`` followed by ``@`` and its encoder's digest.

    Raises:
        UserError: it is not a finished run, or its encoder has another digest.
    """
    place, digest = init, ""
    if not Path(place).expanduser().exists() and "@" in place:
        place, _, digest = place.rpartition("@")
    run = Run(Path(place).expanduser().absolute())
    run.require_finished()
    encoder = run.record.encoder_sha256[:12]
    if digest not in ("", encoder):
        raise UserError(f"--init {init}: the encoder of {run.path} is {encoder}, not {digest}")
    return run


def started_from(init: str | None) -> dict[str, str]:
    """How a run's hyperparameters record --init: the name of the run or model, without its folder."""
    return {} if init is None else {"init": Path(init).name}


def config_hash(config: PretrainConfig) -> str:
    """12 hex digits, equal for two configurations exactly if they ask for the same numbers.

    Raises:
        UserError: the file of options cannot be read.
    """
    values = as_plain(config)
    values["options"] = read_options(config.source.options)
    if revision := config.source.revision:  # of the data: the same name, but other examples
        values["revision"] = revision
    return _hash(values)


def hashes_of(values: Mapping[str, Any]) -> set[str]:
    """The possible hashes of a run with this ``config.yaml`` and no file of options, one per revision of its data."""
    plain = {**values, "options": read_options(None)}
    name = values.get("domain")
    revisions = _revisions(name) if isinstance(name, str) and name else ()
    return {_hash(plain), *(_hash({**plain, "revision": revision}) for revision in revisions)}


@lru_cache(maxsize=256)
def _revisions(name: str) -> tuple[int, ...]:
    """Of a domain's data; remembered because a leaderboard has thousands of records."""
    try:
        return tuple(domain(name).revisions.values())
    except (UserError, TypeError):
        return ()


def _hash(values: Mapping[str, Any]) -> str:
    hashed = {k: v for k, v in values.items() if k not in NOT_IN_HASH}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True, default=str).encode()).hexdigest()[:12]


def as_plain(config: PretrainConfig) -> dict[str, Any]:
    """Plain YAML values as ``--config`` reads them, with the algorithm's hyperparameters among the fields.

    The paths of a user's own data are absolute, so that they are valid in any folder.
    """
    values = asdict(config)
    source, hyper = values.pop("source"), values.pop("hyper")
    for name in NOT_KEPT:
        values.pop(name)
    values = source | values
    values = {k: v for k, v in values.items() if k not in ADDED or v not in (None, ADDED[k])}
    values |= {k: absolute(values[k]) for k in ("data", "options") if values[k] is not None}
    return {k: str(v) if isinstance(v, Path) else v for k, v in (values | hyper).items()}


@dataclass(frozen=True)
class TransferConfig:
    """Score a frozen encoder on labelled data: probes chosen on validation, the test split read once."""

    run: tuple[Path, ...] = ()
    """Folders of one or more runs [the newest finished run under --out]."""
    task: tuple[str, ...] = ()
    """Domains to transfer to [those that the pretraining domain names, or itself]."""
    data: tuple[Path, ...] = ()
    """Your own labelled data in place of --task, for a run of any data of the same modality: folders or files, read
    with the run's columns, categories, tokenizer and statistics."""
    modality: Modality | None = None
    """Modality of your own data [that of the run]."""
    label: tuple[str, ...] = ()
    """Columns of your own data to predict (or 'folder' for folders), each of which is a task."""
    options: Path | None = None
    """YAML with further options for your own data's labels (group, labels, column, task), and for how files are
    written where the run's own are not (encoding, separator, decimal)."""
    group: str | None = None
    """Column of your own data that says which examples belong together; same as the option of that name."""
    ignore: str | None = None
    """Columns of your own table to leave out, comma separated; same as the option of that name."""
    on_bad: Literal["error", "skip"] = "error"
    """What to do with unreadable examples of your own data; skipped ones are counted and listed."""
    metric: str | None = None
    """Metric for your own data: accuracy, balanced_accuracy, f1_macro, matthews, auroc_macro, average_precision
    for classes, spearman, r2, mae for quantities [the option `metric`, or by a rule on the training labels]."""
    protocol: ProtocolName | None = None
    """How features are scored, or the whole network trained (finetune) [v2; for a run of another protocol than v1, that
    one]. Scores of different protocols are never ranked together."""
    labels: tuple[str, ...] | None = None
    """Shares of the labels to score with: a fraction, or 'K/class' [v2, v1: 1 0.1 0.01; others: 1]."""
    supervised: bool = False
    """Also train the same encoder on all labels from random weights; a yardstick stored per data set and encoder."""
    head_mix: HeadMixes = "none"
    """What is mixed while labels are learned: by the whole network (finetune, --supervised), or by a linear head on
    frozen features (v1, v2). Such scores are ranked among themselves only."""
    mix_alpha: float | None = None
    """Mixing weights are drawn from Beta(alpha, alpha) [regmixup: 20; others: 1]."""
    mix_schedule: MixSchedules = "constant"
    """How alpha changes over training: hard rises from 0 to 10 times alpha, easy falls, easy-hard-easy does both."""
    mix_epochs: int | None = None
    """Stop mixing after this many epochs; without it, mix to the end."""
    data_root: Path | None = None
    """Folder of the raw data [that of the run, else $DABSMIX_DATA, else the user's cache folder]."""
    out: Path = Path("runs")
    """Folder in which to look for the newest run."""
    device: str | None = None
    """Device to compute on: cpu, cuda, cuda:1, mps [the one that Accelerate finds]."""
    json: bool = False
    """Print the results as JSON."""


@dataclass(frozen=True)
class ReportConfig:
    """One run on one page: curves, scores, mistakes and the commands to repeat it, as report.html and report.png."""

    run: tuple[Path, ...] = ()
    """Folders of one or more runs [the newest finished run under --out]."""
    map: bool = False
    """Also read the data, and show each task's test examples on a map of the features and beside their nearest training
    examples."""
    out: Path = Path("runs")
    """Folder in which to look for the newest run."""


@dataclass(frozen=True)
class SubmitConfig:
    """Add a transferred run's scores to the leaderboard, or a failed run's failure, with their record."""

    by: str
    """Who submits: a name or a handle."""
    run: Path | None = None
    """The run's folder [the newest transferred run under --out]."""
    failed: bool = False
    """Submit a run that failed: its row says why, and is not ranked [the newest failed run under --out]."""
    leaderboard: Path = Path("leaderboard/results.csv")
    """The leaderboard's CSV; records go to runs/ beside it."""
    out: Path = Path("runs")
    """Folder in which to look for the newest run."""


@dataclass(frozen=True)
class LeaderboardConfig:
    """Show the leaderboard, check it, or bring several together."""

    action: tyro.conf.Positional[Literal["show", "validate", "verify", "merge"]] = "show"
    """Show the table; validate the CSV against its records; verify a run's rows by scoring its encoder again; merge the
    rows and records of other leaderboards into --csv."""
    others: tyro.conf.Positional[tuple[Path, ...]] = ()
    """For merge: the CSV files of other leaderboards."""
    csv: Path = Path("leaderboard/results.csv")
    """The leaderboard's CSV."""
    format: Literal["table", "md", "csv", "html"] = "table"
    """Format of the table."""
    out: Path | None = None
    """Write the table to this file instead of the terminal."""
    json: bool = False
    """Print the overview, algorithms by domains, as JSON."""
    probe: str = "linear"
    """Probe of the overview."""
    labels: str = "1"
    """Share of the labels of the overview."""
    run: Path | None = None
    """For verify: the folder of the run, which holds its encoder."""
    retrain: bool = False
    """For verify: train the encoder again from the run's config.yaml first; a leaderboard's record will do."""
    data_root: Path | None = None
    """For verify: where raw data lie [$DABSMIX_DATA, else the user's cache folder]."""

    def check(self) -> None:
        """Refuse what the action would leave unread.

        Raises:
            UserError: a flag or a file does not apply to the action or to the format.
        """
        if self.others and self.action != "merge":
            raise UserError(f"{self.others[0]}: only `merge` takes files; --csv names the leaderboard")
        if self.action != "verify" and (self.run is not None or self.retrain):
            raise UserError("--run and --retrain are for `leaderboard verify`")
        if self.action != "show" and (self.json or self.out is not None or self.format != "table"):
            raise UserError(f"--json, --format and --out are for `leaderboard show`, not for {self.action}")
        if self.json and (self.format != "table" or self.out is not None):
            raise UserError("--json prints the overview on standard output: leave out --format and --out")
        if (self.probe, self.labels) != ("linear", "1") and (self.action != "show" or self.format in ("md", "csv")):
            where = self.action if self.action != "show" else f"--format {self.format}"
            raise UserError(f"--probe and --labels choose the scores of the overview, which {where} does not have")


@dataclass(frozen=True)
class ExportConfig:
    """A run's encoder for others: a torch program, an ONNX graph, or a repository of the Hugging Face hub."""

    to: str
    """torch (encoder.pt2), onnx (encoder.onnx), hub (a repository's folder with a model card) or hub:ORG/NAME (also
    uploaded)."""
    run: Path | None = None
    """The run's folder [the newest finished run under --runs]."""
    out: Path | None = None
    """Folder to write to [export/ in the run's folder]."""
    licence: str | None = None
    """Licence of the weights for the model card, as the hub names it, cc-by-4.0 say."""
    runs: Path = Path("runs")
    """Folder in which to look for the newest run."""

    def check(self) -> None:
        """Refuse mistakes that are found without torch.

        Raises:
            UserError: the run is not a finished run, or see `target`.
        """
        finished_runs([self.run] if self.run is not None else [], self.runs)
        self.target()

    def target(self) -> tuple[str, str]:
        """The format, and the repository to upload to; empty without one.

        Raises:
            UserError: there is no such format, or it needs a package that is not installed.
        """
        kind, _, repository = self.to.partition(":")
        if kind not in ("torch", "onnx", "hub") or (repository and kind != "hub"):
            raise UserError(f"--to {self.to}: choose torch, onnx, hub (a folder) or hub:ORG/NAME (uploaded)")
        lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]
        if kind == "onnx" and lacking:
            raise UserError(f"--to onnx: {', '.join(lacking)} not installed; pip install 'dabsmix[export]'")
        return kind, repository


@dataclass(frozen=True)
class RunsConfig:
    """List runs with their status, progress, last loss and scores."""

    out: Path = Path("runs")
    """Folder of the runs."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class ListConfig:
    """List the available domains, algorithms and encoders."""

    what: tyro.conf.Positional[Literal["all", "domains", "algorithms", "encoders"]] = "all"
    """What to list."""
    data_root: Path | None = None
    """Folder of the raw data: a domain with files there is marked present."""
    json: bool = False
    """Print JSON."""


FEATURE_FILES = (".parquet", ".csv", ".npz")
"""Suffixes of the files that embed writes."""


@dataclass(frozen=True)
class EmbedConfig:
    """Write the features of your own examples from a run's encoder, keyed by file name or row."""

    run: Path
    """The run's folder."""
    input: Path
    """Files in the format that the run was pretrained on, or a .npy array in the shape that its encoder reads."""
    out: Path
    """The file to write (.parquet, .csv or .npz), with one row per example: its key and its features."""
    pooling: Literal["mean", "cls"] = "mean"
    """Which pooled feature to write."""
    options: Path | None = None
    """YAML that says how files are written where the run's own are not (encoding, separator, decimal)."""
    on_bad: Literal["error", "skip"] = "error"
    """What to do with unreadable examples; skipped ones are counted and listed and get no row."""
    device: str | None = None
    """Device to compute on: cpu, cuda, cuda:1, mps [the one that Accelerate finds]."""

    def check(self) -> None:
        """Refuse mistakes that are found without torch.

        Raises:
            UserError: the run is not a finished run, the input does not exist, --options cannot be read, the output has
                another format or cannot be written, or a flag does not apply.
        """
        from dabsmix.modalities.packed import is_packed

        run = Run(self.run.expanduser())
        run.require_finished()
        if not is_packed(self.input.expanduser(), run.modality) and not self.input.expanduser().exists():
            raise UserError(f"--input {self.input}: no such file or folder")
        read_options(self.options)
        if self.on_bad == "skip" and self.input.suffix == ".npy":
            raise UserError(f"--on-bad skip: {self.input} is one array; leave it out, and bad rows out of the array")
        if self.options is not None and self.input.suffix == ".npy":
            raise UserError(f"--options {self.options}: {self.input} is one array; leave the flag out")
        if self.out.suffix not in FEATURE_FILES:
            raise UserError(f"--out {self.out}: its name must end in one of {', '.join(FEATURE_FILES)}")
        require_writable(self.out)


@dataclass(frozen=True)
class AuditConfig:
    """Check a data set: duplicates, leaks between splits, class balance, value ranges, dependence on file order."""

    source: tyro.conf.OmitArgPrefixes[Source] = field(default_factory=Source)
    cache: bool = False
    """Instead check the checksum of every prepared file in the cache; damaged ones are prepared again when used."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class QuickstartConfig:
    """Pretrain none and dmix on embedded digits, 3 seeds each, transfer, show the leaderboard. No download."""

    out: Path = Path("quickstart")
    """Folder for the runs and their leaderboard; numbered if it exists."""
    steps: int = 400
    """Pretraining steps of each algorithm."""


@dataclass(frozen=True)
class BenchConfig:
    """Fill a matrix: pretrain, transfer and submit every data set x algorithm x seed that is missing from the board.

    A plan (YAML) holds the same fields, and may hold several matrices under ``parts``; flags override it. The same
    command continues where it was stopped, and may run in several processes and on several machines at once.
    """

    domains: tuple[str, ...] = ()
    """Data sets to pretrain on; each is scored on its own tasks."""
    data: tuple[Path, ...] = ()
    """Your own data, in place of --domains: folders or files."""
    modality: Modality | None = None
    """Modality of your own data."""
    label: str | None = None
    """Column (or, for folders, 'folder') that holds the label of your own data."""
    options: Path | None = None
    """YAML with further options for reading your own data."""
    algos: tuple[str, ...] = ("none", "emix", "dmix", "shed", "contdmix", "mae", "imix_npair", "imix_moco")
    """Algorithms; ALGO:KEY=VALUE,KEY=VALUE for one with other hyperparameters."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of pretraining."""
    encoder: str = "tiny"
    """Encoder of every cell."""
    steps: int = 1000
    """Pretraining steps of a cell; with --budget equal-compute, those of emix."""
    budget: Literal["equal-steps", "equal-compute"] = "equal-steps"
    """Every algorithm takes --steps steps, or the number that costs the FLOPs of --steps steps of emix."""
    minutes: float | None = None
    """In place of --steps: the steps that take about this long here, measured once per data set and algorithm."""
    batch_size: int | None = None
    """Examples per step [the domain's]."""
    lr: float | None = None
    """Learning rate of every algorithm if no --rates are tried [the protocol's]."""
    rates: tuple[float, ...] = ()
    """Learning rates to try with the first seed for a third of the steps; validation chooses one for each algorithm and
    data set."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the encoder's arithmetic in pretraining. bf16 on a CPU takes about half as long with --attention
    fastest --dropout-masks fast."""
    compile: bool = False
    """Apply torch.compile to the transformer's blocks."""
    attention: Literal["fused", "fastest"] = "fused"
    """Path of attention, as in pretrain."""
    dropout_masks: Literal["torch", "fast"] = "torch"
    """Draws of dropout, as in pretrain."""
    protocol: ProtocolName | None = None
    """Transfer's protocol [as `dabsmix transfer` chooses it]."""
    labels: tuple[str, ...] | None = None
    """Shares of the labels to score with [the protocol's]."""
    by: str = "bench"
    """Who submits: a name or a handle."""
    leaderboard: Path = Path("leaderboard/results.csv")
    """The leaderboard's CSV; failures go to failures.json beside it."""
    out: Path = Path("runs/bench")
    """Folder of the runs, shared by all processes and machines that work on the matrix."""
    chosen: Path | None = None
    """File for the chosen rates and measured steps [PLAN.chosen.json beside the plan, else chosen.json in --out]."""
    data_root: Path | None = None
    """Folder of the raw data [$DABSMIX_DATA, else the user's cache folder]."""
    on: Literal["local", "slurm"] = "local"
    """Where the workers run: on this machine or as an array of SLURM jobs (needs `pip install dabsmix[slurm]`)."""
    workers: int = 1
    """Processes or jobs that share the cells."""
    gpus: int = 1
    """GPUs of each cell's pretraining; with more than one, a cell starts torchrun."""
    partition: str | None = None
    """SLURM partition."""
    hours: float = 24.0
    """Time limit of a SLURM job; unfinished work is queued again."""
    retry: bool = False
    """Try failed cells again."""
    dry_run: bool = False
    """Only print the cells and their estimated times."""
