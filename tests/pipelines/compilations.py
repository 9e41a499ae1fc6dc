"""What is compiled while a block runs."""
import contextlib

import jax

EVENT = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations():
    """A list that grows by one for every program that is compiled in the block."""
    programs: list[float] = []

    def count(event: str, duration: float, **_):
        if event == EVENT:
            programs.append(duration)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
