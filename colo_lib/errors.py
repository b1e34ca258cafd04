"""How a command of the workbook, or a step of a run, ends otherwise than well; each with its exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ColoError(Exception):
    """A failure that is told to the user as one sentence, without a traceback."""

    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback: a notebook tells the sentence that a command tells."""
        return [f"colo: {self}"]


class InputError(ColoError):
    """Wrong input: the message names what is wrong and the remedy. Exit code 2."""

    exit_code = 2


class StepSkipped(ColoError):
    """A step that this machine cannot carry out, through no fault of anything: recorded as skipped, with the reason."""

    exit_code = 1


class StepFailed(ColoError):
    """A step could not be carried out: the message holds the cause's own last lines. Exit code 1."""

    exit_code = 1


def suggest(name: str, known: Iterable[str]) -> str:
    """'did you mean …' for a misspelt name, or the list of known ones."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(sorted(known))
