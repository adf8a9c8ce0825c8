"""A run's folder: files complete or absent, one line for every mistake, an encoder loaded strictly."""

import errno
import json
import os
import pickle
import resource
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import run_record
from safetensors.torch import load_file, save_file

from dabsmix import run as run_module
from dabsmix.errors import UserError
from dabsmix.files import cache_folder, sha256, write
from dabsmix.model.checkpoint import load_encoder, save_encoder
from dabsmix.model.encoder import ENCODERS, Encoder, build_encoder
from dabsmix.model.encoder import make_encoder as named
from dabsmix.run import Run, newest_run
from dabsmix.spec import Grid, Spec, Table, Tokens

SPECS: tuple[Spec, ...] = (Grid(1, (4, 4), (2, 2)), Table(3, (0, 4, 0)), Tokens(4, 9, pad=0))


def make_run(out: Path, name: str = "digits-emix-s0", **record: Any) -> Run:
    return Run.create(out, name, {"steps": 3}, run_record(**record))


def make_encoder(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return build_encoder(SPECS, ENCODERS["tiny"])


# --- writing


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_ends_the_log_in_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: No space left on device; free some space"):
        run.log({"step": 1, "loss": 0.5})


def test_a_failing_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "value.txt"
    write(target, lambda path: path.write_text("old"))

    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write(target, fail)
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x.json", Path("/proc/dabsmix/x.json")):
        with pytest.raises(UserError, match=r"cannot write .*x\.json: .*choose another folder") as caught:
            write(path, lambda p: p.write_text(""))
        assert "\n" not in str(caught.value)


def test_a_home_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("")  # not even root can write in it
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("DABSMIX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"cannot write .*home/\.cache/dabsmix/x: .*set \$DABSMIX_CACHE") as caught:
        write(cache_folder() / "x", lambda p: p.write_text(""))
    assert "\n" not in str(caught.value)


def test_what_commands_write_in_the_repository_does_not_make_the_commit_dirty() -> None:
    repository = Path(__file__).parents[1]
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout")
    for folder in ("runs", "quickstart"):
        subprocess.run(["git", "check-ignore", "--quiet", f"{folder}/x"], cwd=repository, check=True)


def test_only_source_files_make_the_commit_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *own, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    for name in ("dabsmix/run.py", "algorithms/emix.py", "leaderboard/results.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(run_module, "__file__", str(tmp_path / "dabsmix" / "run.py"))
    head = git("rev-parse", "HEAD").strip()
    (tmp_path / "leaderboard" / "results.csv").write_text("2")
    (tmp_path / "leaderboard" / "new.json").write_text("2")
    assert run_module.commit() == head
    for name in ("algorithms/emix.py", "dabsmix/new.py"):
        (tmp_path / name).write_text("2")
        assert run_module.commit() == f"{head}+dirty"
        git("stash", "-q", "--include-untracked", "--", name)
        assert run_module.commit() == head


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="choose another --out"):
        make_run(tmp_path / "runs")
    with pytest.raises(UserError, match="choose another folder"):
        write(tmp_path / "x", lambda p: p.write_text(""))


def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.save_checkpoint(1, {"step": 1, "x": torch.ones(3)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*File too large"):
            run.save_checkpoint(2, {"step": 2, "x": torch.ones(10_000)})
        with pytest.raises(UserError, match=r"cannot write .*File too large"):
            save_encoder(run.path / "encoder.safetensors", make_encoder(), "tiny")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert run.load_checkpoint() is not None
    names = ["000000001.pt", "000000001.pt.sha256", "checkpoints", "config.yaml", "run.json"]
    assert sorted(p.name for p in run.path.rglob("*")) == names


# --- the folder


def test_folders_are_numbered_and_never_shared(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "new" / "runs") for _ in range(3)]
    names = [run.path.name for run in runs]
    assert names == ["digits-emix-s0", "digits-emix-s0-2", "digits-emix-s0-3"]
    assert [run.record.name for run in runs] == names


def test_a_folder_that_cannot_be_renamed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(self: Path, target: Path) -> Path:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UserError, match="Permission denied; choose another --out"):
        make_run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_out_that_is_a_file_or_a_dangling_link_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in (tmp_path / "file", tmp_path / "link", tmp_path / "file" / "deeper", Path("/proc/dabsmix")):
        with pytest.raises(UserError, match="choose another --out"):
            make_run(out)


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"is not a run: it holds no run\.json"):
            Run(path)


@pytest.mark.parametrize("content", [b'{"status": ', b"\xff\xfe", b""])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    run = make_run(tmp_path)
    (run.path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json is damaged") as caught:
        Run(run.path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["a: [", "[1]", "[" * 10_000])
def test_a_damaged_configuration_is_named(tmp_path: Path, content: str) -> None:
    run = Run.create(tmp_path, "x", {}, run_record())
    (run.path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml is damaged") as caught:
        _ = run.config
    assert "\n" not in str(caught.value)


def test_updates_are_on_disk(tmp_path: Path) -> None:
    run = make_run(tmp_path, status="running", seed=4)
    assert not run.finished
    run.update(status="finished")
    assert Run(run.path).finished
    assert Run(run.path).record.seed == 4


def test_the_newest_run_is_by_time_of_creation(tmp_path: Path) -> None:
    make_run(tmp_path, "b", created="2024-01-02", status="finished")
    make_run(tmp_path, "a", created="2024-01-03", status="finished")
    make_run(tmp_path, "c", created="2024-01-04", status="running")
    (tmp_path / "no-run").mkdir()
    assert newest_run(tmp_path, lambda run: run.finished, "finished run").path.name == "a"
    assert newest_run(tmp_path, lambda run: True, "run").path.name == "c"
    with pytest.raises(UserError, match="no transferred run under"):
        newest_run(tmp_path, lambda run: False, "transferred run")
    with pytest.raises(UserError, match="no finished run under"):
        newest_run(tmp_path / "missing", lambda run: True, "finished run")


# --- metrics


def test_metrics_after_a_step_and_a_torn_last_line_are_cut(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for step in (5, 10, 15):
        run.log({"step": step, "loss": 1 / step})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')
    run.cut_metrics(10)
    assert [line["step"] for line in run.metrics()] == [5, 10]
    assert run.metrics()[0]["loss"] == 1 / 5
    run.log({"step": 15})
    assert [line["step"] for line in run.metrics()] == [5, 10, 15]


def test_a_run_without_metrics_has_an_empty_list(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert run.metrics() == []
    run.cut_metrics(0)
    assert run.metrics() == []


# --- checkpoints


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert run.load_checkpoint() is None
    for step in (9, 10, 99, 100, 1000):
        run.save_checkpoint(step, {"step": step, "weights": torch.full((2,), float(step))})
    names = ["000000100.pt", "000000100.pt.sha256", "000001000.pt", "000001000.pt.sha256"]
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == names
    state = run.load_checkpoint()
    assert state is not None
    assert state["step"] == 1000
    assert torch.equal(state["weights"], torch.full((2,), 1000.0))


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.save_checkpoint(1, {"step": 1})
    harmful = {"step": 2, "x": Harmful(tmp_path / "harmed")}
    torch.save(harmful, run.path / "checkpoints" / "000000002.pt")
    (run.path / "checkpoints" / "000000003.pt").write_bytes(pickle.dumps(harmful, protocol=2))
    messages: list[str] = []
    assert run.load_checkpoint(messages.append) == {"step": 1}
    assert ["000000003.pt is damaged" in messages[0], "000000002.pt is damaged" in messages[1]] == [True, True]
    assert not (tmp_path / "harmed").exists()


# --- the encoder's file


def test_a_saved_encoder_is_loaded_unchanged(tmp_path: Path) -> None:
    encoder = named("tiny", SPECS, attend_padding=True, columns="shared")
    save_encoder(tmp_path / "e.safetensors", encoder, "tiny")
    loaded = load_encoder(tmp_path / "e.safetensors", SPECS)
    assert not loaded.training
    assert (loaded.specs, loaded.config) == (SPECS, encoder.config)
    for key, value in encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_equal_encoders_are_equal_files(tmp_path: Path) -> None:
    for i in range(4):
        save_encoder(tmp_path / f"{i}.safetensors", make_encoder(), "tiny")
    save_encoder(tmp_path / "other.safetensors", make_encoder(seed=1), "tiny")
    assert len({sha256(tmp_path / f"{i}.safetensors") for i in range(4)}) == 1
    assert sha256(tmp_path / "0.safetensors") != sha256(tmp_path / "other.safetensors")


def test_an_encoder_for_other_inputs_is_refused(tmp_path: Path) -> None:
    save_encoder(tmp_path / "e.safetensors", make_encoder(), "tiny")
    with pytest.raises(UserError, match="these data are Table") as caught:
        load_encoder(tmp_path / "e.safetensors", (Table(3),))
    assert str(SPECS[0]) in str(caught.value)
    assert "\n" not in str(caught.value)


def change_weights(path: Path, **changes: torch.Tensor | None) -> None:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    state = load_file(path) | changes
    save_file({key: value for key, value in state.items() if value is not None}, path, metadata)


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    for changes, words in (
        ({"cls": None}, "missing ['cls']"),
        ({"head.weight": torch.zeros(2)}, "unexpected ['head.weight']"),
        ({"positions": torch.zeros(1, 3, 64)}, "other shape ['positions']"),
        ({"cls": None, "head": torch.zeros(2)}, "missing ['cls'], unexpected ['head']"),
    ):
        save_encoder(path, make_encoder(), "tiny")
        change_weights(path, **changes)
        with pytest.raises(UserError) as caught:
            load_encoder(path)
        assert words in str(caught.value)


def test_a_file_that_is_not_our_encoder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    with pytest.raises(UserError, match="cannot read"):
        load_encoder(path)
    save_encoder(path, make_encoder(), "tiny")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot read"):
        load_encoder(path)
    for metadata in (
        None,
        {"format": "pt"},
        {"dabsmix": "{"},
        {"dabsmix": json.dumps({"specs": [{"kind": "Cube"}], "config": {}})},
        {"dabsmix": json.dumps({"specs": [], "config": {"width": 8, "colour": 1}})},
    ):
        save_file({"x": torch.zeros(2)}, path, metadata)
        with pytest.raises(UserError, match="was not written by this version"):
            load_encoder(path)
