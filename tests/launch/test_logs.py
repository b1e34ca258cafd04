"""The end of a log, as a person needs it."""

from __future__ import annotations

from pathlib import Path

from colo_lib.launch.child import tail


def written(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "log"
    file.write_text("\n".join(lines))
    return file


def test_the_cause_is_shown_however_much_noise_follows(tmp_path: Path) -> None:
    noise = [
        "nanobind: leaked 514 functions!",
        *[f' - leaked function "f{i}"' for i in range(50)],
        " - ... skipped remainder",
    ]
    said = tail(written(tmp_path, "ValueError: no such model", "engine core ended", *noise))
    assert said == "ValueError: no such model\nengine core ended"


def test_an_early_error_is_kept_beside_the_last_lines(tmp_path: Path) -> None:
    said = tail(written(tmp_path, "RuntimeError: the cause", *[f"line {i}" for i in range(100)])).splitlines()
    assert said[:2] == ["RuntimeError: the cause", "…"]
    assert said[-1] == "line 99"


def test_a_missing_or_binary_log_is_no_error(tmp_path: Path) -> None:
    assert tail(tmp_path / "none") == ""
    (tmp_path / "log").write_bytes(b"\xff\xfe\x00 last")
    assert tail(tmp_path / "log").endswith("last")
