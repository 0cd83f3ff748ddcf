"""What the tests of experiments share."""

import pytest

from flashlla.experiments.common.registry import load


@pytest.fixture
def refused():
    """``refused(config, changes, complaint)``: wrong values are told in one line, before anything begins."""

    def check(config, changes, complaint):
        with pytest.raises(ValueError, match=complaint) as raised:
            config(**changes)
        assert "\n" not in str(raised.value)

    return check


@pytest.fixture
def judged(request):
    """``judged(name, table)``: the verdict on a claim of the experiment that the module is named after."""
    claims = {claim.name: claim for claim in load(request.module.__name__.removeprefix("test_")).claims}
    return lambda name, table: claims[name].judge(table)
