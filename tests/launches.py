"""A kernel that is not launched, but notes which device is the current one."""
import contextlib


def noted_launches(monkeypatch, module, kernel, grid):
    """The devices on which the kernel of a module is launched, in their order; None where it made none the current one.

    kernel, grid: its name in the module, and of how many programs the launch is.
    """
    current, launched_on = [None], []

    @contextlib.contextmanager
    def on(device):
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(f"{module}.on", on)
    monkeypatch.setattr(f"{module}.{kernel}", {grid: lambda *_, **__: launched_on.append(current[-1])})
    return launched_on
