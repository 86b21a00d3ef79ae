"""Records on disk."""

import dataclasses
import os

import pytest

from comparison.records import check_comparable, read_record, record_path, write_atomically, write_record
from tests.scripts.comparison.examples import example_record


def test_a_record_comes_back_as_it_was(tmp_path):
    record = example_record("minitrpo", seed=3)
    path = record_path(tmp_path, record.spec)
    write_record(path, record)
    assert read_record(path) == record
    assert os.listdir(path.parent) == [path.name], "nothing else is left behind"


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"spec": {}}'])
def test_what_is_no_record_is_a_clear_error(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json is not the record of a run .*delete it"):
        read_record(path)


def test_two_runs_that_differ_in_settings_do_not_belong_in_one_table():
    one = example_record("minitrpo")
    other = dataclasses.replace(one, spec=dataclasses.replace(one.spec, arguments={"gamma": 0.5}))
    with pytest.raises(ValueError, match="two different runs of minitrpo on CartPole-v1, seed 0"):
        check_comparable([one, other])


def test_two_trainings_of_different_length_do_not_belong_in_one_table():
    with pytest.raises(ValueError, match="5000 and 6000 steps"):
        check_comparable([example_record("minitrpo"), example_record("trpo", n_timesteps=6000)])
