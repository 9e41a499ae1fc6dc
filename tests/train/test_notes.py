"""Notes between processes: the first of a name stays, and what is not there is None."""
import pytest
from test_stop import Client

from diffusion_jax.build import ConfigError
from diffusion_jax.train import notes


class State:
    """What JAX knows of processes that joined."""

    def __init__(self, client, coordinator_address):
        self.client, self.coordinator_address = client, coordinator_address


@pytest.fixture
def state(monkeypatch):
    shared = State(Client(), "10.0.0.1:1234")
    monkeypatch.setattr(notes, "_state", lambda: shared)
    return shared


def test_the_first_note_of_a_name_stays_and_kinds_do_not_meet(state):
    ours, others = notes.Notes("ours"), notes.Notes("others")
    assert ours.read("order/1") is None
    ours.write("order/1", {"log": "dit.log"})
    ours.write("order/1", {})
    assert notes.Notes("ours").read("order/1") == {"log": "dit.log"} and others.read("order/1") is None


def test_an_empty_note_is_one(state):
    board = notes.Notes("ours")
    board.write("ended", "")
    assert board.read("ended") == ""


@pytest.mark.parametrize(("address", "host"), [("10.0.0.1:1234", "10.0.0.1"), ("[::1]:80", "[::1]"), ("a.b:1", "a.b")])
def test_the_host_of_the_first(state, address, host):
    state.coordinator_address = address
    assert notes.leading_host() == host


def test_one_process_has_no_notes():
    assert notes.client() is None
    with pytest.raises(ConfigError, match="shares no notes"):
        notes.Notes("ours")
    with pytest.raises(ConfigError, match="where its processes joined"):
        notes.leading_host()
