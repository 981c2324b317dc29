"""How benchmarks measure: time of a device in turn, its name, and peaks of memory."""

import argparse
import statistics
import time
from pathlib import Path

import torch

CPU = torch.device("cpu")


def device(name):
    """The device of a name, as a type of argparse.

    :raises ArgumentTypeError: for one that is none, or that nothing here measures.
    """
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{name}: expected cpu, or cuda where there is a GPU")
    return found


def at_least(least):
    """A type of argparse: the whole numbers from `least` on."""

    def parse(text):
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number of at least {least}")
        return int(text)

    return parse


def some_of(known):
    """A type of argparse: names that are `known`, separated by commas."""

    def parse(text):
        names = [name.strip() for name in text.split(",")]
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r}: expected some of {', '.join(known)}")
        return names

    return parse


def described(device):
    """torch, device and threads, in words."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads"


def seconds(call, device=CPU):
    """What a call takes: processor time of all threads; on a GPU real time until its queue is empty."""
    if device.type == "cpu":
        began = time.process_time()
        call()
        return time.process_time() - began
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began


def in_turn(calls, rounds, device=CPU):
    """{name: [seconds of its call, one a round]}, every second round in the other order."""
    taken = {name: [] for name in calls}
    for i in range(rounds):
        for name in list(calls)[:: -1 if i % 2 else 1]:
            taken[name].append(seconds(calls[name], device))
    return taken


def ratio(base, own):
    """(median, smallest, largest) of what a base took over what something took, round by round."""
    ratios = [a / b for a, b in zip(base, own, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def high_water(device=CPU):
    """Peak memory in MB: resident memory of this process (Linux; that of getrusage begins at its parent's), on a GPU
    what torch took of it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
