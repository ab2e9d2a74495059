"""Recipes that come with the package and run wherever it is installed.

In a checkout, ``recipes/`` has links to them.
"""

from importlib import resources

#: Their names.
NAMES = tuple(
    sorted(
        each.name.removesuffix(".yaml")
        for each in resources.files(__package__).iterdir()
        if each.name.endswith(".yaml")
    )
)


def read_shipped(name: str) -> str:
    """The text of one of them.

    Example:
        >>> "digits" in NAMES, "model: vq_plugin.workloads.digits:model" in read_shipped("digits")
        (True, True)
    """
    text = resources.files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    # A comment for editors names a file of the checkout.
    return "".join(line for line in lines if not line.startswith("# yaml-language-server"))
