"""Names of topologies, and collectives on their links."""
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.cost.chips import CHIPS, collective_seconds, topology


@pytest.mark.parametrize(
    ("name", "full", "chips"),
    [("v5e-16", "v5e:4x4", 16), ("v5litepod-256", "v5e:16x16", 256),
     ("v5e-256", "v5e:16x16", 256), ("v5p-128", "v5p:4x4x4", 64), ("v6e:2x4", "v6e:2x4", 8),
     ("v4-16", "v4:2x2x2", 8), ("h100-64", "h100:64", 64), ("h100:8", "h100:8", 8)],
)
def test_names(name, full, chips):
    assert (topology(name).name, topology(name).chips) == (full, chips)


@pytest.mark.parametrize(("name", "says"), [("v5e", "a topology is"), ("v9:2x2", "unknown chip"), ("v5e:2x2x2", "2 axes"),
                                            ("v5e-24", "no shape"), ("v5e:0x4", "2 axes, of 1 chip or more"),
                                            ("h100:0", "1 axis, of 1 chip"), ("h100-0", "1 axis, of 1 chip"),
                                            ("h100:٨", "a topology is"), ("h100:" + "9" * 5000, "a topology is")])
def test_others_are_refused(name, says):
    with pytest.raises(ConfigError, match=says):
        topology(name)


def test_collectives_use_the_links_of_the_axes_that_they_span():
    place, link = topology("v5e:16x4"), CHIPS["v5e"].link
    row, column = [(x, 0) for x in range(16)], [(0, y) for y in range(4)]
    assert collective_seconds(place, "all-gather", 1e9, row) == pytest.approx(1e9 * 15 / 16 / (2 * link))      # a ring
    assert collective_seconds(place, "all-gather", 1e9, column) == pytest.approx(1e9 * 3 / 4 / link)           # open
    assert collective_seconds(place, "all-gather", 1e9, row[:4]) == pytest.approx(1e9 * 3 / 4 / link)      # a part of a ring
    assert collective_seconds(place, "all-reduce", 1e9, row + column) == pytest.approx(2 * 1e9 * 19 / 20 / (3 * link))
    assert collective_seconds(place, "collective-permute", 1e9, row[:2]) == pytest.approx(1e9 / link)
    assert collective_seconds(place, "all-reduce", 1e9, row[:1]) == 0


def test_nodes_of_gpus_talk_over_the_network():
    place, chip = topology("h100:16"), CHIPS["h100"]
    inside, across = [(i,) for i in range(8)], [(0,), (8,)]
    assert collective_seconds(place, "all-gather", 1e9, inside) == pytest.approx(1e9 * 7 / 8 / chip.link)
    assert collective_seconds(place, "all-gather", 1e9, across) == pytest.approx(1e9 / 2 / chip.network)
