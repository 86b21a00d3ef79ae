"""What is measured: the sections of the benchmark as lists of jobs."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

BASELINE, OURS = "sb3-contrib", "MiniTRPO"
CONTENDERS = [BASELINE, OURS]  # of learn(), in turn; more of them are shown next to these two

TASKS = ["CartPole-v1", "Pendulum-v1", "Hopper-v5", "HalfCheetah-v5"]  # at the defaults of both
ZOO_TASK = "HalfCheetah-v5, the RL Zoo's settings"
IMAGE_TASK = "CnnPolicy, 84×84 images"
NO_FAST_PATH = [
    IMAGE_TASK,
    "MultiInputPolicy, Pendulum-v1",
    "gSDE, Pendulum-v1",
    "SubprocVecEnv, HalfCheetah-v5",
    "custom policy, HalfCheetah-v5",
]
THREADS = {"1 thread": 1, "2 threads": 2, "default": None}

BATCHES = [2048, 16384, 65536]
NETWORKS = [[64, 64], [256, 256]]
IMAGE_ACTIONS = 6
IMAGES_ON_GPU = [2048, 16384]

SCALING_TASK = "HumanoidStandup-v5"  # the environment takes most of the time
RANKS = [1, 2]
MODELLED_RANKS = [8, 64, 512]


class Effort(NamedTuple):
    """
    How much is measured.

    :param repetitions: of each iteration, after one that is not counted
    :param updates: repetitions of each update
    :param n_steps: the most steps of an iteration; ``None`` leaves each training its own
    :param max_batch: larger updates are left out
    :param images: frames of an update of CnnPolicy
    :param actions: dimensions of the actions of updates
    :param thread_tasks: trainings that are timed with several numbers of threads
    :param scaling_turns: of one process and of several
    :param scaling_iterations: of each turn, after one that is not counted
    """

    repetitions: int = 15
    updates: int = 5
    n_steps: int | None = None
    max_batch: int = max(BATCHES)
    images: int = 1024
    actions: Sequence[int] = (1, 6, 17)
    thread_tasks: Sequence[str] = ("CartPole-v1", "HalfCheetah-v5", "HalfCheetah-v5, networks of 256×256")
    scaling_turns: int = 7
    scaling_iterations: int = 6


QUICK = Effort(
    repetitions=2,
    updates=1,
    n_steps=512,
    max_batch=min(BATCHES),
    images=32,
    actions=[6],
    thread_tasks=["HalfCheetah-v5"],
    scaling_turns=1,
    scaling_iterations=2,
)


class Job(NamedTuple):
    """
    One measurement, made in a process of its own.

    :param name: unique in its section
    :param function: as ``module:function``; it gives a dictionary that JSON can hold
    :param arguments: of the function
    :param threads: of torch and of the linear algebra below NumPy; ``None``: as many as these take by themselves
    :param seconds: a guess of how long it takes, for the estimate of the time left
    """

    name: str
    function: str
    arguments: dict[str, Any]
    threads: int | None
    seconds: float


def learn_jobs(effort: Effort) -> list[Job]:
    return [learning(name, name, CONTENDERS, 1, effort) for name in [*TASKS, ZOO_TASK, *NO_FAST_PATH]]


def thread_jobs(effort: Effort) -> list[Job]:
    return [
        learning(f"{case}; {choice}", case, [OURS], threads, effort)
        for case in effort.thread_tasks
        for choice, threads in THREADS.items()
    ]


def learning(name: str, case: str, contenders: list[str], threads: int | None, effort: Effort) -> Job:
    arguments = {"case": case, "contenders": contenders, "repetitions": effort.repetitions, "n_steps": effort.n_steps}
    turn = 1.5 if case == IMAGE_TASK else 0.6 * (effort.n_steps or 2048) / 2048
    seconds = 5.0 + (1 + effort.repetitions) * len(contenders) * turn
    return Job(name, "benchmarking.learning:measure", arguments, threads, seconds)


def growth_jobs(effort: Effort) -> list[Job]:
    sizes = [(net_arch, n, samples) for net_arch in NETWORKS for n in effort.actions for samples in BATCHES]
    return updates([*sizes, (None, IMAGE_ACTIONS, effort.images)], effort, "cpu")


def gpu_jobs(effort: Effort) -> list[Job]:
    return updates([(None, IMAGE_ACTIONS, samples) for samples in IMAGES_ON_GPU], effort, "cuda")


def updates(sizes: Sequence[tuple[list[int] | None, int, int]], effort: Effort, device: str) -> list[Job]:
    return [
        update(contender, net_arch, actions, samples, effort.updates, device)
        for net_arch, actions, samples in sizes
        if samples <= effort.max_batch
        for contender in (BASELINE, OURS)
    ]


def update(contender: str, net_arch: list[int] | None, actions: int, samples: int, repetitions: int, device: str) -> Job:
    name = f"{network_name(net_arch)}, {actions} actions, {samples} samples, {contender}"
    arguments = {
        "contender": contender,
        "net_arch": net_arch,
        "actions": actions,
        "samples": samples,
        "repetitions": repetitions,
        "device": device,
    }
    sample = 0.03 if net_arch is None else 6e-5 * (net_arch[0] / 64) ** 1.4  # seconds of sb3-contrib, on a processor
    once = samples * sample * (1.0 if contender == BASELINE else 0.3)
    seconds = 5.0 + 2 * min(once * (1 + repetitions), max(once, 5.0))  # of actor and train()
    return Job(name, "benchmarking.growth:measure", arguments, 1, seconds)


def scaling_jobs(effort: Effort) -> list[Job]:
    n_steps = effort.n_steps or 2048
    arguments = {"env": SCALING_TASK, "n_steps": n_steps, "iterations": effort.scaling_iterations}
    seconds = 8.0 + (1 + effort.scaling_iterations) * n_steps / 2000
    return [
        Job(f"turn {turn}, {ranks} ranks", "benchmarking.scaling:measure", {"ranks": ranks} | arguments, 1, seconds)
        for turn in range(1, effort.scaling_turns + 1)
        for ranks in RANKS
    ]


def network_name(net_arch: Sequence[int] | None) -> str:
    return "NatureCNN" if net_arch is None else "×".join(map(str, net_arch))


SECTIONS = {"learn": learn_jobs, "growth": growth_jobs, "threads": thread_jobs, "scaling": scaling_jobs}
GPU_SECTION = "gpu"


def chosen(jobs: Sequence[Job], patterns: Sequence[str] | None) -> list[Job]:
    """Those whose name fits one of the patterns of a shell; without patterns, all."""
    return [job for job in jobs if patterns is None or any(fnmatchcase(job.name, pattern) for pattern in patterns)]
