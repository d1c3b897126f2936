"""Gives a module another class for the time of one model call."""
from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch


@contextlib.contextmanager
def exchanged(module, made: Callable[[type], type], **state) -> Iterator[None]:
    """Within the context, a module is of another class and has these attributes, for the thread that entered it.

    The class is exchanged, not the module's ``forward``: torch.compile guards on a module's type and on its tensors,
    whereas ComfyUI drops the guards on transformer_options. A ``forward`` that another node put into the module is set
    aside as the attribute ``foreign_forward``, which is None where there is none.

    In other threads the module computes what it did: a plain run of the same model may be going on there. With
    gradients it is exchanged for all threads, because autograd computes checkpointed blocks again in its own threads.

    made: gives a class of the module's own class, with no tensors and a ``forward`` of ``in_own_thread``.
    """
    original, foreign = type(module), module.__dict__.get("forward")
    names = (*state, "foreign_forward", "thread")
    try:
        module.__dict__.update(state, foreign_forward=foreign,
                               thread=None if torch.is_grad_enabled() else threading.get_ident())
        module.__class__ = made(original)
        module.__dict__.pop("forward", None)  # last, and back first: other threads always find it
        yield
    finally:
        if foreign is not None:
            module.__dict__["forward"] = foreign
        module.__class__ = original
        for name in names:
            module.__dict__.pop(name, None)


def in_own_thread(base: type, forward: Callable) -> Callable:
    """The ``forward`` of a class for ``exchanged``: the given one where the module is exchanged, elsewhere what it was.

    base: the module's own class.
    """
    def of_module(self, *args, **kwargs):
        # what torch.compile has compiled is called in one thread: its wrapper exchanges the modules of a model too
        if torch.compiler.is_compiling() or self.__dict__.get("thread", 0) in (None, threading.get_ident()):
            return forward(self, *args, **kwargs)
        foreign = self.__dict__.get("foreign_forward") or self.__dict__.get("forward")
        return base.forward(self, *args, **kwargs) if foreign is None else foreign(*args, **kwargs)

    return of_module
