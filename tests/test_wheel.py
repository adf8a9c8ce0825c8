"""The wheel: nothing but dabsmix, and deaf to folders that happen to be called like its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("dabsmix", "algorithms", "domains"):
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(source)], check=True, capture_output=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel, which finds what dabsmix depends on in this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", str(wheel)], check=True, capture_output=True, timeout=300)
    return python


def test_it_holds_dabsmix_alone_and_all_of_it(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {"dabsmix/py.typed"}
    for folder, inside in (
        ("dabsmix", "dabsmix"),
        ("algorithms", "dabsmix/algorithms"),
        ("domains", "dabsmix/domains"),
    ):
        expected |= {f"{inside}/{path.name}" for path in (REPOSITORY / folder).glob("*.py")}
    for path in (REPOSITORY / "dabsmix").glob("*/*.py"):
        if path.parent.name not in ("algorithms", "domains"):
            expected.add(f"dabsmix/{path.parent.name}/{path.name}")
    assert names == expected


def test_hostile_folders_of_the_same_names_are_not_imported(python: Path, tmp_path: Path) -> None:
    for name in ("algorithms", "domains"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported from the working directory')\n")
        (tmp_path / name / "emix.py").write_text("raise SystemExit('imported from the working directory')\n")
    done = subprocess.run(
        [str(python), "-m", "dabsmix", "list"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t")[:2] for line in done.stdout.splitlines()]
    for expected in (["domain", "digits"], ["algorithm", "emix"], ["encoder", "dabs"]):
        assert expected in lines
    where = subprocess.run(
        [str(python), "-c", "import dabsmix.algorithms.emix as m; print(m.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert Path(where.stdout.strip()).is_relative_to(python.parent.parent)


def test_the_console_script_is_there(python: Path) -> None:
    done = subprocess.run(
        [str(python.parent / "dabsmix"), "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "pretrain" in done.stdout
