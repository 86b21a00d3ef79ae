"""scripts/train.py as a user runs it: in one process, under torchrun, killed and started again."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sb3_minitrpo import MiniTRPO
from sb3_minitrpo.checkpoint import checkpoint_steps

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "scripts" / "train.py")
TASK = "tests.scripts.tasks:Counted-v0"


def surroundings(folder: Path, **variables: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "COUNTS": str(folder),
        **variables,
    }


def start(folder: Path, *words: str, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=surroundings(folder, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def torchrun(*words: str, port: int | None = None) -> list[str]:
    where = ["--master-addr", "127.0.0.1", "--master-port", str(port or free_port())]
    return ["-m", "torch.distributed.run", "--nproc-per-node", "2", *where, *words]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def output_of(process: subprocess.Popen, timeout: float = 90.0) -> str:
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends what it has started
        raise
    finally:
        try:
            process.wait(40.0)
        except subprocess.TimeoutExpired:
            process.kill()


def succeed(folder: Path, *words: str, **variables: str) -> str:
    process = start(folder, *words, **variables)
    output = output_of(process)
    assert process.returncode == 0, output
    return output


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


def steps_taken(path: Path) -> int:
    return int(np.fromfile(path, dtype=np.int64)[0]) if path.exists() and path.stat().st_size == 8 else 0


def wait_for_steps(path: Path, steps: int) -> None:
    deadline = time.monotonic() + 60.0
    while steps_taken(path) < steps:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_ends_one_process_with_a_checkpoint_that_goes_on(tmp_path):
    process = start(tmp_path, TRAIN, "--env", TASK, "--steps", "100000000")
    wait_for_steps(tmp_path / "0_0", 4000)
    process.send_signal(signal.SIGINT)
    output = output_of(process)
    assert process.returncode == 0, output
    run = only_run(tmp_path)
    steps = checkpoint_steps(run / "checkpoint.zip")
    assert steps > 0
    assert f"stopped after {steps} steps: --resume runs/{run.name} goes on" in output
    assert MiniTRPO.load(run / "model.zip", device="cpu").num_timesteps == steps

    again = succeed(tmp_path, TRAIN, "--env", TASK, "--steps", str(steps + 3000), "--resume", str(run))
    assert f"going on after {steps} steps" in again
    assert checkpoint_steps(run / "checkpoint.zip") >= steps + 3000
    assert {path.name for path in (run / "episodes").iterdir()} == {"0", str(steps)}
    assert (run / "learning_curve.png").stat().st_size > 0


def test_a_killed_rank_costs_no_more_than_the_interval_and_training_reaches_its_total(tmp_path):
    words = [TRAIN, "--env", TASK, "--steps", "16000", "--checkpoint-every", "8192", "--normalize"]
    output = succeed(tmp_path, *torchrun("--max-restarts", "1", *words), FAILURE="killed")
    steps_when_killed = sum(steps_taken(tmp_path / f"0_{rank}") for rank in range(2))
    went_on_after = int(re.search(r"going on after (\d+) steps", output)[1])
    assert steps_taken(tmp_path / "0_1") == 5500
    assert went_on_after == 8192
    assert 0 < steps_when_killed - went_on_after <= 8192
    assert "return after 16384 steps" in output
    run = only_run(tmp_path)
    assert MiniTRPO.load(run / "model.zip", device="cpu").num_timesteps == 16384
    assert sorted(path.name for path in (run / "episodes").iterdir()) == ["0", "8192"]
    assert len(list((run / "episodes" / "8192").iterdir())) == 2
    assert "rank 0 of 2 does not reach the others" in output


def test_an_error_on_one_rank_ends_all_and_says_whose_it_was(tmp_path):
    process = start(tmp_path, *torchrun(TRAIN, "--env", TASK, "--steps", "16000"), FAILURE="raises")
    output = output_of(process)
    assert process.returncode == 1
    assert "RankError: rank 1 of 2 failed: OSError: the simulator is gone" in output
    assert "OSError: the simulator is gone" in output.split("Root Cause")[1]


def test_sigterm_to_torchrun_ends_all_ranks_with_a_checkpoint(tmp_path):
    process = start(tmp_path, *torchrun(TRAIN, "--env", TASK, "--steps", "100000000"))
    wait_for_steps(tmp_path / "0_1", 3000)
    process.send_signal(signal.SIGTERM)
    output = output_of(process)
    steps = checkpoint_steps(only_run(tmp_path) / "checkpoint.zip")
    assert f"stopped after {steps} steps" in output


def test_two_nodes_train_one_model(tmp_path):
    """Two agents on this machine, each with one rank."""
    port = free_port()
    where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
    agent = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *where]
    nodes = [start(tmp_path, *agent, TRAIN, "--env", TASK, "--steps", "8000") for _ in range(2)]
    outputs = [output_of(node) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert sum("return after 8192 steps" in output for output in outputs) == 1
    run = only_run(tmp_path)
    assert MiniTRPO.load(run / "model.zip", device="cpu").num_timesteps == 8192
    assert sorted(path.name for path in (run / "episodes" / "0").iterdir()) == ["0.monitor.csv", "1.monitor.csv"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint-every", "0"], "--checkpoint-every 0: pass a number of at least 1"),
        (["--timeout", "0"], "--timeout 0.0: pass a number of seconds above 0"),
        (["--resume", "nowhere"], "--resume nowhere: there is no checkpoint.zip"),
        (["--env", "no.such.module:Task-v0"], "--env no.such.module:Task-v0: "),
    ],
)
def test_wrong_use_is_refused_with_the_remedy(tmp_path, words, message):
    process = start(tmp_path, TRAIN, *words)
    assert message in output_of(process)
    assert process.returncode == 2
