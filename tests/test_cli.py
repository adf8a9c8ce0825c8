"""The command line: flag over file over protocol over default; a mistake is one line and exit status 2."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import yaml
from recorded import run_record

from dabsmix.cli import main
from dabsmix.config import PretrainConfig
from dabsmix.model.shapes import ENCODERS
from dabsmix.run import Run
from dabsmix.source import Source

SHORT = "--domain digits --encoder tiny --steps 3 --batch-size 8"


def call(monkeypatch: pytest.MonkeyPatch, line: str, *words: object) -> int:
    """Run a command in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["dabsmix", *line.split(), *map(str, words)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The configuration of a `pretrain` line, without running it."""
    configs: list[PretrainConfig] = []

    def note(config: PretrainConfig, **_: object) -> Run:
        configs.append(config)
        return Run.create(tmp_path / "asked", "run", {}, run_record())

    monkeypatch.setattr("dabsmix.verbs.pretrain.pretrain", note)

    def ask(line: str, *words: object) -> PretrainConfig:
        assert call(monkeypatch, f"pretrain {line}", *words) == 0
        return configs.pop()

    return ask


def config_file(folder: Path, **values: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


# --- configurations


def test_flags_reach_their_fields(parsed: Any) -> None:
    config = parsed("--domain digits --algo emix --lr 1e-3 --attend-padding True --compile --out x --alpha 2")
    assert config == PretrainConfig(
        Source("digits"),
        algo="emix",
        lr=1e-3,
        attend_padding=True,
        compile=True,
        out=Path("x"),
        hyper={"alpha": 2.0, "temperature": 0.2, "label_weight": "example"},
    )


def test_flag_over_file_over_protocol_over_default(parsed: Any, tmp_path: Path) -> None:
    def weight(line: str, **file: Any) -> Any:
        words = ("--config", config_file(tmp_path, **file)) if file else ()
        return parsed(f"--domain digits --algo emix {line}", *words).hyper["label_weight"]

    assert weight("") == "example"
    assert weight("--protocol dabs") == "batch-mean"
    assert weight("", protocol="dabs") == "batch-mean"
    assert weight("--protocol v1", protocol="dabs") == "example"
    assert weight("--protocol dabs", label_weight="example") == "example"
    # a flag that equals the default still counts as given
    assert weight("--protocol dabs --label-weight example") == "example"
    assert weight("--label-weight example", label_weight="batch-mean", protocol="dabs") == "example"
    assert weight("--label-weight batch-mean", label_weight="example") == "batch-mean"


def test_a_file_may_hold_every_field(parsed: Any, tmp_path: Path) -> None:
    values: dict[str, Any] = dict(domain="digits", algo="dmix", steps=7, seed=3, compile=True, out="there", clip=None)
    path = config_file(tmp_path, **values)
    path.write_text(path.read_text() + "lr: 3e-4\n")  # which YAML 1.1 reads as a word
    for words in (("--config", path), (f"--config={path}",)):
        config = parsed("--steps 9", *words)
        assert (config.source.domain, config.algo, config.steps, config.seed) == ("digits", "dmix", 9, 3)
        assert (config.lr, config.compile, config.out, config.clip) == (3e-4, True, Path("there"), None)
    assert parsed("--no-compile", "--config", path).compile is False
    # the file names the algorithm, so its flags are there too
    assert parsed("--alpha 0.5", "--config", path).hyper["alpha"] == 0.5


def test_only_the_chosen_algorithm_s_flags_are_accepted(parsed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "label_weight" not in parsed("--domain digits --algo dmix").hyper
    assert call(monkeypatch, "pretrain --domain digits --algo dmix --label-weight example") == 2


# --- results


def test_pretrain_prints_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, f"pretrain {SHORT} --algo emix --out", tmp_path) == 0
    out = capsys.readouterr().out
    assert out == f"{tmp_path / 'digits-emix-s0'}\n"
    assert Run(Path(out.strip())).finished


def test_config_yaml_repeats_its_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = "--algo emix --protocol dabs --alpha 0.5 --seed 4"
    assert call(monkeypatch, f"pretrain {SHORT} {words} --out", tmp_path / "a") == 0
    (first,) = (Run(path) for path in (tmp_path / "a").iterdir())
    assert call(monkeypatch, "pretrain --config", first.path / "config.yaml", "--out", tmp_path / "b") == 0
    (second,) = (Run(path) for path in (tmp_path / "b").iterdir())
    assert first.record.encoder_sha256 == second.record.encoder_sha256
    assert first.record.config_hash == second.record.config_hash
    configs = [yaml.safe_load((run.path / "config.yaml").read_text()) for run in (first, second)]
    assert configs[0] == configs[1] | {"out": configs[0]["out"]}
    assert configs[0]["label_weight"] == "batch-mean"
    assert configs[0]["schedule"] == "constant"


def test_resuming_a_finished_run_is_reported_and_a_missing_run_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"pretrain {SHORT} --algo emix --out {tmp_path}"
    assert call(monkeypatch, f"{line} --resume") == 2
    assert "no run of this configuration to resume" in one_line(capsys)
    assert call(monkeypatch, line) == 0
    capsys.readouterr()
    assert call(monkeypatch, f"{line} --resume") == 0
    assert "is finished already" in one_line(capsys)


def test_a_job_that_slurm_queued_again_begins_its_run_if_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = f"pretrain {SHORT} --algo emix --out {tmp_path} --resume"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert call(monkeypatch, line) == 2
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert call(monkeypatch, line) == 0
    assert len(list(tmp_path.glob("*/run.json"))) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "list --json") == 0
    listed = json.loads(capsys.readouterr().out)
    names = {kind: [row["name"] for row in rows] for kind, rows in listed.items()}
    assert {"digits", "uci_har", "pamap2", "cifar10"} <= set(names["domains"])
    assert {"none", "emix", "dmix"} <= set(names["algorithms"])
    assert names["encoders"] == list(ENCODERS)
    (emix,) = (row for row in listed["algorithms"] if row["name"] == "emix")
    assert emix["flags"] == {"alpha": 1.0, "temperature": 0.2, "label_weight": "example"}
    assert call(monkeypatch, "list encoders") == 0
    assert [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()] == names["encoders"]


# --- mistakes


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Standard error, after a check that it is one line without a traceback."""
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"pretrain {SHORT} --domain digitz", "unknown domain 'digitz' (did you mean 'digits'?)"),
        (f"pretrain {SHORT} --algo emixx", "unknown algorithm 'emixx' (did you mean 'emix'?)"),
        (f"pretrain {SHORT} --algo no_such_package.x:Y", "no module 'no_such_package.x'"),
        (f"pretrain {SHORT} --encoder tinny", "unknown encoder 'tinny' (did you mean 'tiny'?)"),
        (f"pretrain {SHORT} --batch-size 9999", "--batch-size 9999 is larger than the"),
        (f"pretrain {SHORT} --batch-size 1", "at least 2"),
        (f"pretrain {SHORT} --steps 0", "--steps 0: must be at least 1"),
        (f"pretrain {SHORT} --lr nan", "--lr nan: must be at least 0"),
        (f"pretrain {SHORT} --seed -1", "--seed -1: must be at least 0"),
        (f"pretrain {SHORT} --temperature 0", "above 0"),
        (f"pretrain {SHORT} --views augment --algo simclr", "digits has no augmentation"),
        (f"pretrain {SHORT} --views mask --algo simclr", "digits has no numeric columns to mask"),
        ("pretrain", "either --domain NAME"),
        ("pretrain --domain digits --data .", "--domain digits and --data .: give --domain or --data, not both"),
        ("pretrain --data .", "--modality"),
        ("pretrain --data missing.csv --modality tabular", "--data missing.csv: no such file or folder"),
        ("pretrain --config missing.yaml", "--config missing.yaml: no such file; name a file of lines `field: value`"),
        ("pretrain --config .", "--config .: cannot be read (Is a directory); name a file of lines `field: value`"),
        ("bench missing.yaml", "missing.yaml: no such file; name a file of lines `field: value`"),
        ("pretrain --config", "--config: name a YAML file"),
        ("pretrain --domain digits --algo", "Missing value for argument '--algo'"),
        (f"pretrain {SHORT} --out file", "choose another --out"),
        (f"pretrain {SHORT} --out /proc/dabsmix", "choose another --out"),
        ("transfer --run missing", "missing is not a run"),
        ("transfer --out missing", "no finished run under missing"),
        ("submit --by me --run missing", "missing"),
        ("submit --by me --out missing", "no transferred run under missing"),
        ("embed --run missing --input . --out x.parquet", "missing is not a run"),
        ("pretrain --domain digits --steps foo", "--steps foo: must be a whole number"),
        ("pretrain --domain digits --lr x", "--lr x: must be a number"),
        ("bench --seeds 0 a", "--seeds 0, a: must be a whole number"),
        ("leaderboard vaildate", "one of show, validate, verify, merge (did you mean 'validate'?)"),
        ("leaderboard validate other.csv", "other.csv: only `merge` takes files; --csv names the leaderboard"),
        ("leaderboard --retrain", "--run and --retrain are for `leaderboard verify`"),
        ("leaderboard validate --json", "are for `leaderboard show`, not for validate"),
        ("leaderboard --json --out x.json", "leave out --format and --out"),
        ("leaderboard --probe knn --format md", "which --format md does not have"),
        ("leaderboard validate --labels 0.1", "which validate does not have"),
    ],
)
def test_a_mistake_is_one_line(
    line: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert call(monkeypatch, line) == 2
    assert words in one_line(capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "something was written"


@pytest.mark.parametrize("domain", ["uci_har", "pamap2"])
def test_missing_data_are_reported_with_file_source_and_target(
    domain: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dabsmix.registry import domain as card

    def offline(*_: object, **__: object) -> None:
        raise URLError("no network in this test")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("dabsmix.data.download.PAUSE", 0)
    assert call(monkeypatch, f"pretrain --domain {domain} --data-root {tmp_path} --out {tmp_path / 'runs'}") == 2
    message = one_line(capsys)
    assert str(tmp_path / card(domain).downloads[0].file) in message
    assert "https://" in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("stepps: 3", "unknown field 'stepps' (did you mean 'steps'?)"),
        ("label_weight: example", "unknown field 'label_weight'"),  # dmix has no such hyperparameter
        ("hyper: {alpha: 2}", "unknown field 'hyper'"),
        ("- 1\n- 2", "expected lines `field: value`"),
        ("a: [1\nb: 2", "--config config.yaml, line 2: not YAML (expected ',' or ']', but got ':'); "),
        ("a: \0", "--config config.yaml: not YAML (special characters are not allowed); "),
    ],
)
def test_a_mistake_in_the_file_names_the_file(
    content: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(content)
    assert call(monkeypatch, "pretrain --domain digits --algo dmix --config config.yaml") == 2
    message = one_line(capsys)
    assert words in message
    assert "config.yaml" in message


@pytest.mark.parametrize("content", ["algo: [dmix]", "algo: 3"])
def test_an_algorithm_that_is_not_a_name_is_unknown(
    content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(content)
    assert call(monkeypatch, "pretrain --domain digits --config", tmp_path / "config.yaml") == 2
    assert "unknown algorithm" in one_line(capsys)


@pytest.mark.parametrize("content", ["steps: many", "protocol: v2", "lr: [1, 2]", "precision: 7", "schedule: true"])
def test_a_value_of_another_type_is_refused(
    content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(content)
    assert call(monkeypatch, "pretrain --domain digits --config", tmp_path / "config.yaml") == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert f"--{content.partition(':')[0]}" in captured.err + captured.out


def test_an_internal_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("dabsmix.verbs.pretrain.pretrain", broken)
    with pytest.raises(ZeroDivisionError):
        call(monkeypatch, f"pretrain {SHORT}")


def test_an_interrupt_tells_how_to_resume(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dabsmix.verbs.pretrain.pretrain", interrupted)
    assert call(monkeypatch, f"pretrain {SHORT}") == 130
    assert "--resume" in one_line(capsys)


# --- imports

HEAVY = "torch timm accelerate pandas sklearn scipy matplotlib torchaudio transformers datasets".split()  # noqa: SIM905 - read as one line


COMMANDS = "pretrain transfer runs submit leaderboard bench embed audit quickstart".split()  # noqa: SIM905 - as above


@pytest.mark.parametrize("line", ["--help", "list", "list --json", *(f"{command} --help" for command in COMMANDS)])
def test_help_and_list_import_nothing_heavy(line: str) -> None:
    code = (
        "import sys; from dabsmix.cli import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        f"sys.exit(' '.join(name for name in {HEAVY} if name in sys.modules) or 0)"
    )
    completed = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True, timeout=60)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout


def test_help_states_the_algorithm_s_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "pretrain --algo emix --help") == 0
    text = capsys.readouterr().out
    for word in ("--alpha", "--label-weight", "--steps", "--domain"):
        assert word in text


@pytest.mark.parametrize("flag", ["--label species", "--modality image", "--options more.yaml", "--on-bad skip"])
@pytest.mark.parametrize("command", ["pretrain --algo none", "audit"])
def test_flags_for_files_are_refused_with_a_domain(
    command: str, flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, f"{command} --domain digits {flag}") == 2
    err = capsys.readouterr().err
    assert err == f"dabsmix: {flag} is for your own data (--data PATH); leave it out with --domain\n"


# Folders of runs: `finished`, `running` and `damaged` under `runs`; nothing is in `nowhere`.
MISTAKES = {
    "": "no command is given; commands: list, pretrain, ",
    "pretrian": "unknown command 'pretrian' (did you mean 'pretrain'?); commands: list, pretrain, ",
    "submit": "Missing from dabsmix submit: --by; see `dabsmix submit --help`",
    "bench --stepz 3": "Unrecognized options: --stepz, 3 (did you mean --steps?); see `dabsmix bench --help`",
    "bench --domains digitz --algos dmix": "unknown domain 'digitz' (did you mean 'digits'?)",
    "bench --domains digits --algos dmixx": "unknown algorithm 'dmixx' (did you mean 'dmix'?)",
    "pretrain --domain digits --stepz 3": "Unrecognized options: --stepz, 3 (did you mean --steps?)",
    "pretrain --domain digits --encoder tinny": "unknown encoder 'tinny' (did you mean 'tiny'?); there are: dabs",
    "pretrain --domain digits --protocol v3": "invalid choice 'v3' for argument '--protocol'. Expected one of v1, "
    "dabs, imix; see `dabsmix pretrain --help`",
    "pretrain --data . --modality images": "invalid choice 'images' for argument '--modality'. Expected one of image, "
    "spectrogram, sensor, tabular, text, sequence (did you mean 'image'?); see",
    "pretrain --algo emix --label-weight x": "invalid choice 'x' for argument '--label-weight'. Expected one of "
    "example, batch-mean; see",
    "pretrain --domain digits --steps 0": "--steps 0: must be at least 1",
    "pretrain --domain digits --online digitz": "unknown domain 'digitz'",
    "pretrain --domain digits --init nowhere": "nowhere is not a run",
    "pretrain --domain digits --resume --out nowhere": "no run of this configuration to resume under nowhere",
    "pretrain --domain digits --resume --out runs": "no run of this configuration to resume under runs",
    "pretrain --data nowhere.csv --modality tabular": "--data nowhere.csv: no such file or folder",
    "pretrain --data . --modality image --options nowhere.yaml": "--options nowhere.yaml: no such file",
    "audit --domain digitz": "unknown domain 'digitz' (did you mean 'digits'?)",
    "transfer --run nowhere": "nowhere is not a run",
    "transfer --run nowhere --task digitz": "nowhere is not a run",
    "transfer --run runs/damaged": "runs/damaged/run.json is damaged",
    "transfer --run runs/running": "runs/running is unfinished: continue it",
    "transfer --task digitz": "unknown domain 'digitz' (did you mean 'digits'?)",
    "transfer --protocol v3": "invalid choice 'v3' for argument '--protocol'. Expected one of v2, v1, dabs, imix, "
    "finetune; see",
    "transfer --out nowhere": "no finished run under nowhere",
    "transfer --data nowhere --label y": "--data nowhere: no such file or folder",
    "embed --run nowhere --input . --out x.csv": "nowhere is not a run",
    "embed --run runs/running --input . --out x.csv": "runs/running is unfinished: continue it",
    "embed --run runs/finished --input nowhere --out x.csv": "--input nowhere: no such file or folder",
    "embed --run runs/finished --input . --options nowhere.yaml --out x.csv": "--options nowhere.yaml: no such file",
    "embed --run runs/finished --input . --out x.tsv": "--out x.tsv: its name must end in one of .parquet, .csv, .npz",
    "report --run nowhere": "nowhere is not a run",
    "report --run runs/running": "runs/running is unfinished: continue it",
    "export --run nowhere --to torch": "nowhere is not a run",
    "export --run runs/finished --to torchh": "--to torchh: choose torch, onnx, hub",
    "runs --out nowhere": "--out nowhere: no such folder",
    "submit --by me --run nowhere": "nowhere is not a run",
    "submit --by me --run runs/damaged": "runs/damaged/run.json is damaged",
    "leaderboard --csv nowhere": "no leaderboard at nowhere",
    "leaderboard verify --run nowhere": "nowhere is not a run",
    "leaderboard verify --run runs/finished --csv nowhere": "no leaderboard at nowhere",
}


def test_mistakes_are_reported_before_torch_is_imported(tmp_path: Path) -> None:
    """All in one process, which must not have imported torch after any of them."""
    Run.create(tmp_path / "runs", "finished", {}, run_record(status="finished", created="2026"))
    Run.create(tmp_path / "runs", "running", {}, run_record())
    Run.create(tmp_path / "runs", "damaged", {}, run_record())
    (tmp_path / "runs" / "damaged" / "run.json").write_text("{")
    code = (
        "import sys; from dabsmix.cli import main\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    sys.argv = ['dabsmix', *line.split()]\n"
        "    try: main()\n"
        "    except SystemExit as end: print(end.code, 'torch' in sys.modules)\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code],
        input="\n".join(MISTAKES),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    errors, statuses = completed.stderr.splitlines(), completed.stdout.splitlines()
    assert len(errors) == len(statuses) == len(MISTAKES), completed.stderr
    for (words, message), error, status in zip(MISTAKES.items(), errors, statuses, strict=True):
        assert error.startswith("dabsmix: "), words
        assert message in error, words
        assert status == "2 False", words
