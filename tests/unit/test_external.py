"""External files: a sound catalogue, checked downloads, pinned contents, and nothing half-written."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
import yaml

from harness.data.external import (
    ATTEMPTS,
    DATA_VARIABLE,
    DataFile,
    DownloadError,
    benchmarks,
    data_file,
    data_folder,
    external_files,
    fetch,
    missing,
    select,
    state,
)
from tests.unit.served import CONTENT, served


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # between two attempts
    with served() as server:
        yield server


def entry(url, **options):
    return DataFile(path="here/file.bin", benchmarks=("mt_bench",), licence="MIT", url=url, **options)


def sha(content):
    return hashlib.sha256(content).hexdigest()


def left(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_the_catalogue_is_sound():
    files = external_files()
    assert len({f.path for f in files}) == len(files)
    assert {"mt_bench", "alpaca_eval", "safety", "multiple_choice"} <= set(benchmarks())
    for file in files:
        assert file.url is None or file.url.startswith("https://")
        assert (file.size is None) == (file.sha256 is None)
    # What a benchmark cannot run without can be had without asking anybody.
    assert [f.path for f in files if f.needed and f.address is None] == []


def test_the_real_data_is_what_the_catalogue_and_the_tests_own_list_say(data_folder):
    rows = yaml.safe_load((Path(__file__).parents[1] / "real_data.yaml").read_text())
    files = [*external_files(), *map(DataFile.model_validate, rows)]
    small = [f for f in files if f.size is not None and f.size < 5_000_000]
    assert {f.path: state(data_folder, f).status for f in small} == {f.path: "ok" for f in small}
    listed = {f.path for f in files} | {"README.md"}
    unknown = [p for p in left(data_folder) if not any(p == path or p.startswith(f"{path}/") for path in listed)]
    assert unknown == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"path": "../x"}, "not a place inside the data folder"),
        ({"path": "/x"}, "not a place inside the data folder"),
        ({"url": None}, "a note must say where it comes from"),
        ({"exact": True}, "exact needs a url or package"),
        ({"package": "a==1"}, "give a url, or a package with the member"),
        ({"package": "a==1", "member": "a/b"}, "give a url, or a package with the member"),
        ({"sha256": "abc"}, "sha256"),
    ],
)
def test_an_unsound_entry_is_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        DataFile(**{"path": "x", "benchmarks": ("a",), "licence": "MIT", "url": "https://x/y", **change})


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"is called 'mtbench'; benchmarks: mt_bench, "):
        select(["mtbench"])


def test_a_file_is_fetched_checked_and_put_in_its_place(server, tmp_path):
    file = entry(server.url, sha256=sha(CONTENT), size=len(CONTENT), exact=True)
    assert fetch(tmp_path, file).status == "ok"
    assert (tmp_path / "here/file.bin").read_bytes() == CONTENT
    assert (tmp_path / "here/file.bin").stat().st_mode & 0o777 == 0o644
    assert left(tmp_path) == ["fetched.json", "here/file.bin"]
    assert fetch(tmp_path, file).status == "ok"
    assert server.requests == 1


@pytest.mark.parametrize("oddity", [("cut", 100_000), 429, 503])
def test_a_lost_connection_and_a_busy_server_are_tried_again(server, tmp_path, oddity):
    server.plan = [oddity] * (ATTEMPTS - 1)
    assert fetch(tmp_path, entry(server.url)).status == "pinned"
    assert server.requests == ATTEMPTS
    assert (tmp_path / "here/file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("oddity", "reason"),
    [(503, "the server answered 503 Service Unavailable, 4 times"), (("cut", 7), r"no whole answer \(.*\), 4 times")],
)
def test_a_download_that_never_succeeds_is_said_and_leaves_nothing(server, tmp_path, oddity, reason):
    server.plan = [oddity] * ATTEMPTS
    with pytest.raises(DownloadError, match=f"{server.url}: {reason}"):
        fetch(tmp_path, entry(server.url))
    assert (left(tmp_path), server.requests) == ([], ATTEMPTS)
    assert list((tmp_path / "here").iterdir()) == []


def test_an_address_that_is_gone_is_not_tried_again(server, tmp_path):
    server.plan = [404]
    with pytest.raises(DownloadError, match=r"404 Not Found; the address may have changed: get the file by hand"):
        fetch(tmp_path, entry(server.url))
    assert (left(tmp_path), server.requests) == ([], 1)


def test_a_wrong_content_is_refused_and_nothing_is_kept(server, tmp_path):
    with pytest.raises(DownloadError, match=rf"sha256 {sha(CONTENT)}, expected {'0' * 64}; nothing was kept"):
        fetch(tmp_path, entry(server.url, sha256="0" * 64, size=1, exact=True))
    assert (left(tmp_path), server.requests) == ([], 1)


def test_an_interrupted_download_leaves_nothing(server, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    server.plan = [("cut", 100_000)]
    monkeypatch.setattr("time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path, entry(server.url))
    assert list((tmp_path / "here").iterdir()) == []


def test_an_unknown_content_is_pinned_by_the_first_fetch(server, tmp_path):
    file = entry(server.url)
    assert fetch(tmp_path, file).detail.startswith("as fetched on 20")
    row = json.loads((tmp_path / "fetched.json").read_text())["here/file.bin"]
    assert (row["sha256"], row["size"], row["url"]) == (sha(CONTENT), len(CONTENT), server.url)
    (tmp_path / "here/file.bin").write_bytes(b"damaged")
    assert state(tmp_path, file).status == "differs"
    with pytest.raises(DownloadError, match="remove it and fetch it again"):
        fetch(tmp_path, file)
    (tmp_path / "here/file.bin").unlink()
    assert fetch(tmp_path, file).status == "pinned"


def test_the_states_of_a_file(tmp_path):
    path = tmp_path / "here/file.bin"
    known, inexact = entry("https://x/y", sha256=sha(b"a"), size=1, exact=True), entry("https://x/y", sha256=sha(b"a"))
    assert state(tmp_path, known).status == "missing"
    path.parent.mkdir()
    path.write_bytes(b"a")
    assert [state(tmp_path, f).status for f in (known, inexact)] == ["ok", "ok"]
    path.write_bytes(b"b")
    assert [state(tmp_path, f).status for f in (known, inexact)] == ["differs", "unknown"]
    assert state(tmp_path, entry("https://x/y")).detail.startswith("its sha256 is not known")


def test_a_damaged_record_of_fetched_files_is_named(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/file.bin").write_bytes(b"b")
    for text in ("[1]", "{", '{"here/file.bin": 3}'):
        (tmp_path / "fetched.json").write_text(text)
        with pytest.raises(ValueError, match=r"fetched\.json: .*; remove it"):
            state(tmp_path, entry("https://x/y"))


def test_a_full_disk_is_said_and_the_file_does_not_appear(server, tmp_path, full_disk):
    with full_disk(100_000), pytest.raises(DownloadError, match=r"cannot write .*file\.bin: File too large"):
        fetch(tmp_path, entry(server.url))
    assert left(tmp_path) == []


def test_a_place_that_cannot_be_written_is_said(server, tmp_path):
    (tmp_path / "here").write_text("a file where a folder is needed")
    with pytest.raises(DownloadError, match=r"cannot write .*here"):
        fetch(tmp_path, entry(server.url))


def test_nobody_home_is_named(server, tmp_path):
    for url, reason in (
        ("http://127.0.0.1:9/x", "Connection refused"),
        ("http://nowhere.invalid/x", "nowhere.invalid"),
    ):
        with pytest.raises(
            DownloadError, match=rf"{url}: no whole answer \(.*{reason}.*\), 4 times; is there a network"
        ):
            fetch(tmp_path, entry(url))


def tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_an_archive_becomes_a_folder_without_what_is_not_needed(server, tmp_path):
    server.content = tar({"data/dev/a.csv": b"1", "data/test/b.csv": b"2", "data/auxiliary_train/c.csv": b"3"})
    found = fetch(tmp_path, entry(server.url, unpack="tar"))
    assert left(tmp_path / "here/file.bin") == ["dev/a.csv", "test/b.csv"]
    assert found.status == "pinned"
    path, renamed = tmp_path / "here/file.bin/dev/a.csv", tmp_path / "here/file.bin/dev/b.csv"
    path.rename(renamed)
    assert state(tmp_path, found.file).status == "differs"
    renamed.rename(path)
    assert state(tmp_path, found.file).status == "pinned"
    path.write_bytes(b"9")
    assert state(tmp_path, found.file).status == "differs"


@pytest.mark.parametrize("content", [b"no archive", tar({"data/../../evil": b"1"}), tar({"top.txt": b"1"})])
def test_a_bad_archive_is_refused_and_leaves_nothing(server, tmp_path, content):
    server.content = content
    folder = tmp_path / "data"
    with pytest.raises(DownloadError, match=f"{server.url}: "):
        fetch(folder, entry(server.url, unpack="tar"))
    assert left(tmp_path) == []
    assert list((folder / "here").iterdir()) == []


def test_transcripts_become_triples(server, tmp_path):
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    pairs = [
        (f"{start} yes", f"{start} no"),
        (f"{start} same", f"{start} same"),
        (f"{start} x", f"{start} "),
        ("?", "!"),
    ]
    lines = [json.dumps({"chosen": c, "rejected": r}) + "\n" for c, r in pairs]
    server.content = gzip.compress("".join(lines).encode())
    fetch(tmp_path, entry(server.url, unpack="hh_triples"))
    rows = [json.loads(line) for line in (tmp_path / "here/file.bin").read_text().splitlines()]
    assert rows == [{"prompt": start.lstrip(), "chosen": "yes", "rejected": "no", "source": "hh_harmless_test"}]


def test_what_is_no_transcript_is_refused(server, tmp_path):
    for content in (b"plain", gzip.compress(b"{}\n"), gzip.compress(b"{\n"), gzip.compress(b"[]\n"), CONTENT[:40]):
        server.content = content
        with pytest.raises(DownloadError, match="what was downloaded is no hh_triples input"):
            fetch(tmp_path, entry(server.url, unpack="hh_triples"))
    assert left(tmp_path) == []


def test_a_sample_is_spread_over_the_file(server, tmp_path):
    server.content = "".join(f"{i}\n" for i in range(10_042)).encode()
    fetch(tmp_path, entry(server.url, unpack="sample_1000"))
    lines = (tmp_path / "here/file.bin").read_text().split()
    assert (len(lines), lines[0], lines[1], lines[-1]) == (1000, "0", "10", "10031")
    server.content = b"1\n2\n"
    with pytest.raises(DownloadError, match="1000 lines are wanted, the download has 2"):
        fetch(tmp_path, DataFile(**{**entry(server.url, unpack="sample_1000").model_dump(), "path": "other"}))


def test_the_data_folder_is_the_environments_or_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert data_folder() == tmp_path
    with pytest.raises(ValueError, match=r"a\.json is missing; get it with `dspa-bench data fetch alpaca_eval`"):
        data_file("a.json", "alpaca_eval")
    (tmp_path / "a.json").write_text("")
    assert data_file("a.json", "alpaca_eval") == tmp_path / "a.json"
    monkeypatch.delenv(DATA_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert data_folder() == Path("/somewhere/dspa-bench")


def test_what_a_benchmark_lacks_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.data.external.external_files", lambda: (entry("https://x/y"),))
    assert missing(tmp_path) == {"mt_bench": ["here/file.bin"]}
    (tmp_path / "here").mkdir()
    (tmp_path / "here/file.bin").write_text("")
    assert missing(tmp_path) == {}
