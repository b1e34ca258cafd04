"""Parameters: every name and value is checked, nothing in a file or a notebook surprises."""

from __future__ import annotations

import ast
import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from colo_lib.errors import InputError, suggest
from colo_lib.flat_yaml import MAX_PARAMS_BYTES, read_file
from colo_lib.params import (
    CELL_HEADING,
    INJECTED_HEADING,
    PURPOSES,
    Params,
    cell_source,
    check,
    from_notebook,
    load,
    split_list,
)
from colo_lib.paths import REPOSITORY
from colo_lib.purpose import GROUPS, parameters, purpose_of
from colo_lib.report.share_rules import TEXTS

DEFAULTS = {name: field.default for name, field in Params.model_fields.items()}
FLOATS = sorted(name for name, field in Params.model_fields.items() if field.annotation is float)
INTS = sorted(name for name, field in Params.model_fields.items() if field.annotation is int)
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers()))


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return file


# --- names and values ------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(max_size=30), PLAIN, min_size=1, max_size=4))
def test_an_unknown_name_is_always_refused_by_its_name(values: dict[str, object]) -> None:
    unknown = [name for name in values if name not in DEFAULTS]
    if not unknown:
        return
    with pytest.raises(InputError) as caught:
        check(values, "here")
    assert all(repr(name) in str(caught.value) for name in unknown)


@given(st.sampled_from(sorted(DEFAULTS)), PLAIN)
def test_any_value_is_taken_as_it_is_or_refused_by_name(name: str, value: object) -> None:
    try:
        taken = getattr(check({name: value}, "here"), name)
    except InputError as error:
        told = str(error)
    else:
        told = repr(name) if (taken, type(taken)) == (value, type(DEFAULTS[name])) else "changed silently"
    assert repr(name) in told


@given(st.sampled_from(sorted(DEFAULTS)), st.integers(0, 100), st.sampled_from("abcdefgz_"))
def test_a_slip_of_one_letter_gets_the_right_name(name: str, place: int, letter: str) -> None:
    slipped = name[: place % len(name)] + letter + name[place % len(name) + 1 :]
    if slipped in DEFAULTS or len(name) < 6:
        return
    with pytest.raises(InputError, match="did you mean"):
        check({slipped: DEFAULTS[name]}, "here")


@pytest.mark.parametrize("name", INTS)
@pytest.mark.parametrize("value", [True, 1.0, "1", None])
def test_an_integer_is_an_integer(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        check({name: value}, "here")


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, True, "0.5"])
def test_a_float_is_a_sound_number(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        check({name: value}, "here")


@pytest.mark.parametrize("name", ["slice_ms", "gen_kv_cache_gib"])
def test_a_whole_number_is_a_right_float(name: str) -> None:
    value = getattr(check({name: 3}, "here"), name)
    assert (value, type(value)) == (3.0, float)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"steps": "step1,setp2"}, "did you mean 'step2'"),
        ({"steps": " , "}, "no step named"),
        ({"run_name": "../out"}, "run_name"),
        ({"run_name": "a" * 65}, "run_name"),
        ({"device": "tpu"}, "device"),
        ({"gen_port": 65536}, "gen_port"),
        ({"gen_concurency": 1, "embed_bach_size": 2}, "gen_concurrency.*embed_batch_size"),
    ],
)
def test_wrong_values_are_told(values: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        check(values, "here")


def test_parameters_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Params().gen_concurrency = 4  # type: ignore[misc]


@pytest.mark.parametrize(("device", "native"), [("cpu", "float32"), ("cuda", "bfloat16")])
def test_weights_that_nobody_chose_are_what_the_device_multiplies(device: str, native: str) -> None:
    chosen = Params(device=device, embed_dtype="float16")  # type: ignore[arg-type]
    assert (chosen.gen_dtype, chosen.embed_dtype) == (native, "float16")


def test_steps_come_in_the_experiments_order() -> None:
    assert Params(steps="configB, step1,step3").step_names() == ["step1", "step3", "configB"]


@given(st.lists(st.text(st.characters(exclude_characters=","), max_size=5)))
def test_a_list_is_split_and_stripped(parts: list[str]) -> None:
    assert split_list(",".join(parts)) == [part.strip() for part in parts if part.strip()]


def test_a_name_unlike_any_gets_the_list() -> None:
    assert suggest("qqq", ["b", "a"]) == "known: a, b"


# --- purposes --------------------------------------------------------------------------------------------


def test_a_parameter_without_group_or_touch_stops_the_import() -> None:
    class Incomplete(Params):
        forgotten: int = Field(1, description="what it is for, nobody said")
        unsaid: str = parameters("judging", "judgement")("", "a text that stands for nothing")

    for name, told in (("forgotten", "say its group"), ("unsaid", "say what it stands for")):
        with pytest.raises(TypeError, match=f"{name}.*{told}"):
            purpose_of(name, Incomplete.model_fields[name])
    with pytest.raises(TypeError, match="group 'engines'"):
        parameters("engines", "engine")  # type: ignore[arg-type]
    for touches in ((), ("judgment",)):
        with pytest.raises(TypeError, match="touches one or more of"):
            parameters("judging", *touches)  # type: ignore[arg-type]


def test_groups_stand_together_in_their_order() -> None:
    order = list(GROUPS)
    places = [order.index(purpose.group) for purpose in PURPOSES.values()]
    assert places == sorted(places)
    assert {*places} == {*range(len(order))}


def test_every_text_says_how_it_may_be_shared() -> None:
    assert {purpose.text for purpose in PURPOSES.values()} - {""} == {*TEXTS}


# --- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gen_concurrency: 1\ngen_concurrency: 2\n", "given twice"),
        ("a: &x [1]\nb: *x\n", "aliases are not allowed"),
        ("[1, 2]\n", "a mapping of names"),
        ("", "a mapping of names"),
        ("just words\n", "a mapping of names"),
        ("gen_model: [unclosed\n", "not a flat YAML mapping"),
        ("gen_model: !!python/object/apply:os.system ['true']\n", "not a flat YAML mapping"),
        ("? [1]\n: 2\n", "not a flat YAML mapping"),
        ("a: 1\n---\nb: 2\n", "not a flat YAML mapping"),
        ("gen_model: \x00\n", "not a flat YAML mapping"),
    ],
)
def test_what_is_not_a_flat_mapping_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        load(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("gen_enforce_eager: maybe\n", "gen_enforce_eager"),
        ("gen_model: no\n", "gen_model"),  # YAML 1.1 makes it False
        ("run_name: 012\n", "run_name"),  # ... and this ten
        ("trace_window: 12:30\n", "trace_window"),  # ... and this 750
        ("slice_ms: 1e3\n", "slice_ms"),  # ... and leaves this a text
        ("slice_ms: .nan\n", "slice_ms"),
        ("window_s: .inf\n", "window_s"),
        ("gen_model: {a: 1}\n", "gen_model"),
        ("seed: 2026-11-24\n", "seed"),
        ("devices: 0\n", "devices"),  # one unquoted index is a number
        ("gen_model:\n", "gen_model"),
        ("1: 2\n", "1"),
        ("<<: {seed: 2}\nseed: 3\n", "<<|seed"),
    ],
)
def test_yaml_traps_are_refused_by_name(tmp_path: Path, text: str, name: str) -> None:
    if text.startswith("<<"):
        assert load(write(tmp_path, text)).seed == 3
        return
    with pytest.raises(InputError, match=name):
        load(write(tmp_path, text))


@pytest.mark.timeout(60)  # expanded, it would take centuries
def test_an_alias_bomb_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    with pytest.raises(InputError, match="aliases"):
        read_file(write(tmp_path, "\n".join(lines)))


def test_a_file_too_large_too_deep_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="larger than"):
        read_file(write(tmp_path, "# " + "x" * MAX_PARAMS_BYTES))
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"gen_model: \xff\xfe\n")
    with pytest.raises(InputError, match="not a flat YAML mapping"):
        read_file(file)
    with pytest.raises(InputError, match=r"mine\.yaml"):
        read_file(write(tmp_path, "a: " + "[" * 20_000))


def test_a_missing_file_is_told_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "seed: 1\n")
    with pytest.raises(InputError, match=r"did you mean .*mine\.yaml"):
        load(tmp_path / "nine.yaml")
    with pytest.raises(InputError, match="give a path"):
        load(tmp_path / "no" / "such.yaml")


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("p") / "mine.yaml"
    file.write_bytes(content)
    with contextlib.suppress(InputError):
        load(file)


def test_changes_go_on_top_of_a_file(tmp_path: Path) -> None:
    params = load(write(tmp_path, "seed: 5\ngen_concurrency: 3\n"), seed=7)
    assert (params.seed, params.gen_concurrency) == (7, 3)


# --- notebooks -------------------------------------------------------------------------------------------


def notebook(*cells: str) -> dict[str, object]:
    """The namespace of a notebook in which `cells` ran."""
    namespace: dict[str, object] = {}
    for cell in cells:
        exec(cell, namespace)
    return {**namespace, "In": ["", *cells]}


@given(st.sets(st.sampled_from(sorted(DEFAULTS)), min_size=1))
def test_the_cell_holds_its_parameters_with_their_defaults(names: set[str]) -> None:
    tree = ast.parse(cell_source(names))
    told = {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body}  # type: ignore[attr-defined]
    assert told == {name: DEFAULTS[name] for name in names}
    assert from_notebook(notebook(cell_source(names))) == Params()


@given(st.integers(1, 4096), st.booleans(), st.sets(st.sampled_from(sorted(DEFAULTS)), min_size=1, max_size=4))
def test_what_papermill_injects_counts_whether_the_cell_lists_it_or_not(
    concurrency: int, eager: bool, names: set[str]
) -> None:
    injected = f"{INJECTED_HEADING}\ngen_concurrency = {concurrency}\ngen_enforce_eager = {eager}\n"
    params = from_notebook(notebook(cell_source(names), injected, "gen_concurrency"))
    assert (params.gen_concurrency, params.gen_enforce_eager) == (concurrency, eager)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("window_z = 2.0", "did you mean 'window_s'"),
        ("gen_port = '80'", "gen_port.*loopback port"),
        ("slice_ms = -1.0", "slice_ms.*greater than 0"),
        ("interleave = 'all'", "interleave.*is gone"),
    ],
)
def test_an_injected_name_that_the_cell_does_not_list_is_checked_as_well(line: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        from_notebook(notebook(cell_source(["run"]), f"{INJECTED_HEADING}\n{line}"))


@pytest.mark.parametrize("heading", [CELL_HEADING, INJECTED_HEADING])
def test_a_misspelt_parameter_of_a_notebook_is_found(heading: str) -> None:
    with pytest.raises(InputError, match="did you mean 'gen_concurrency'"):
        from_notebook(notebook(cell_source(["run"]), f"{heading}\ngen_concurency = 3"))


def test_running_the_cell_again_forgets_what_stood_in_it_before() -> None:
    with pytest.raises(InputError):
        from_notebook(notebook(f"{CELL_HEADING}\nmisspelt = 1"))
    repaired = notebook(f"{CELL_HEADING}\nmisspelt = 1", f"{CELL_HEADING}\nseed = 4")
    assert from_notebook(repaired).seed == 4


def test_other_variables_of_a_notebook_are_its_own() -> None:
    assert from_notebook(notebook(f"{CELL_HEADING}\nseed = 4", "my_own = 1")).seed == 4
    assert from_notebook({"seed": 6, "my_own": 1}).seed == 6  # outside a notebook: known names of the namespace


def test_reading_parameters_is_light() -> None:
    code = (
        "import sys; import colo_lib.params; print([m for m in ('pandas', 'torch', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"gen_concurrency": 1024, "gen_max_num_seqs": 512},
            "gen_max_num_seqs = 512 is less than gen_concurrency",
        ),
        (
            {"embed_rate": 5.0},
            "parameter 'embed_rate' = 5 has no effect on a closed loop: set embed_arrivals",
        ),
        ({"gen_rate": 5.0, "embed_arrivals": "poisson"}, "parameter 'gen_rate' = 5 has no effect on a closed loop"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(given: dict[str, object], told: str) -> None:
    with pytest.raises(InputError) as refused:
        check(given, "this file")
    assert str(refused.value).startswith(f"this file: {told}")
    assert "{" not in str(refused.value)


def test_a_server_takes_more_than_it_runs_where_requests_are_due() -> None:
    given = {"gen_concurrency": 1024, "gen_max_num_seqs": 512, "gen_arrivals": "poisson", "gen_rate": 3.0}
    assert check(given, "this file").has_demand
