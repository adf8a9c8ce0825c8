"""Finding algorithms and domains: by file, by entry point, by module; and the messages if there are none."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from dabsmix import registry as plugins
from dabsmix.cli import main
from dabsmix.config import PretrainConfig, resolve
from dabsmix.errors import UserError
from dabsmix.model.encoder import Encoder
from dabsmix.pretext.algorithm import Algorithm, Loss
from dabsmix.run import Run, newest_run
from dabsmix.source import Source
from dabsmix.spec import Batch
from dabsmix.testing import check_algorithm

OURS = """
import numpy as np
import torch
from torch import nn
from typing import ClassVar, Literal
from dabsmix.pretext.algorithm import Algorithm, Loss

class Rotate(Algorithm):
    \"\"\"Tells reversed sequences of tokens from others.

    Args:
        encoder: what is trained.
        weight: multiplies the loss
        mode: one of two,
            told apart by nothing
    \"\"\"

    dabs: ClassVar[dict[str, object]] = {"weight": 2.0}

    def __init__(self, encoder, *, weight: float = 1.0, mode: Literal["a", "b"] = "a", flip: bool = True) -> None:
        super().__init__(encoder)
        self.weight = weight
        self.classifier = nn.Linear(encoder.width, 1)

    def forward(self, batch):
        clean = self.encoder.embed(batch.views[0])
        flip = torch.from_numpy(np.random.default_rng(batch.seed).random(len(batch.ids)) < 0.5)
        tokens = torch.where(flip[:, None, None], clean.tokens.flip(1), clean.tokens)
        features = self.encoder.pool(self.encoder.encode(clean._replace(tokens=tokens)), clean.mask).mean
        logits = self.classifier(features)[:, 0]
        return Loss(self.weight * nn.functional.binary_cross_entropy_with_logits(logits, flip.float()), {}, None)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """Write a module of another package, to be imported as ``theirs.NAME``."""

    def write(name: str, source: str) -> Path:
        folder = tmp_path / "theirs"
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
        (folder / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return folder / f"{name}.py"

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for module in [m for m in sys.modules if m == "theirs" or m.startswith("theirs.")]:
        del sys.modules[module]
    plugins.domains.cache_clear()


def install(folder: Path, group: str, name: str, value: str) -> None:
    """Install the metadata of a package that declares an entry point, as pip does."""
    info = folder / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    plugins.domains.cache_clear()


# --- algorithms


def test_every_file_is_an_algorithm_with_a_summary_and_plain_flags() -> None:
    names = plugins.algorithms()
    assert {"emix", "dmix", "shed", "contpred", "contdmix", "mae", "none"} <= set(names)
    for name in names:
        assert issubclass(plugins.algorithm_class(name), Algorithm)
        assert len(plugins.algorithm_summary(name)) > 20
        assert plugins.algorithm_needs_labels(name) is plugins.algorithm_class(name).needs_labels
        for flag in plugins.algorithm_flags(name):
            assert flag.help, f"{name}: --{flag.name} is not explained"


def test_flags_are_read_with_type_default_and_help(package: Callable[[str, str], Path]) -> None:
    package("rotate", OURS)
    weight, mode, flip = plugins.algorithm_flags("theirs.rotate:Rotate")
    assert (weight.name, weight.type, weight.default, weight.help) == ("weight", float, 1.0, "multiplies the loss")
    assert (mode.type, mode.default, mode.help) == (Literal["a", "b"], "a", "one of two, told apart by nothing")
    assert (flip.type, flip.default) == (bool, True)
    assert plugins.algorithm_dabs("theirs.rotate:Rotate") == {"weight": 2.0}
    assert plugins.algorithm_summary("theirs.rotate:Rotate") == "Tells reversed sequences of tokens from others."
    assert "theirs.rotate" not in sys.modules  # read, not run


NARROWER = """
from dabsmix.algorithms.npair import NPair


class Sharper(NPair):
    \"\"\"N-pair at a low temperature.\"\"\"

    def __init__(self, encoder) -> None:
        super().__init__(encoder, temperature=0.05)
"""


def test_a_subclass_may_take_fewer_arguments_than_its_base(package: Callable[[str, str], Path]) -> None:
    package("sharper", NARROWER)
    config, _ = resolve(PretrainConfig(Source("digits"), algo="theirs.sharper:Sharper"), 64)
    assert config.hyper == {}


def test_algorithm_of_another_package_by_module_and_by_entry_point(
    package: Callable[[str, str], Path], tmp_path: Path
) -> None:
    package("rotate", OURS)
    cls = plugins.algorithm_class("theirs.rotate:Rotate")
    check_algorithm(cls)
    install(tmp_path, "dabsmix.algorithms", "rotate", "theirs.rotate:Rotate")
    assert "rotate" in plugins.algorithms()
    assert plugins.algorithm_class("rotate") is cls
    assert [flag.name for flag in plugins.algorithm_flags("rotate")] == ["weight", "mode", "flip"]


@pytest.mark.slow
def test_algorithm_of_another_package_trains_from_the_command_line(
    package: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package("rotate", OURS)
    install(tmp_path, "dabsmix.algorithms", "rotate", "theirs.rotate:Rotate")

    def train(algo: str, *flags: str) -> Run:
        line = f"dabsmix pretrain --domain digits --encoder tiny --steps 3 --batch-size 8 --algo {algo}"
        out = tmp_path / "runs" / algo.replace(":", ".")
        monkeypatch.setattr(sys, "argv", [*line.split(), *flags, "--out", str(out)])
        main()
        return newest_run(out, lambda run: run.finished, "finished run")

    by_module = train("theirs.rotate:Rotate", "--weight", "0.5", "--mode", "b")
    assert by_module.record.hyper == {"weight": 0.5, "mode": "b", "flip": True}
    assert by_module.metrics()[-1]["grad_norm"] > 0
    by_entry_point = train("rotate", "--weight", "0.5", "--mode", "b")
    assert by_entry_point.record.encoder_sha256 == by_module.record.encoder_sha256
    assert train("none").record.encoder_sha256 != by_module.record.encoder_sha256


def test_one_name_for_two_algorithms_is_refused(package: Callable[[str, str], Path], tmp_path: Path) -> None:
    package("rotate", OURS)
    install(tmp_path, "dabsmix.algorithms", "emix", "theirs.rotate:Rotate")
    with pytest.raises(UserError, match="two algorithms are called 'emix'"):
        plugins.algorithms()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dmxi", "unknown algorithm 'dmxi' .did you mean 'dmix'.*contdmix"),
        ("nowhere.at_all:Foo", "no module 'nowhere.at_all' in this folder"),
        ("os:system", "no module 'os' in this folder"),
        (".relative:Foo", "no module '.relative' in this folder"),
        ("theirs.torn:Foo", "torn.py is not Python: .*line 1"),
        ("theirs.lacks:Lacks", "lacks.py cannot be imported: No module named 'nowhere'"),
        ("theirs.rotate:Spin", "no class 'Spin'"),
        ("theirs.other:Other", "Other is not a subclass"),
    ],
)
def test_names_that_cannot_be_loaded_are_refused(package: Callable[[str, str], Path], name: str, message: str) -> None:
    package("rotate", OURS)
    package("other", "class Other:\n    pass\n")
    package("torn", "def (:\n")
    package("lacks", "import nowhere\n\nclass Lacks:\n    pass\n")
    with pytest.raises(UserError, match=message) as raised:
        plugins.algorithm_class(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ("sizes: list[int] = []", r"must be bool, int, float, str or a Literal.*list\[int\]"),
        ("rate: float = 1 / 3", "with a literal default, got float = 1 / 3"),
        ("rate: float", "needs a type and a default"),
        ("rate=0.1", "needs a type and a default"),
    ],
)
def test_a_keyword_that_cannot_be_a_flag_is_refused(
    package: Callable[[str, str], Path], keyword: str, message: str
) -> None:
    package("odd", f"class Odd:\n    def __init__(self, encoder, *, {keyword}):\n        pass\n")
    with pytest.raises(UserError, match=message):
        plugins.algorithm_flags("theirs.odd:Odd")


def test_flags_and_attributes_are_inherited_from_a_base_class(package: Callable[[str, str], Path]) -> None:
    package("rotate", OURS)
    heads = "from theirs.rotate import Rotate as Turned\nfrom typing import Any\n\n"
    package("spin", heads + "class Spin(Turned):\n    added = ('flip',)\n")
    package(
        "turn",
        "from .spin import Spin\n\nclass Turn(Spin):\n"
        "    def __init__(self, encoder, *, mode: str = 'b', **others):\n"
        "        super().__init__(encoder, mode=mode, **others)\n",
    )
    package(
        "roll",
        heads + "class Roll(Turned):\n    dabs = {'weight': 4.0}\n\n"  # not annotated
        "    def __init__(self, encoder, *, weight: float = 3.0):\n        super().__init__(encoder)\n",
    )
    defaults = {
        name: {flag.name: flag.default for flag in plugins.algorithm_flags(name)}
        for name in ("theirs.spin:Spin", "theirs.turn:Turn", "theirs.roll:Roll")
    }
    assert list(defaults.values()) == [
        {"weight": 1.0, "mode": "a", "flip": True},
        {"weight": 1.0, "mode": "b", "flip": True},  # in the base class's order
        {"weight": 3.0},  # takes no keywords for its base class
    ]
    assert plugins.algorithm_flags("theirs.turn:Turn")[1].help == "one of two, told apart by nothing"
    assert plugins.algorithm_added("theirs.turn:Turn") == ("flip",)
    assert plugins.algorithm_dabs("theirs.turn:Turn") == {"weight": 2.0}
    assert plugins.algorithm_dabs("theirs.roll:Roll") == {"weight": 4.0}
    assert not any(name.startswith("theirs.") for name in sys.modules)  # read, not run
    for name in defaults:
        check_algorithm(plugins.algorithm_class(name))


def test_attributes_not_stated_in_the_source_are_refused(package: Callable[[str, str], Path]) -> None:
    package("rotate", OURS)
    package("spin", "import theirs.rotate as r\n\nclass Spin(r.Rotate):\n    pass\n")
    with pytest.raises(UserError, match=r"Spin computes the keywords flip, mode, weight, or inherits it from"):
        plugins.algorithm_class("theirs.spin:Spin")
    package("turn", OURS.replace('= {"weight": 2.0}', "= dict(weight=2.0)"))
    with pytest.raises(UserError, match=r"Rotate: dabs must be a literal, got dict\(weight=2.0\)"):
        plugins.algorithm_class("theirs.turn:Rotate")


def test_presets_and_aliases_are_names_in_a_file() -> None:
    assert "imix_npair" in plugins.algorithms()
    assert plugins.algorithm_class("imix_npair").__module__ == "dabsmix.algorithms.npair"
    assert plugins.algorithm_class("capri") is plugins.algorithm_class("contpred")
    assert "capri" not in plugins.algorithms()  # the same algorithm is listed once
    assert [plugins.canonical_algorithm(name) for name in ("capri", "imix_npair", "contpred", "theirs.x:Y", "?")] == [
        "contpred",
        "imix_npair",
        "contpred",
        "theirs.x:Y",
        "?",
    ]


def test_a_file_in_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rotation.py").write_text(OURS)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.chdir(elsewhere)
    with pytest.raises(UserError, match="start in the folder that holds own_rotation"):
        plugins.algorithm_flags("own_rotation:Rotate")
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    assert len(plugins.algorithm_flags("own_rotation:Rotate")) == 3


def test_a_class_of_a_script_is_refused() -> None:
    with pytest.raises(UserError, match="has to be in a file, as my_file:Rotate"):
        plugins.algorithm_flags("__main__:Rotate")


# --- domains


def test_domains_of_another_package_by_entry_point(package: Callable[[str, str], Path], tmp_path: Path) -> None:
    package(
        "sets",
        "from dabsmix.data.domain import Domain\n"
        'DOMAINS = (Domain("ours_small", "table", "Ours", "MIT", "", load=lambda folder, protocol: None),)\n',
    )
    install(tmp_path, "dabsmix.domains", "sets", "theirs.sets")
    assert plugins.domain("ours_small").title == "Ours"
    assert "pamap2" in plugins.domains()


def test_unknown_domain_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown domain 'cifra10' \(did you mean 'cifar10'"):
        plugins.domain("cifra10")


# --- the contract can be broken


class Sound(Algorithm):
    """Keeps the contract; the classes below break it."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.head = torch.nn.Linear(encoder.width, 1)

    def forward(self, batch: Batch) -> Loss:
        return Loss(self.head(self.encoder(batch.views[0]).mean).square().mean(), {}, None)


class DrawsFreely(Sound):
    def forward(self, batch: Batch) -> Loss:
        loss = super().forward(batch)
        return loss._replace(value=loss.value * float(np.random.default_rng().random()))


class LeavesAHeadUnused(Sound):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.unused = torch.nn.Linear(2, 2)


class HidesState(Sound):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.steps = 0

    def forward(self, batch: Batch) -> Loss:
        loss = super().forward(batch)
        return loss._replace(value=loss.value * (1 + self.steps))

    def after_step(self, progress: float) -> None:
        self.steps += 1


class KeepsTheGraph(Sound):
    def forward(self, batch: Batch) -> Loss:
        loss = super().forward(batch)
        return loss._replace(metrics={"loss": loss.value})


class StopsAtTheEncoder(Sound):
    def forward(self, batch: Batch) -> Loss:
        return Loss(self.head(self.encoder(batch.views[0]).mean.detach()).square().mean(), {}, None)


class GivesTrainedFeatures(Sound):
    def forward(self, batch: Batch) -> Loss:
        loss = super().forward(batch)
        return loss._replace(features=self.encoder(batch.views[0]).mean)


class SetsNoKeyword(Sound):
    dabs = {"temperature": 1.0}  # noqa: RUF012  # the contract states the ClassVar


def test_contract_accepts_what_keeps_it() -> None:
    check_algorithm(Sound)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (DrawsFreely, "draw from batch.seed"),
        (LeavesAHeadUnused, "no gradient reaches unused.weight"),
        (HidesState, "does not hold all state"),
        (KeepsTheGraph, "metric 'loss' must be a detached scalar"),
        (StopsAtTheEncoder, "no gradient reaches encoder"),
        (GivesTrainedFeatures, "features must be detached"),
        (SetsNoKeyword, "not keywords of its constructor"),
    ],
)
def test_contract_reports_what_breaks_it(cls: type[Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_algorithm(cls)
