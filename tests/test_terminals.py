"""Real processes at terminals that go away, at signals, under other locales, with what launchers left behind."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from open_sockets import sockets
from processes import HANGS, MPIRUN, Job, clean_env, needs_mpirun, slow, srun
from script_runs import FOLDER, NETWORK, PROCESS, draw_images

from guided_diffusion.checkpoints import manifest
from guided_diffusion.distributed import peers
from guided_diffusion.jobs import terminal


@pytest.fixture(autouse=True)
def hangups_arrive():
    """Also in jobs of a suite that was itself started under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_images(tmp_path_factory.mktemp("terminals") / "data")


def training(data, out, steps=6, *more):
    words = [sys.executable, FOLDER / "image_train.py", "--data_dir", data, "--out_dir", out, *NETWORK, *PROCESS]
    words += ["--batch_size", 4, "--iterations", steps, "--log_interval", 1, "--num_workers", 0, *more]
    return list(map(str, words))


def start(words, **options):
    env = clean_env(OMP_NUM_THREADS="1", **options.pop("env", {}))
    return subprocess.Popen(words, env=env, **{"stdin": subprocess.DEVNULL, **options})


# ---------------------------------------------------------------------------- a reader that goes away


@pytest.mark.parametrize("gone", ["both", *slow("stdout", "stderr")])
@pytest.mark.parametrize("when", ["later", *slow("at once")])
def test_a_reader_that_goes_away_ends_nothing(data, tmp_path, gone, when):
    read, write = os.pipe()
    streams = {"stdout": write if gone != "stderr" else subprocess.DEVNULL}
    streams["stderr"] = write if gone != "stdout" else subprocess.DEVNULL
    process = start(training(data, tmp_path / "out"), **streams)
    os.close(write)
    if when == "later":
        os.read(read, 10)
    os.close(read)
    assert process.wait(HANGS) == 0
    assert manifest.steps(tmp_path / "out") == [6]
    log = (tmp_path / "out" / "log.txt").read_text()
    assert log.count("grad_norm") == 6 and "saving" in log


@pytest.mark.parametrize("closed", [(0, 1, 2), *slow((1,), (2,), (1, 2))])
def test_streams_that_were_closed_before_it_began(data, tmp_path, closed):
    shell = " ".join(f"{n}>&-" if n else "0<&-" for n in closed)
    words = ["sh", "-c", f'exec "$@" {shell}', "sh", *training(data, tmp_path / "out", 2)]
    process = start(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert process.wait(HANGS) == 0
    assert manifest.steps(tmp_path / "out") == [2]
    for path in (tmp_path / "out").glob("*.json"):
        assert "logging to" not in path.read_text()  # nothing was printed into a file that took a closed one's place


def test_help_to_a_reader_that_has_seen_enough():
    words = f"{sys.executable} {FOLDER / 'image_train.py'} --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], env=clean_env(), capture_output=True, text=True, timeout=HANGS)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage")


def test_a_full_disk_behind_the_terminal_ends_nothing(monkeypatch):
    class Full:
        encoding = "utf-8"

        def write(self, text):
            raise OSError(28, "No space left on device")

        flush = write

        def fileno(self):
            raise OSError("no file")

    monkeypatch.setattr(sys, "stdout", full := Full())
    with terminal.lasting():
        print("words")
        print("and more", flush=True)
    assert sys.stdout is full


# --------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("name", ["SIGTERM", *slow("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")])
def test_signals_save_and_end(data, tmp_path, name):
    number = getattr(signal, name)
    with Job(training(data, tmp_path / "out", 10**6), tmp_path) as job:
        job.trains(2)
        os.kill(job.process.pid, number)
        assert job.ended() == 128 + number, job.said
        assert re.search(rf"stopped by {name}: saved at step \d+; --resume_checkpoint auto goes on", job.said)
    assert len(manifest.steps(tmp_path / "out")) == 1


def test_under_nohup_a_hangup_is_no_signal(data, tmp_path):
    with Job(["nohup", *training(data, tmp_path / "out", 10**6)], tmp_path) as job:
        job.trains(2)
        os.kill(job.process.pid, signal.SIGHUP)
        seen = job.said.count("grad_norm")
        job.trains(seen + 3)
        assert job.process.poll() is None
        os.kill(job.process.pid, signal.SIGTERM)
        assert job.ended() == 143


def test_a_terminal_that_is_closed_saves(data, tmp_path):
    leader, follower = pty.openpty()
    process = start(
        training(data, tmp_path / "out", 10**6), stdin=follower, stdout=follower, stderr=follower,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(follower)
    said = b""
    while said.count(b"grad_norm") < 2 and process.poll() is None:
        said += os.read(leader, 4096)
    os.close(leader)
    assert process.wait(HANGS) == 128 + signal.SIGHUP
    assert len(manifest.steps(tmp_path / "out")) == 1


def test_sampling_stops_at_a_hangup_and_goes_on(tmp_path):
    words = [sys.executable, FOLDER / "image_sample.py", "--model_path", "models/digits16.pt", "--num_samples", 64]
    words += ["--batch_size", 1, "--timestep_respacing", 4, "--out_dir", tmp_path / "out"]
    with Job(list(map(str, words)), tmp_path) as job:
        while job.process.poll() is None and len(list(tmp_path.glob("out/samples.chunks/*.chunk"))) < 2:
            time.sleep(0.01)
        os.kill(job.process.pid, signal.SIGHUP)
        assert job.ended() == 128 + signal.SIGHUP and "the same command continues" in job.said, job.said


# --------------------------------------------------------------------------------------------- locales


@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        *slow({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "POSIX"}),
    ],
)
@pytest.mark.parametrize("name", [b"bytes\xff".decode("utf-8", "surrogateescape"), *slow("schön-日本")])
def test_what_a_terminal_cannot_show_is_escaped(data, tmp_path, env, name):
    process = start(training(data, tmp_path / name, 2), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said, errors = process.communicate(timeout=HANGS)
    assert process.returncode == 0, errors
    assert manifest.steps(tmp_path / name) == [2] and b"grad_norm" in said
    done = subprocess.run(
        [sys.executable, FOLDER / "image_sample.py", "--model_path", tmp_path / name / "none.pt", "--out_dir",
         tmp_path / "out"],
        env=clean_env(**env), capture_output=True, timeout=HANGS,
    )  # fmt: skip
    assert done.returncode == 2 and b"does not exist" in done.stderr and b"Traceback" not in done.stderr


# ------------------------------------------------------------------------------- launchers, leftovers


LEFT_OVER = [("PMI_RANK=0 PMI_SIZE=2 PMI_FD=77", 2)]
RARER = [
    ("PMIX_RANK=0", 0),
    ("PMIX_RANK=0 SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_NTASKS=1", 0),
    ("PMI_RANK=1 PMI_SIZE=2 PMI_FD=x", 2),
    ("PMIX_RANK=0 PMIX_NAMESPACE=1.0 PMIX_SERVER_URI2=x", 0),
    ("PMI_RANK=0 PMI_SIZE=1", 0),
    ("PMI_RANK=0 PMI_SIZE=1 PMI_FD=77", 0),
    ("PMI_RANK=0 PMI_SIZE=2 PMI_FD=0", 2),
]


@pytest.mark.parametrize("env, status", [*LEFT_OVER, *(pytest.param(*left, marks=pytest.mark.slow) for left in RARER)])
def test_what_a_launcher_left_is_no_launcher(tmp_path, env, status):
    words = [sys.executable, FOLDER / "image_sample.py", "--model_path", "models/digits16.pt", "--out_dir", tmp_path]
    words += ["--num_samples", 1, "--timestep_respacing", 1]
    left = dict(pair.split("=") for pair in env.split())
    done = subprocess.run(
        list(map(str, words)), env=clean_env(**left), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=HANGS,
    )  # fmt: skip
    assert done.returncode == status and "Traceback" not in done.stderr and "error stack" not in done.stderr, (
        done.stderr
    )
    assert status == 0 or "PMI_FD" in done.stderr


# ---------------------------------------------------------------------------------------------- network


def listening(pid):
    """{inode: address, in hexadecimal} of the sockets on which a process listens."""
    return {inode: address for _, address, listens, inode in sockets(pid) if listens}


def _parent(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]


LAUNCHERS = {
    "mpirun": [MPIRUN, "-n", 2, sys.executable],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2],
}


@pytest.mark.parametrize("launcher", [pytest.param("mpirun", marks=needs_mpirun), *slow("torchrun")])
def test_ranks_of_one_host_listen_on_the_loopback_alone(data, tmp_path, launcher):
    words = [*map(str, LAUNCHERS[launcher]), *training(data, tmp_path / "out", 10**6)[1:]]
    with Job(words, tmp_path) as job:
        job.trains(2)
        ranks = job.ranks()
        # mpirun hands down a socket of its own
        own = {inode for pid in ranks for inode in listening(_parent(pid))}
        found = {address for pid in ranks for inode, address in listening(pid).items() if inode not in own}
        os.kill(job.process.pid, signal.SIGTERM)
        job.ended()
    assert found and found <= {"0100007F", "0" * 24 + "01000000"}, found


def test_ranks_of_srun_too(tmp_path):
    done = srun(2, "listening.py")
    assert done.returncodes == [0, 0] and done.stderr.count("listens on ['0100007F']") == 2, done.stderr


class Watched:
    """Rank 0 of 2 with its watch, in this process."""

    def __init__(self, near=True):
        told, self.said = [], []
        self.watch = peers.Watch(
            0, ["rank 0", "rank 1"], "127.0.0.1", lambda x: told.append(x) or x, self.said.append, near
        )
        self.port, self.token = told[0]

    def connect(self, *words):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=HANGS)
        try:
            for word in words:
                connection.sendall(word)
        except OSError:
            connection.close()
            raise
        return connection

    def hears_the_end_of_rank_1(self):
        """Whether a rank that comes now is watched."""
        with self.connect(self.token + b" 1\n"):
            pass
        until = time.monotonic() + HANGS
        while not self.said and time.monotonic() < until:
            time.sleep(0.01)
        return bool(self.said) and self.said[0].startswith("rank 1 has died")


GREETINGS = {
    "nothing": [],
    "a word": [b"GET / HTTP/1.0\r\n\r\n"],
    "a wrong token": [b"0" * 32 + b" 1\n"],
    "no token": [b" 1\n"],
    "an endless line": [b"x" * 10**6],
    "a pickle": [b"\x80\x04cos\nsystem\n(S'true'\ntR."],
    "no text": [bytes(range(256))],
}


@pytest.mark.parametrize("what", GREETINGS)
def test_strangers_do_not_end_the_watch(what):
    job, strangers = Watched(), []
    for _ in range(3 * peers.STRANGERS):
        with contextlib.suppress(OSError):  # it was shown the door
            strangers.append(job.connect(*GREETINGS[what]))
    assert job.hears_the_end_of_rank_1()
    job.watch.leave()
    for connection in strangers:
        connection.close()


@pytest.mark.parametrize("number", [b"0", b"2", b"-1", b"x", b"", b"1 1", b"999999999999"])
def test_a_token_with_a_rank_that_is_none_is_a_stranger(number):
    job = Watched()
    with job.connect(job.token + b" " + number + b"\n") as stranger:
        assert stranger.recv(9) == b""
    assert job.hears_the_end_of_rank_1()
    job.watch.leave()


def test_a_byte_at_a_time_has_a_deadline(monkeypatch):
    monkeypatch.setattr(peers, "WELCOME_SECONDS", 0.5)
    job = Watched()
    with job.connect() as stranger:
        with pytest.raises(OSError):
            for _ in range(10**6):
                stranger.sendall(b"a")
                time.sleep(0.05)
    assert job.hears_the_end_of_rank_1()
    job.watch.leave()


def test_a_greeting_in_pieces_is_one():
    job = Watched()
    with job.connect() as rank:
        for byte in job.token + b" 1\n":
            rank.sendall(bytes([byte]))
            time.sleep(0.005)
    until = time.monotonic() + HANGS
    while not job.said and time.monotonic() < until:
        time.sleep(0.01)
    assert job.said[0].startswith("rank 1 has died")
    job.watch.leave()


def test_a_process_without_free_files_goes_on_watching(monkeypatch):
    real, refused = socket.socket.accept, []

    def accept(self):
        if len(refused) < 3:
            refused.append(1)
            raise OSError(24, "Too many open files")
        return real(self)

    monkeypatch.setattr(socket.socket, "accept", accept)
    job = Watched()
    assert job.hears_the_end_of_rank_1() and len(refused) == 3
    job.watch.leave()


def test_nothing_pickles_between_ranks():
    sources = [path.read_text() for path in (FOLDER.parent / "guided_diffusion").rglob("*.py")]
    for word in (r"\bpickle\.(loads|dumps)\b", r"dist\.\w*_object", r"\bcomm\.(bcast|gather|send|recv)\b"):
        found = [line for text in sources for line in text.splitlines() if re.search(word, line)]
        assert all("comm.gather" in line for line in found), found
