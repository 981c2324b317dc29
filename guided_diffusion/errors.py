"""The one exception a user sees, and what it also is where published code raises something else."""

import contextlib


class UserError(ValueError):
    """A mistake in what the user gave: a flag, a file, a folder.

    Its message is one sentence that names the flag or file and what was expected.
    `launch.run` prints it without a traceback and exits with status 2.
    """


class RefusedByAssertion(UserError, AssertionError):
    """A mistake in arguments that published code answers with an AssertionError: clients may wait for either."""


class NotFinite(UserError):
    """A network or sampler whose numbers are not finite."""


class UnknownName(UserError, NotImplementedError):
    """A name that is in no table, which published code answers with a NotImplementedError."""


@contextlib.contextmanager
def told_of(flag, usual):
    """A UserError within it that speaks of the `usual` flag is of --`flag`, which stands in its place here."""
    try:
        yield
    except UserError as error:
        if flag == usual:
            raise
        raise type(error)(str(error).replace(f"--{usual} ", f"--{flag} ")) from error
