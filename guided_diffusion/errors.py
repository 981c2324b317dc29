"""The one exception a user sees."""


class UserError(ValueError):
    """A mistake in what the user gave: a flag, a file, a folder.

    Its message is one sentence that names the flag or file and what was expected.
    `launch.run` prints it without a traceback and exits with status 2.
    """
