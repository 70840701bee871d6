"""External files from the command line: listed, fetched, verified, and what is refused."""

import subprocess
import sys
from contextlib import contextmanager

import pytest

from harness.cli.app import main
from harness.data.external import DATA_VARIABLE, DataFile
from tests.unit.served import served
from tests.unit.test_external import entry


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # between two attempts
    with served() as server:
        yield server


@pytest.fixture
def call(monkeypatch, capsys, server, tmp_path):
    """The command line with two files: one that the server has, one without an address."""
    files = (
        entry(server.url),
        DataFile(path="hand.txt", benchmarks=("mt_bench",), licence="MIT", needed=False, note="made by hand"),
    )
    monkeypatch.setattr("harness.data.external.external_files", lambda: files)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "data"))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dspa-bench", "data", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_list_fetch_and_verify_from_the_command_line(call, server, tmp_path):
    code, out, _ = call("list")
    assert code == 0
    assert "missing  here/file.bin  (needed by mt_bench)\n         unknown size, MIT, sha256 not known yet\n" in out
    assert "no public address\n         made by hand\n" in out
    assert "mt_bench: missing or wrong: here/file.bin; without: hand.txt" in out
    code, out, err = call("verify")
    assert (code, err) == (2, f"error: there is no data folder '{tmp_path}/data'; `dspa-bench data fetch` makes it\n")
    code, out, err = call("fetch", "mt_bench")
    assert (code, err) == (0, "")
    assert "fetched  here/file.bin: as fetched on 20" in out
    assert "mt_bench: all that it needs is there; without: hand.txt" in out
    assert call("fetch")[:1] == (0,)
    assert server.requests == 1
    assert call("verify", "mt_bench")[0] == 0
    assert call("verify", "hand.txt")[0] == 1
    (tmp_path / "data/here/file.bin").write_bytes(b"damaged")
    code, out, _ = call("verify")
    assert code == 1
    assert "differs  here/file.bin: sha256 is " in out
    code, out, _ = call("list", "--csv")
    assert out.splitlines()[0] == "path,benchmarks,needed,licence,size,sha256,exact,state,url,package,note"
    assert out.splitlines()[1].startswith("here/file.bin,mt_bench,True,MIT,,,False,differs,http://127.0.0.1")


def test_a_file_that_cannot_be_fetched_is_exit_code_1_and_the_others_are_fetched(call, server):
    server.plan = [404]
    code, out, err = call("fetch")
    assert code == 1
    assert err.startswith("failed: here/file.bin: http://127.0.0.1")
    assert "mt_bench: missing or wrong: here/file.bin" in out


def test_bad_names_and_folders_are_exit_code_2(call, tmp_path):
    for command in ("list", "fetch", "verify"):
        code, _, err = call(command, "nothing")
        assert code == 2
        assert err.startswith("error: no external file or benchmark is called 'nothing'")
    (tmp_path / "file").write_text("")
    code, _, err = call("fetch", "--folder", str(tmp_path / "file"))
    assert code == 2
    assert err.startswith(f"error: cannot write to the data folder '{tmp_path}/file'")


def test_two_processes_do_not_fetch_into_one_folder(call, tmp_path):
    folder = tmp_path / "data"
    with held(folder):
        code, _, err = call("fetch")
    assert (code, err) == (2, f"error: another process is fetching into '{folder}'; wait for it\n")


@contextmanager
def held(folder):
    folder.mkdir()
    code = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]): print('held'); input()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code, folder / ".fetch.lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield
        process.communicate("\n")
