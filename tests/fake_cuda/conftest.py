"""The fake device is compiled once; without a C++ compiler its tests are skipped."""

import pytest

from fake_cuda.library import compiler, library


@pytest.fixture(scope="session", autouse=True)
def fake_device():
    if compiler() is None:
        pytest.skip("the fake CUDA device needs a C++ compiler")
    return library()
