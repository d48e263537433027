"""How a command says that it cannot do what it was asked for."""


class CommandError(Exception):
    """The text is one line for the person at the command line, with the remedy."""


def no_cluster(error: Exception) -> CommandError:
    """What to say where there is no way to the API server, for the reason `error`."""
    return CommandError(f"{error}. Without a cluster, name a folder of manifests (POD_MANIFESTS)")
