"""The newcomer's notebook runs from top to bottom, and shows what its text says."""

from pathlib import Path

import pytest

TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"


@pytest.mark.slow
def test_the_tour_runs_from_top_to_bottom(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    notebook = nbformat.read(TOUR, as_version=4)
    client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "\n".join(str(output.get("text", "")) for output in outputs)
    assert "breast_cancer-dmix-s0  breast_cancer  accuracy" in text
    assert "(5, 64) float32" in text
    assert "test accuracy 0.9" in text
    complaints = [str(output["text"]) for output in outputs if output.get("name") == "stderr"]
    assert all("TqdmWarning" in text for text in complaints), complaints  # a library's warning if ipywidgets is missing
    assert list(tmp_path.iterdir()) == []


def test_the_tour_is_committed_without_outputs() -> None:
    import json

    cells = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")
