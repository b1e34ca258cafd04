"""The two ways a command of the workbook ends badly, each with its exit code."""


class ColoError(Exception):
    """A failure that is told to the user as one sentence, without a traceback."""

    exit_code = 1


class InputError(ColoError):
    """Wrong input: the message names what is wrong and the remedy. Exit code 2."""

    exit_code = 2


class StepFailed(ColoError):
    """A step could not be carried out: the message holds the cause's own last lines. Exit code 1."""

    exit_code = 1
