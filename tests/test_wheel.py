"""Wheel and source distribution hold only dabsmix, and ignore folders with the same names as its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, so that the build leaves nothing in it."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(REPOSITORY / name, folder)
    for name in ("dabsmix", "algorithms", "domains", "tests"):
        shutil.copytree(REPOSITORY / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def built(source: Path, folder: Path) -> Path:
    """The wheel of a source folder or archive."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(source)], check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(source, tmp_path_factory.mktemp("wheel"))


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


def test_the_wheel_holds_dabsmix_alone_and_completely(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listed = subprocess.run(["git", "ls-files", "dabsmix"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    links = ("dabsmix/algorithms", "dabsmix/domains")
    expected = {name for name in listed.stdout.split() if name not in links}  # including templates
    for folder in ("algorithms", "domains"):
        expected |= {f"dabsmix/{folder}/{path.name}" for path in (REPOSITORY / folder).glob("*.py")}
    assert names == expected


def test_the_source_distribution_makes_the_same_wheel(python: Path, source: Path, wheel: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "setuptools>=77,<82"], check=True, capture_output=True, timeout=300)
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([str(python), "-c", build], cwd=source, check=True, capture_output=True, timeout=300)
    (archive,) = tmp_path.glob("dabsmix-*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {"algorithms/dmix.py", "domains/digits.py", "tests/verbs/test_pretrain.py", "CITATION.cff"} <= names
    rebuilt = built(archive, tmp_path / "again")
    assert contents(rebuilt) == contents(wheel)


def contents(wheel: Path) -> dict[str, int]:
    """Names and checksums of the installed files, except the list of files itself."""
    infos = zipfile.ZipFile(wheel).infolist()
    return {info.filename: info.CRC for info in infos if not info.filename.endswith(("/RECORD", "/METADATA"))}


def test_hostile_folders_of_the_same_names_are_not_imported(python: Path, tmp_path: Path) -> None:
    for name in ("algorithms", "domains"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported from the working directory')\n")
        (tmp_path / name / "emix.py").write_text("raise SystemExit('imported from the working directory')\n")
    completed = subprocess.run(
        [str(python), "-m", "dabsmix", "list"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert completed.returncode == 0, completed.stderr
    lines = [line.split("\t")[:2] for line in completed.stdout.splitlines()]
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
    completed = subprocess.run(
        [str(python.parent / "dabsmix"), "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "pretrain" in completed.stdout
