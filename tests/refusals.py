"""What a refusal has to be: one sentence that names what was wrong."""

import pytest

from guided_diffusion.errors import UserError


def one_sentence(call, *words):
    """`call` must raise UserError with a single line that contains `words`."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message
