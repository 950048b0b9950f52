"""The public data types: old names that are kept for one release."""

from dataclasses import replace

import pytest

from unspool.types import ModelInfo

OLD_NAME = "`path` of ModelInfo is deprecated; use `backend`"


def test_the_old_name_of_the_backend_is_read_with_a_warning():
    info = ModelInfo(name="m", vocab_size=2, backend="slot cache")
    with pytest.warns(DeprecationWarning, match=OLD_NAME) as caught:
        assert info.path == "slot cache"
    assert [warning.filename for warning in caught] == [__file__]


def test_the_old_name_of_the_backend_is_accepted_with_a_warning():
    with pytest.warns(DeprecationWarning, match=OLD_NAME) as caught:
        info = ModelInfo(name="m", vocab_size=2, path="slot cache")
    assert [warning.filename for warning in caught] == [__file__]
    assert info == ModelInfo(name="m", vocab_size=2, backend="slot cache")
    with pytest.warns(DeprecationWarning, match=OLD_NAME):
        assert replace(info, path="toy").backend == "toy"


def test_a_copy_with_other_values_warns_of_nothing():
    info = ModelInfo(name="m", vocab_size=2, backend="slot cache")
    assert replace(info, vocab_size=3) == ModelInfo(name="m", vocab_size=3, backend="slot cache")
    with pytest.raises(TypeError, match="unexpected keyword argument 'way'"):
        ModelInfo(name="m", vocab_size=2, way="slot cache")
