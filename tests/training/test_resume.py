"""What a killed run goes on from: states, tables, and stops."""

import os
import signal
import threading

import pytest
import torch

from tvrkit.training import resume
from tvrkit.training.resume import append, stop_requests, write_table


def test_the_last_two_states_are_kept_and_the_newest_is_read(tmp_path):
    assert resume.newest(tmp_path) is None
    for number in range(12):
        resume.save(tmp_path, {"step": number, "weights": torch.full((3,), number)})
    assert [path.name[:13] for path in resume.paths(tmp_path)] == ["resume-000010", "resume-000011"]
    assert resume.newest(tmp_path)["step"] == 11
    assert sorted(tmp_path.iterdir()) == resume.paths(tmp_path)
    assert all(path.stat().st_mode & 0o044 for path in tmp_path.iterdir())  # others may read them


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_a_damaged_state_is_not_used_and_does_not_outlive_a_good_one(tmp_path, damage, capsys):
    for number in range(2):
        resume.save(tmp_path, {"step": number})
    newer = resume.paths(tmp_path)[1]
    whole = bytearray(newer.read_bytes())
    whole[len(whole) // 2] ^= 1
    newer.write_bytes({"cut": whole[:-1], "empty": b"", "flipped": whole}[damage])
    assert resume.newest(tmp_path)["step"] == 0
    assert f"{newer.name} is damaged: the state before it is used" in capsys.readouterr().err
    resume.save(tmp_path, {"step": 2})
    assert [resume.newest(tmp_path)["step"], len(resume.paths(tmp_path))] == [2, 2]


def test_a_full_disk_is_named_and_leaves_the_state_before(tmp_path):
    full = "/dev/full"
    if not os.path.exists(full):
        pytest.skip("this system has no /dev/full")
    resume.save(tmp_path, {"step": 0})
    os.symlink(full, tmp_path / f".{os.getpid()}.{_next_name(tmp_path, {'step': 1})}")
    with pytest.raises(OSError, match="No space left") as raised:
        resume.save(tmp_path, {"step": 1})
    assert str(tmp_path) in str(raised.value)
    assert "cannot save 0 MB as resume-000001-" in str(raised.value)
    assert "make room and run the same command again" in str(raised.value)
    assert resume.newest(tmp_path)["step"] == 0
    assert [path.name for path in tmp_path.iterdir()] == [resume.paths(tmp_path)[0].name]


def _next_name(folder, state):
    """Where `save` would write, found by saving it elsewhere."""
    elsewhere = folder / "elsewhere"
    resume.save(elsewhere, state)
    (path,) = resume.paths(elsewhere)
    path.unlink()
    elsewhere.rmdir()
    return path.name.replace("resume-000000", "resume-000001")


def test_a_table_grows_by_rows_and_is_cut_back(tmp_path):
    path = tmp_path / "history.csv"
    append(path, [])
    assert not path.exists()
    rows = [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 1e-07}, {"step": 3, "loss": 2.0}]
    for row in rows:
        append(path, [row])
    assert path.read_text() == "step,loss\n1,0.1\n2,1e-07\n3,2.0\n"
    write_table(path, rows[:2])
    append(path, rows[2:])
    assert path.read_text() == "step,loss\n1,0.1\n2,1e-07\n3,2.0\n"
    write_table(path, [])
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_ends(number):
    before = signal.getsignal(number)
    with stop_requests() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_in_another_thread_signals_are_left_alone():
    seen = []

    def wait():
        with stop_requests() as asked:
            seen.append(asked())

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert seen == [False]
