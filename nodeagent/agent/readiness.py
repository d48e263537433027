"""What the agent still has to do before it is ready.

Each task that has to be done first takes a token, and gives the token back at its end. The
agent is ready while no token is out. Kubelet's readiness probe, the admin socket and the CNI
plugin are given `Readiness.missing`, with which they can look and change nothing.
"""


class Token:
    """One task that is not done yet."""

    def __init__(self, tokens: dict["Token", str]) -> None:
        """`Readiness.token` makes it."""
        self._tokens = tokens

    def done(self) -> None:
        """Give the token back. Idempotent."""
        self._tokens.pop(self, None)


class Readiness:
    """The tasks that have to be done before the agent is ready."""

    def __init__(self) -> None:
        """Without a task the agent is ready."""
        self._tokens: dict[Token, str] = {}

    def token(self, task: str) -> Token:
        """The agent is not ready before this token's `done`; `task` is what people read."""
        token = Token(self._tokens)
        self._tokens[token] = task
        return token

    def missing(self) -> list[str]:
        """The tasks that are not done, in the order of their tokens; empty: ready."""
        return list(self._tokens.values())
