"""Files that are replaced at once, and lines that survive a kill."""
import os
import signal

import pytest
import safetensors.torch
import torch

from standin_core.files import append_line, drop_damaged_lines, drop_unfinished, read_lines, replacing, write_lines


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    file = tmp_path / "a.json"
    for text in ("first", "second"):
        with replacing(file) as part:
            part.write_text(text)
            assert not file.exists() or file.read_text() == "first"
        assert file.read_text() == text
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("begun", [True, False])
def test_an_error_leaves_the_file_as_it_was(tmp_path, begun):
    file = tmp_path / "a.json"
    file.write_text("before")
    with pytest.raises(OSError, match="no space left"), replacing(file) as part:
        if begun:
            part.write_text("half")
        raise OSError("no space left")
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


def killed_while_writing(file):
    """In a process of its own, in the middle of a file of weights."""
    import resource

    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        with replacing(file) as part:
            safetensors.torch.save_file({"a": torch.zeros(100_000)}, part)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGXFSZ


@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork, and no limit on the size of files")
def test_a_kill_leaves_the_file_as_it_was_and_nothing_for_long(tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_text("before")
    for _ in range(2):
        killed_while_writing(file)
        assert file.read_text() == "before"
        left = tmp_path / f"{file.name}.part"
        assert set(tmp_path.iterdir()) == {file, left} and len(list(left.iterdir())) == 1
    with replacing(file) as part:
        part.write_text("after")
    assert file.read_text() == "after" and list(tmp_path.iterdir()) == [file]
    (tmp_path / "inner").mkdir()
    killed_while_writing(tmp_path / "inner" / "b.safetensors")
    drop_unfinished(tmp_path)
    assert sorted(tmp_path.rglob("*")) == [file, tmp_path / "inner"]


def test_files_of_one_stem_do_not_meet(tmp_path):
    with replacing(tmp_path / "a.json") as first, replacing(tmp_path / "a.png") as second:
        first.write_text("json")
        second.write_text("png")
    assert (tmp_path / "a.json").read_text() == "json" and (tmp_path / "a.png").read_text() == "png"


def test_lines_hold_any_line_break(tmp_path):
    append_line(tmp_path / "r.jsonl", {"caption": "one\u2028two\u0085three\nfour"})
    assert read_lines(tmp_path / "r.jsonl") == [{"caption": "one\u2028two\u0085three\nfour"}]


def test_an_unfinished_line_is_left_out(tmp_path):
    file = tmp_path / "r.jsonl"
    append_line(file, {"a": 1})
    with file.open("ab") as out:
        out.write(b'{"a": 2')
    append_line(file, {"a": 3})
    assert read_lines(file) == [{"a": 1}, {"a": 3}]


def test_lines_are_replaced(tmp_path):
    file = tmp_path / "r.jsonl"
    assert read_lines(file) == []
    append_line(file, {"a": 1})
    write_lines(file, [{"b": 2}, {"b": 3}])
    assert read_lines(file) == [{"b": 2}, {"b": 3}]


def test_damaged_lines_are_taken_out_and_counted(tmp_path):
    """Cut in a character, run into the next line, no object, and without what a line must have."""
    file = tmp_path / "r.jsonl"
    append_line(file, {"name": "名前", "n": 1})
    whole = file.read_bytes()
    for damaged in (whole[:11], b'{"name": "a"', b"[1, 2]", b'{"n": 2}'):
        with file.open("ab") as out:
            out.write(damaged)
        append_line(file, {"name": "next", "n": 3})
    assert drop_damaged_lines(file, "name", "n") == 4
    assert read_lines(file) == [{"name": "名前", "n": 1}, *[{"name": "next", "n": 3}] * 4]
    kept = file.read_bytes()
    assert drop_damaged_lines(file, "name", "n") == 0 and file.read_bytes() == kept
    assert drop_damaged_lines(tmp_path / "none.jsonl") == 0
