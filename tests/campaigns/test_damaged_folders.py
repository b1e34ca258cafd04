"""A sample of the damaged run folders; `python -m tests.campaigns.damaged_folders` carries out all of them."""

from __future__ import annotations

import pytest

from tests.campaigns.damaged_folders import carry_out


@pytest.mark.timeout(900)
def test_twenty_damaged_folders_end_in_a_sentence_or_in_the_truth(capsys: pytest.CaptureFixture[str]) -> None:
    tally = carry_out(20, seed=3, page_every=0)
    assert not tally["wrong"], capsys.readouterr().out
    assert tally["refused"] > 10, "damage that nobody notices proves nothing"
