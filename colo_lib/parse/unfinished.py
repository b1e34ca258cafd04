"""What an unfinished run holds so far, checked before it is taken up again: nobody repairs it on the way."""

from __future__ import annotations

from pathlib import Path

from colo_lib import paths
from colo_lib.errors import InputError
from colo_lib.parse.json_file import checked, damaged, read_object
from colo_lib.parse.records import CaptureFacts, Start, Trial
from colo_lib.parse.trial_frames import check_frames
from colo_lib.schema import FRAMES


def check_unfinished(folder: Path) -> None:
    """Raises InputError with the remedy for a record or a frame of `folder` that is not as the launcher leaves it.

    A trial that failed is measured again anyway, and has no frames to be checked.
    """
    checked(Start, read_object(folder / paths.START), folder / paths.START)
    for file in sorted(folder.glob(f"steps/*/trial-*/{paths.TRIAL}")):
        if not file.parent.name.endswith(paths.PARTIAL):
            try:
                _check_trial(file)
            except InputError as error:
                raise InputError(f"{error}; without the folder {file.parent} the trial is measured again") from None
    for file in sorted(folder.glob(f"steps/*/capture/{paths.CAPTURE}")):
        checked(CaptureFacts, read_object(file), file)


def _check_trial(file: Path) -> None:
    record = checked(Trial, read_object(file), file)
    if (record.step, f"trial-{record.trial}") != (file.parent.parent.name, file.parent.name):
        raise damaged(file, f"is the record of {record.step} trial {record.trial}")
    check_frames(file.parent, record, [name for name in FRAMES if paths.frame_file(file.parent, name).is_file()])
