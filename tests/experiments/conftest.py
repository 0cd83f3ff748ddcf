"""What the tests of experiments share."""

import pytest


@pytest.fixture
def refused():
    """``refused(config, changes, complaint)``: wrong values are told in one line, before anything begins."""

    def check(config, changes, complaint):
        with pytest.raises(ValueError, match=complaint) as raised:
            config(**changes)
        assert "\n" not in str(raised.value)

    return check
