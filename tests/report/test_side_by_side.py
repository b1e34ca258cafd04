"""Runs side by side tell what each run's own page tells; the index tells what its pages tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from colo_lib import paths
from colo_lib.data.run import open_run
from colo_lib.errors import InputError
from colo_lib.report import notebook_output, page, side_by_side
from colo_lib.report.page import execute
from tests.report.test_page import HOSTILE, Reader, carry_out, only_own_script, report_command
from tests.run_folders import Plan, write_run


def recorded() -> Path:
    (found,) = paths.RECORDED.glob("h200-qwen3-*[0-9]")
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The recorded run of a real GPU, and a planted one of another device in which little is lost."""
    root = tmp_path_factory.mktemp("runs")
    kept = {"step2": 0.97, "step3": 0.5, "configB": 1.3}
    plan = Plan(
        run_id="other", blocks=5, window_s=2.0, noise=0.002, gen_kept=kept, machine={"device_name": f"X$^_${HOSTILE}"}
    )
    return [recorded(), write_run(root, plan)]


@pytest.fixture(scope="module")
def both(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return side_by_side.make_side_by_side(runs, tmp_path_factory.mktemp("pages") / "reports")


def test_every_run_has_its_verdict_its_loss_and_its_label(both: Path) -> None:
    reader = Reader(both.read_text(encoding="utf-8"))
    first = reader.words.split("The verdict, clause by clause")[0]
    assert "A: H200" in first
    assert "inconclusive" in first, "one start of the engines settles nothing"
    assert "B: " in first
    assert "SIMULATED" in first
    assert "0.509 [0.423, 0.612, within one start]" in reader.words, (
        "gen's kept fraction of the recorded run, as its own page tells it"
    )
    for title in notebook_output.SIDE_BY_SIDE.values():
        assert title in reader.words


def test_hostile_words_are_text_on_the_page_and_in_the_index(both: Path) -> None:
    shown = HOSTILE.replace("\x07", "\\x07")
    for file, words in ((both, shown), (both.with_name(page.INDEX), "<script>alert(1)</script>")):
        reader = Reader(file.read_text(encoding="utf-8"))
        assert words in reader.words, file.name
        assert only_own_script(file.read_text(encoding="utf-8"))
        assert not [attributes for _, attributes in reader.tags if any(name.startswith("on") for name in attributes)]


def test_the_page_tells_the_verdict_that_the_notebook_tells(tmp_path: Path) -> None:
    run = open_run(recorded())
    own = side_by_side.compare([run])[0].analysis
    told = {part["name"]: part for part in execute("51-verdict", run, tmp_path / "51.ipynb")}
    assert (own.verdict.status, own.headline, own.warnings) == (
        told["verdict"]["status"], told["verdict"]["sentence"], told["verdict"]["warnings"]
    )  # fmt: skip
    assert "1.21 to 1.86, within one start" in own.headline


def test_what_differs_is_named_and_what_is_alike_is_not(runs: list[Path]) -> None:
    told = side_by_side.conditions(side_by_side.compare([open_run(folder) for folder in runs])).set_index("Condition")
    assert not told.loc["machine: device_name", "alike"]
    assert not told.loc["parameter: gen_model", "alike"]
    assert told.loc["parameter: min_gen_kept", "alike"]


def test_wrong_runs_are_refused_in_a_sentence(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="given twice"):
        carry_out(report_command, str(runs[0]), str(runs[0]), "--reports-dir", str(tmp_path))
    with pytest.raises(InputError, match="colo list"):
        carry_out(report_command, str(runs[0]), "no-such-run", "--reports-dir", str(tmp_path))
    with pytest.raises(InputError, match="one RUN"):
        carry_out(report_command, *map(str, runs), "--figures", str(tmp_path / "figures"))
    assert list(tmp_path.iterdir()) == []


def test_the_index_has_every_page_with_its_verdict(tmp_path: Path, runs: list[Path]) -> None:
    run = open_run(runs[1])
    verdict = {"kind": "verdict", "name": "verdict", "section": "first", "status": "supported"}
    verdict |= {"sentence": "It <holds>.", "warnings": []}
    (tmp_path / "other.html").write_text(page.run_html(run, [verdict]), encoding="utf-8")
    (tmp_path / "strange.html").write_text("<p>another program's page", encoding="utf-8")
    reader = Reader(page.write_index(tmp_path).read_text(encoding="utf-8"))
    assert [attributes["href"] for tag, attributes in reader.tags if tag == "a"] == ["#reports", "other.html"]
    for words in ("supported", "It <holds>.", "simulated", "strange.html", "1 report,"):
        assert words in reader.words, words
    (tmp_path / "other.html").unlink()
    assert "supported" not in Reader(page.write_index(tmp_path).read_text(encoding="utf-8")).words


def test_a_run_cannot_take_the_index_s_place(tmp_path: Path) -> None:
    run = write_run(tmp_path, Plan(run_id="index", blocks=1, window_s=1.0))
    with pytest.raises(InputError, match="-o FILE"):
        page.make_report(run, tmp_path / "reports")


def test_a_warning_of_several_steps_is_told_once() -> None:
    warnings = ["both under MPS: late", "gen drifted: much", "both time-sliced: late", "both under MPS: hot"]
    assert page.merged(warnings) == [
        "'both under MPS', 'both time-sliced': late",
        "gen drifted: much",
        "both under MPS: hot",
    ]
