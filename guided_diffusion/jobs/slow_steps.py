"""A step that takes long says what is waited for, while it waits."""

import contextlib
import threading
import time

LONG = 60.0


@contextlib.contextmanager
def told(say, long=LONG, unit="step"):
    """Yield `doing(what, step=None)`, which notes what is waited for from now on, of a new step where one is named.

    A thread says it with the seconds that the step has taken: once after `long` of them, and each `long` again.

    :param say: called in that thread with a sentence.
    :param unit: what a step is called in it.
    """
    now = {"what": "the start", "step": 0, "since": time.monotonic(), "said": 0}
    end = threading.Event()

    def doing(what, step=None):
        now["what"] = what
        if step is not None:
            now.update(step=step, since=time.monotonic(), said=0)

    def look():
        while not end.wait(min(1.0, long / 4)):
            seconds = time.monotonic() - now["since"]
            if seconds >= long * (now["said"] + 1):
                now["said"] += 1
                say(f"{unit} {now['step']} has taken {seconds:.0f} s so far and waits for {now['what']}")

    thread = threading.Thread(target=look, name="slow_steps", daemon=True)
    thread.start()
    try:
        yield doing
    finally:
        end.set()
        thread.join()
