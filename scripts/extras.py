"""The packages and sizes of dabsmix and each of its extras as a Markdown table, from the current environment.

pip install '.[test,docs,slurm,track,export]' && python scripts/extras.py
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = brought(project["dependencies"])
    print("| extra | packages | MiB | the largest |\n|---|---|---|---|")
    print(line("(none)", base))
    for extra, requirements in project["optional-dependencies"].items():
        packages = brought(requirements)
        print(line(f"`[{extra}]`", {name: packages[name] for name in packages if name not in base}))


def brought(requirements: list[str]) -> dict[str, float]:
    """The packages that these need, themselves included, with the size of each in MiB; 0 if it is not installed."""
    sizes: dict[str, float] = {}
    waiting = [(text, "") for text in requirements]
    while waiting:
        text, extra = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in sizes:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            sizes[name] = 0.0
            continue
        sizes[name] = weight(package)
        for extra in ("", *requirement.extras):
            waiting += [(needed, extra) for needed in package.requires or ()]
    return sizes


def weight(package: Distribution) -> float:
    """MiB of the files of a package."""
    files = (Path(str(package.locate_file(file))) for file in package.files or ())
    return sum(path.stat().st_size for path in files if path.is_file()) / 2**20


def line(title: str, packages: dict[str, float]) -> str:
    largest = sorted(packages, key=lambda name: -packages[name])[:5]
    named = ", ".join(f"{name} {packages[name]:.0f}" for name in largest if packages[name] >= 0.5)
    absent = [name for name, size in packages.items() if not size]
    missing = f"; not installed here: {', '.join(absent)}" if absent else ""
    return f"| {title} | {len(packages)} | {sum(packages.values()):,.0f} | {named}{missing} |"


if __name__ == "__main__":
    main()
