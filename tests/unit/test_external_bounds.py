"""What a fetch may bring onto the disk: no more than was expected, and nothing outside of its folder."""

import gzip
import io
import tarfile

import pytest

from harness.data import external
from harness.data.external import DownloadError, fetch
from tests.unit.test_external import entry, left, server, sha  # noqa: F401


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as made:
        good = tarfile.TarInfo("data/good.csv")
        made.addfile(good)
        for info, content in members:
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def named(name: str, **options) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in options.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "member",
    [
        named("data/../../evil"),
        named("data//etc/evil"),
        named("/data/../evil"),
        named("data/a/../../../evil"),
        named("data/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        named("data/hard", type=tarfile.LNKTYPE, linkname="../../evil"),
        named("data/device", type=tarfile.CHRTYPE),
        named("data/pipe", type=tarfile.FIFOTYPE),
        named("x/evil", pax_headers={"path": "data/../../../evil"}),
        named("data/setuid", mode=0o6777),
    ],
    ids=lambda info: info.name,
)
def test_an_archive_writes_into_its_folder_only_and_nothing_but_files(server, tmp_path, member):  # noqa: F811
    server.content = archive((member, b"" if member.type != tarfile.REGTYPE else b"evil"))
    folder = tmp_path / "data"
    try:
        fetch(folder, entry(server.url, unpack="tar"))
    except DownloadError:
        assert left(tmp_path) == []
    found = [path for path in tmp_path.rglob("*") if path.is_symlink() or not (path.is_file() or path.is_dir())]
    assert found == []
    inside = folder / "here" / "file.bin"
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and inside not in path.parents]
    assert [path.name for path in outside] in ([], ["fetched.json"])
    assert all(path.stat().st_mode & 0o7000 == 0 for path in inside.rglob("*"))


def test_no_more_is_read_than_was_expected(server, tmp_path):  # noqa: F811
    content = b"x" * 2_000_000
    server.content = content
    file = entry(server.url, sha256=sha(content[:70_000]), size=70_000, exact=True)
    with pytest.raises(DownloadError, match="serves more than the 1,118,576 bytes expected; nothing was kept"):
        fetch(tmp_path, file)
    assert left(tmp_path) == [] and server.requests == 1


def test_what_unpacks_to_more_than_a_disk_should_take_is_refused(server, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(external, "_MOST_BYTES", 300_000)
    server.content = archive((named("data/bomb"), b"0" * 400_000))
    with pytest.raises(DownloadError, match="holds more than 300,000 bytes"):
        fetch(tmp_path, entry(server.url, unpack="tar"))
    monkeypatch.setattr(external, "_LONGEST_LINE", 1000)
    server.content = gzip.compress(b'{"chosen": "' + b"0" * 5000)
    with pytest.raises(DownloadError, match="a line is longer than 1,000 characters"):
        fetch(tmp_path, entry(server.url, unpack="hh_triples"))
    assert left(tmp_path) == []
