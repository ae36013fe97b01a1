"""JSON files of a run folder and their checksums."""

import os

import pytest

from jaxseq.training import CheckpointWarning, RunFiles, RunFolderError, read_json, run_files

DEEP = b"[" * 100_000


def refused(call, *arguments):
    with pytest.raises(RunFolderError) as error:
        call(*arguments)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


def test_what_is_written_is_read_and_anything_else_is_refused(tmp_path):
    files = RunFiles(tmp_path)
    assert files.read("a.json") is None
    files.write("a.json", {"rate": 0.1, "name": "\udce4.txt"})
    assert files.read("a.json") == {"rate": 0.1, "name": "\udce4.txt"}
    (tmp_path / "a.json").write_text('{"rate": 0.2}')
    assert "a.json is not what the run wrote: its SHA-256" in refused(files.read, "a.json")
    assert files.read("a.json", verify=False) == {"rate": 0.2}
    with pytest.warns(CheckpointWarning, match="not what the run wrote"):
        assert RunFiles(tmp_path, accept_changes=True).read("a.json") == {"rate": 0.2}
    files.write("a.json", 3)
    assert files.read("a.json") == 3
    (tmp_path / "old.json").write_text("4")  # of a version without checksums
    assert files.read("old.json") == 4


@pytest.mark.parametrize("moment", [1, 2])
def test_a_writer_killed_at_any_moment_leaves_a_file_that_verifies(tmp_path, monkeypatch, moment):
    files, writes = RunFiles(tmp_path), []
    files.write("a.json", "before")

    def killed(write):
        def called(*arguments):
            writes.append(arguments)
            if len(writes) == moment:
                raise KeyboardInterrupt
            write(*arguments)

        return called

    with monkeypatch.context() as patch:
        patch.setattr(run_files, "write_json", killed(run_files.write_json))
        patch.setattr(run_files, "write_atomic", killed(run_files.write_atomic))
        with pytest.raises(KeyboardInterrupt):
            files.write("a.json", "after")
    assert files.read("a.json") == "before"
    for value in ("after", "later", "later"):
        files.write("a.json", value)
        assert files.read("a.json") == value


def test_a_file_that_is_replaced_while_it_is_read_verifies(tmp_path, monkeypatch):
    files, writer = RunFiles(tmp_path), RunFiles(tmp_path)
    files.write("a.json", 0)
    read, replaced = files._checksums, []

    def replaced_after():
        known = read()
        if not replaced:
            replaced.append(True)
            for value in (1, 2, 3):
                writer.write("a.json", value)
        return known

    monkeypatch.setattr(files, "_checksums", replaced_after)
    assert files.read("a.json") == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (DEEP, "nested too deeply"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' is given twice"),
    ],
)
def test_a_file_that_is_no_json_is_named(tmp_path, content, said):
    for name in ("a.json", run_files.CHECKSUMS):
        (tmp_path / name).write_bytes(content)
        assert said in (told := refused(RunFiles(tmp_path).read, "a.json")) and name in told
        assert name in refused(read_json, tmp_path / name)
        (tmp_path / name).unlink()


@pytest.mark.parametrize("value", ["[]", '{"a.json": 3}', "null"])
def test_damaged_checksums_are_named(tmp_path, value):
    (tmp_path / "a.json").write_text("1")
    (tmp_path / run_files.CHECKSUMS).write_text(value)
    assert "checksums.json is damaged" in refused(RunFiles(tmp_path).read, "a.json")


def test_no_pipe_and_no_device_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    for name, kind in (("pipe", "a pipe, not a reg"), ("zero", "a device, not a reg"), ("folder", "a folder, not a")):
        assert f"{name}.json: {kind}" in refused(read_json, tmp_path / f"{name}.json")
