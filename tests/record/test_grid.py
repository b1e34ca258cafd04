"""The grid of a sweep: every cell checked and named before anything starts."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo_lib.errors import InputError
from colo_lib.params import Params
from colo_lib.sweep_plan import changes_in_words, grid, parse_axis


def changes(*words: str) -> list[dict]:
    return [cell.changes for cell in grid(Params(), [parse_axis(word) for word in words])]


def test_axes_multiply_and_the_last_is_fastest() -> None:
    assert changes("gen_concurrency=1,2", "gen_enforce_eager=true,false") == [
        {"gen_concurrency": 1, "gen_enforce_eager": True}, {"gen_concurrency": 1, "gen_enforce_eager": False},
        {"gen_concurrency": 2, "gen_enforce_eager": True}, {"gen_concurrency": 2, "gen_enforce_eager": False},
    ]  # fmt: skip


def test_parameters_that_change_together() -> None:
    found = changes("gen_prompt_tokens:gen_output_tokens=16:112,112:16")
    assert found == [
        {"gen_prompt_tokens": 16, "gen_output_tokens": 112}, {"gen_prompt_tokens": 112, "gen_output_tokens": 16},
    ]  # fmt: skip
    assert changes_in_words(found[0]) == "gen_prompt_tokens = 16, gen_output_tokens = 112"


def test_values_with_commas_are_separated_by_semicolons() -> None:
    assert changes("devices=0,1;0") == [{"devices": "0,1"}, {"devices": "0"}]
    assert changes("gen_kv_cache_gib=1,2") == [{"gen_kv_cache_gib": 1.0}, {"gen_kv_cache_gib": 2.0}]


@pytest.mark.parametrize(
    ("words", "told_of"),
    [
        (["gen_concurency=1,2"], "did you mean 'gen_concurrency'"),
        (["gen_concurrency=1,0"], "gen_concurrency"),
        (["gen_concurrency=1,1"], "given twice"),
        (["gen_concurrency"], "write NAME=V1,V2"),
        (["gen_concurrency="], "write NAME=V1,V2"),
        (["gen_concurrency=1,2", "gen_concurrency=4"], "varied twice"),
        (["gen_prompt_tokens:gen_output_tokens=16"], "1 values for 2 parameters"),
        (["runs_dir=a,b"], "set by the sweep itself"),
        (["gen_port=" + ",".join(map(str, range(1000, 1600)))], "more than 500"),
        ([], "nothing to vary"),
    ],
)
def test_what_is_wrong_is_named(words: list[str], told_of: str) -> None:
    with pytest.raises(InputError, match=told_of):
        changes(*words)


@given(st.text())
def test_any_word_gives_an_axis_or_a_sentence(word: str) -> None:
    axis = None
    with suppress(InputError):
        axis = parse_axis(word)
    assert axis is None or all(len(values) == len(axis.names) for values in axis.values)
