"""Records as runs leave them, with curves that one can calculate with."""

from comparison.curves import POINTS
from comparison.records import Record, RunSpec


def example_record(
    label, task="CartPole-v1", seed=0, slope=1.0, start=0.0, pace=1.0, n_timesteps=100 * POINTS, commit="abc", waited=0.0
):
    """
    The return at point k = 1 … POINTS is ``start + slope · k``, the time ``pace · k`` seconds.

    :param waited: the part of the training in which the process waited for a processor
    """
    points = range(1, POINTS + 1)
    learn = pace * POINTS
    return Record(
        RunSpec(label, "module:Class", task, seed, 1, {"n_timesteps": n_timesteps}, {}),
        returns=[start + slope * k for k in points],
        seconds={"wall": [pace * k for k in points], "cpu": [(1 - waited) * pace * k for k in points]},
        evaluation=[start + slope * POINTS],
        times={"setup": 1.0, "learn": learn, "collection": 0.7 * learn, "learn_cpu": (1 - waited) * learn, "evaluation": 0.1},
        provenance={
            "command": "python scripts/compare.py",
            "commit": commit,
            "versions": {"python": "3.10"},
            "machine": {"cpu": "a processor", "cores": 2, "torch_threads": 1, "system": "Linux"},
            "finished": "2025-01-01 00:00:00",
        },
    )
