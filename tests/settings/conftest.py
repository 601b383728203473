"""What is found out about flags is kept, once for all tests, apart from the user's own cache."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _cache_home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _environment_as_it_was():
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
