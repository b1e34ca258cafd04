"""A seeded sample of the campaign over damaged exports; `python -m tests.campaigns.damaged_exports` runs a thousand."""

from __future__ import annotations

from tests.campaigns.damaged_exports import REFUSED, TOLD, one

SEED, SAMPLE = 7, 30


def test_a_sample_of_damaged_exports_is_refused_warned_of_or_told_right() -> None:
    outcomes = [one(SEED, number) for number in range(SAMPLE)]
    assert not [outcome for outcome in outcomes if outcome.problem]
    assert {REFUSED, TOLD} <= {outcome.ended for outcome in outcomes}
