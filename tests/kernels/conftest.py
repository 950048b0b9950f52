"""The instruction sets of this kind of machine."""

import pytest

from tests.kernels.levels import HERE
from unspool.kernels.library import VARIABLE, kernels, obstacle


@pytest.fixture(params=HERE)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the kernels run on one instruction set; skip the test if this CPU lacks it."""
    monkeypatch.setenv(VARIABLE, request.param)
    if kernels() is None:
        pytest.skip(obstacle())
    return str(request.param)
