"""Where compiled programs are kept, who may write there, and which programs."""

import pytest

from jinit.settings.compilation_cache import COMPILATION_CACHE
from jinit.settings.user_cache import private_directory, private_path, writable_by_others
from tests.processes import run_case


def test_the_users_own_folder_keeps_small_programs_even_under_an_open_umask(tmp_path):
    code = """
os.umask(0)
jinit.startup(0, compilation_cache=True)
jax.jit(lambda x: 3 * x)(2.0)
folder = jax.config.jax_compilation_cache_dir
modes = [os.stat(each).st_mode & 0o777 for each in (folder, os.path.dirname(folder))]
result = [folder, modes, len(os.listdir(folder)) > 1]
"""
    folder = tmp_path / "jinit" / "compilation"
    assert run_case(code, XDG_CACHE_HOME=str(tmp_path)) == [str(folder), [0o700, 0o700], True]


def test_another_folder_is_used_from_then_on(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    code = f"""
warnings.simplefilter("ignore")
counts = []
for folder in ({str(first)!r}, {str(second)!r}, False):
    jinit.startup(0, compilation_cache=folder)
    jax.jit(lambda x: x + len(counts))(2.0)
    counts.append([len(os.listdir(each)) if os.path.exists(each) else 0
                   for each in ({str(first)!r}, {str(second)!r})])
result = counts
"""
    (a1, b1), (a2, b2), (a3, b3) = run_case(code)
    assert a1 > 0
    assert b1 == 0
    assert (a2, b2 > 0) == (a1, True)
    assert (a3, b3) == (a2, b2)


def test_the_users_own_time_limit_stays(tmp_path):
    code = f"""
jinit.startup(0, compilation_cache={str(tmp_path / "a")!r})
result = jax.config.jax_persistent_cache_min_compile_time_secs
"""
    assert run_case(code) == 0.0
    mine = 'jax.config.update("jax_persistent_cache_min_compile_time_secs", 3.0)'
    assert run_case(mine + code) == 3.0
    assert run_case(code, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="1.0") == 1.0


def test_a_private_folder_that_others_can_write_to_is_refused_and_nothing_changed(tmp_path):
    folder = tmp_path / "jinit" / "compilation"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    code = """
untouched = state()
try: jinit.startup(0, compilation_cache=True, enable_x64=True)
except PermissionError as error: raised = str(error)
after = state()
result = [raised, [after[i] == untouched[i] for i in (0, 1, 2, 3, 4)]]
"""
    raised, kept = run_case(code, XDG_CACHE_HOME=str(tmp_path))
    assert raised == (
        f"Others than you can write to {str(folder)!r}, and what is cached there is run: run "
        "chmod go-w on it, or name another folder."
    )
    assert kept == [True] * 5


def test_who_could_put_other_files_there(tmp_path):
    folder = tmp_path / "mine" / "programs"
    folder.mkdir(parents=True)
    folder.chmod(0o700)
    folder.parent.chmod(0o700)
    assert writable_by_others(folder) is None
    for path, mode, culprit in [
        (folder, 0o770, folder),
        (folder, 0o702, folder),
        (folder.parent, 0o777, folder.parent),
        (folder.parent, 0o1777, None),  # sticky
        (folder.parent, 0o770, None),  # a group is trusted above
    ]:
        path.chmod(mode)
        assert writable_by_others(folder) == culprit, oct(mode)
        path.chmod(0o700)


def test_a_shared_folder_is_taken_with_a_warning(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert COMPILATION_CACHE.advice(str(shared / "not" / "yet")) == (
        f"others can write to {str(shared)!r}, and what is in compilation_cache is run"
    )
    for quiet in ("off", "gs://bucket/programs", str(private_path("compilation"))):
        assert COMPILATION_CACHE.advice(quiet) == ""


def test_without_a_home_there_is_a_clear_error(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.expanduser", _homeless)
    text = "There is no folder for a cache: Could not determine home directory. Set HOME or XDG"
    with pytest.raises(OSError, match=text):
        private_directory("programs")


def _homeless(path):
    raise RuntimeError("Could not determine home directory.")
