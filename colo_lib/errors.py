"""How a command of the workbook, or a step of a run, ends otherwise than well; each with its exit code."""

from __future__ import annotations


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
