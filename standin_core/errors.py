"""The one error that a user meets."""


class UserError(ValueError):
    """One sentence for the user: what came, what is needed, what to do. Raised before work is lost."""

    __module__ = "builtins"  # ComfyUI shows the module before the sentence, and the module of a pack is a path
