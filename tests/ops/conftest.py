"""Every instruction set of this machine in turn."""

from collections.abc import Iterator

import pytest

from vq_plugin import ops


@pytest.fixture(params=ops.isas())
def each_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = ops.isa()
    assert before is not None
    ops.use_isa(request.param)
    yield request.param
    ops.use_isa(before)
