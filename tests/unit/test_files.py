"""Folders that are there complete or not at all, and what identifies a file or folder by its content."""

import pytest

from harness.files import atomic_folder, content_hash, folder_hash


def test_a_folder_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "deep" / "folder"
    with atomic_folder(target) as folder:
        (folder / "a.txt").write_text("a")
        assert not target.exists()
    assert (target / "a.txt").read_text() == "a"
    assert [path.name for path in target.parent.iterdir()] == ["folder"]


def test_a_failure_leaves_nothing_and_what_a_killed_process_left_is_removed(tmp_path):
    target = tmp_path / "folder"
    (tmp_path / "folder.partial").mkdir()
    (tmp_path / "folder.partial" / "half.txt").write_text("half")

    def fail_halfway():
        with atomic_folder(target) as folder:
            assert not list(folder.iterdir())
            (folder / "a.txt").write_text("a")
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_refused_or_replaced_as_a_whole(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with pytest.raises(ValueError, match="exists already and is never overwritten"), atomic_folder(target):
        pass
    with pytest.raises(KeyError), atomic_folder(target, replace=True):
        raise KeyError
    assert (target / "old.txt").is_file()
    with atomic_folder(target, replace=True) as folder:
        (folder / "new.txt").write_text("new")
    assert [path.name for path in target.iterdir()] == ["new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_models_identity_knows_its_own_files_and_a_contents_hash_all_below(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    identity = folder_hash(tmp_path)
    assert identity == content_hash(tmp_path) == "a7abc4cb50b5bd9887797fc20e7a6dc90eb166975155d07fa0960e500fe0978d"
    (tmp_path / ".cache").write_text("c")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_text("c")
    assert folder_hash(tmp_path) == identity != content_hash(tmp_path)
    (tmp_path / "a.txt").write_text("A")
    assert folder_hash(tmp_path) != identity
