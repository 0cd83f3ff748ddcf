"""What the tests of other libraries share."""

import pytest


@pytest.fixture
def by_definition(monkeypatch):
    """A function: from its call on, ``lla`` and ``parallax`` of transformers are computed by their
    definition.
    """

    def replace():
        from tiny_transformers import attention_by_definition, visible_matrix
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface

        for name in ("lla", "parallax"):
            monkeypatch.setitem(AttentionInterface._global_mapping, name, attention_by_definition)
            monkeypatch.setitem(AttentionMaskInterface._global_mapping, name, visible_matrix)

    return replace
