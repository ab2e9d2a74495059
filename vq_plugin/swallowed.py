"""What a signal raised in a command, and other code took no notice of.

Compilers take whatever is raised in them for an error of an optimization, which they leave out.
"""

#: What signals raised in the command that runs; :mod:`vq_plugin.console` keeps it.
raised: list[BaseException] = []


def raise_swallowed() -> None:
    """Raises again what a signal raised, if there was one."""
    if raised:
        raise raised[0]
