"""Kinds of failure, told apart by what they lead to."""


class RetryError(Exception):
    """Trying again can mend it: the reconciler does, with back-off."""


class TransientError(RetryError):
    """It belongs to a pod's ordinary life and passes by itself: a warning only if it lasts."""


class RefusedError(RetryError):
    """ztunnel answered with an error. ztunnel tries again by itself, and so does the agent."""


class GiveUpError(Exception):
    """Trying again cannot mend it: the pod rests until something about it changes."""
