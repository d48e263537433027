"""Kinds of failure: the type of an exception says what the agent does next."""

from nodeagent.mesh.pod import Pod


class RetryError(Exception):
    """Another try can help: the pod's worker tries again, after a pause that grows."""


class TransientError(RetryError):
    """Ordinary in a pod's life, and soon over by itself: a warning only if it lasts."""


class RefusedError(RetryError):
    """ztunnel answered with an error. ztunnel tries again by itself, and so does the agent."""


class NetnsConflictError(RetryError):
    """The netns that was found for a pod is held for another pod."""

    def __init__(self, netns: str, holder: Pod) -> None:
        """`netns` is the identity of what was found, `holder` the pod that has it."""
        # The text does not name the holder: it may be shown to the owner of the other pod.
        super().__init__(f"the network namespace that was found, {netns}, is another pod's")
        self.netns = netns
        self.holder = holder


class GiveUpError(Exception):
    """No other try can help: nothing is done for the pod until something about it changes."""
