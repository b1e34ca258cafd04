"""Records of runs that were recorded: read and written again, they are what stands in the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from colo_lib import records
from colo_lib.json_records import Record
from colo_lib.mechanism_records import MpsEvidence, TimeSlicedEvidence
from colo_lib.paths import CAPTURE, CELL, MANIFEST, RECORDED, START, SWEEP, TRIAL

KINDS: dict[str, type[Record]] = {
    TRIAL: records.Trial,
    CAPTURE: records.CaptureFacts,
    START: records.Start,
    MANIFEST: records.Manifest,
    SWEEP: records.SweepPlan,
    CELL: records.CellRecord,
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("error")
def test_a_record_that_is_read_and_written_again_is_the_same_to_the_byte(name: str, tmp_path: Path) -> None:
    files = sorted(RECORDED.rglob(name))
    assert files
    for file in files:
        KINDS[name].read(file).write(tmp_path / name)
        assert (tmp_path / name).read_bytes() == file.read_bytes(), file


def test_every_recorded_json_is_a_record() -> None:
    others = {file.name for file in RECORDED.rglob("*.json")} - set(KINDS)
    assert others <= {"conditions.json", "later-conditions.json"}  # of the published runs, which wrote no run folder


def test_every_field_that_was_recorded_is_named() -> None:
    for name, kind in KINDS.items():
        for file in RECORDED.rglob(name):
            assert not unnamed(kind.read(file)), file


def unnamed(value: object) -> list[str]:
    """Fields that no record names, of a record and what it holds."""
    if isinstance(value, Record):
        inner = [name for field in value.__dict__.values() for name in unnamed(field)]
        return [*(value.model_extra or {}), *inner]
    if isinstance(value, dict):
        return [name for item in value.values() for name in unnamed(item)]
    return [name for item in value for name in unnamed(item)] if isinstance(value, list) else []


def test_evidence_has_its_kind() -> None:
    kinds = set()
    for file in RECORDED.rglob(TRIAL):
        evidence = records.Trial.read(file).mechanism_evidence
        assert evidence is not None
        assert evidence.before is not None
        kinds.add(type(evidence.before))
        assert type(evidence.before) is type(evidence.after)
    assert kinds == {MpsEvidence, TimeSlicedEvidence}


def test_evidence_of_no_known_shape_is_kept_as_it_is() -> None:
    told = {"before": {"mechanism": "one-queue", "pids": [1, 2]}, "after": None}
    assert records.TrialEvidence.model_validate(told).plain() == told


def test_a_record_is_written_in_the_order_in_which_it_was_told_and_holds_what_was_set() -> None:
    pacing = records.PacingFacts(micro_batch_size=2, kind="duty")
    assert json.dumps(pacing.plain()) == '{"micro_batch_size": 2, "kind": "duty"}'
    assert json.dumps(pacing.joined(duty=1).plain()) == '{"micro_batch_size": 2, "kind": "duty", "duty": 1}'


def test_what_no_reader_would_take_cannot_be_made() -> None:
    with pytest.raises(ValidationError):
        records.PacingFacts(kind="duty", duty=-0.5)
    with pytest.raises(ValidationError):
        records.PacingFacts(kind="duty").joined(duty=float("nan"))
