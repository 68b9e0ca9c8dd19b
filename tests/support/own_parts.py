"""A user's own parts: objects that show what a Protocol names, and nothing else.

`only(Path, LinearPath())` behaves like the built-in path and is no instance of its class; whatever of the
library reaches beyond the Protocol ends with an AttributeError.
"""


def members(protocol):
    """The names of a Protocol's methods and properties."""
    return sorted(
        name
        for base in protocol.__mro__
        for name in vars(base)
        if not name.startswith("_") or name == "__call__"
        if base.__module__ == protocol.__module__
    )


def only(protocol, part, **replaced):
    """An object of a class of its own with the members of `protocol`, which act as those of `part`.

    Members that are given by name have that value instead.
    """

    def forward(name):
        if name == "__call__":
            return lambda self, *args, **kwargs: part(*args, **kwargs)
        if isinstance(getattr(protocol, name), property):
            return property(lambda self: getattr(part, name))
        return lambda self, *args, **kwargs: getattr(part, name)(*args, **kwargs)

    return type(
        f"Own{protocol.__name__}", (), {name: forward(name) for name in members(protocol)} | replaced
    )()
