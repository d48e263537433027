"""What is held of a netns is given back as a whole."""

from nodeagent.mesh.held import HeldNetns


class Recorded:
    """A netns, or a watch over one, that writes down when it is closed."""

    def __init__(self, name: str, closed: list[str]) -> None:
        self.id = name
        self.closed = closed

    def arm(self) -> None:
        """Nothing is heard."""

    def close(self) -> None:
        self.closed.append(self.id)


def test_close_gives_back_watch_and_netns() -> None:
    """The watch ends first: nothing is heard of a netns that is closed. Twice is once."""
    closed: list[str] = []
    held = HeldNetns(Recorded("netns", closed), Recorded("watch", closed))
    held.close()
    assert closed == ["watch", "netns"]
    held.close()
    assert closed.count("watch") == 1


def test_close_without_a_watch() -> None:
    """A netns that was only looked at is given back likewise."""
    closed: list[str] = []
    HeldNetns(Recorded("netns", closed)).close()
    assert closed == ["netns"]
