"""These tests leave what those of the settings leave as it was."""

from tests.settings.conftest import _cache_home, _environment_as_it_was  # noqa: F401
