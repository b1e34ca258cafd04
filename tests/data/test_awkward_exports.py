"""The corpus of awkward files: each is refused with a sentence, or read with what was left out stated."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from colo_lib.cli import main
from colo_lib.data import nsys_pages
from tests import corpus_files

CORPUS = Path(__file__).parents[1] / "corpus"
CASES = sorted(folder.name for folder in CORPUS.iterdir() if folder.is_dir())


def test_every_case_has_a_maker_and_an_outcome() -> None:
    assert sorted(corpus_files.MAKERS) == CASES


@pytest.mark.parametrize("reader", ["by pages where they are plain", "by SQLite"])
@pytest.mark.parametrize("name", CASES)
def test_the_outcome_is_the_expected_one(
    name: str, reader: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nsys_pages, "LEAST_LEAVES", 10**9 if reader == "by SQLite" else 0)
    expected = json.loads((CORPUS / name / "expected.json").read_text(encoding="utf-8"))
    file = corpus_files.MAKERS[name](tmp_path)
    before = _contents(tmp_path)
    with corpus_files.held_by_a_writer(file) if name == "locked" else nullcontext():
        code, out, err = _run(capsys, str(file), "--gen", "777", "--embed", "774", "--json")
        text_code, text, _ = _run(capsys, str(file), "--gen", "777", "--embed", "774")
    assert (code, text_code) == (expected["exit"], expected["exit"]), err
    assert _contents(tmp_path) == before, "nothing is written beside the input, nor into it"
    assert not [char for char in out + text + err if not char.isprintable() and char != "\n"], "no control characters"
    if expected["exit"]:
        assert err.startswith("colo: ")
        assert err.count("\n") == 1, "one sentence"
        for words in expected["says"]:
            assert words in err
        return
    found = json.loads(out)
    for place, value in expected["numbers"].items():
        assert _at(found, place) == pytest.approx(value) if value is not None else _at(found, place) is None, place
    for key in ("omissions", "notes"):
        for words in expected[key]:
            assert any(words in told for told in found[key]), found[key]
            assert words in text
    assert len(found["omissions"]) == len(expected["omissions"]), "what is left out is stated, and nothing else"


def _run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["trace", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _contents(folder: Path) -> dict[str, Any]:
    return {file.name: file.read_bytes() if file.is_file() else None for file in folder.iterdir()}


def _at(found: Any, place: str) -> Any:
    for part in place.split("."):
        found = found[int(part)] if isinstance(found, list) else found[part]
    return found
