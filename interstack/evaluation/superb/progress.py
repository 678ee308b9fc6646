"""How far a job of SUPERB is."""

from __future__ import annotations

from interstack.utils.progress import Display, Reading, RunPosition


class JobProgress:
    """Counts a job's steps.

    Args:
        name: Of the job.
        display: Where they are shown.
    """

    def __init__(self, name: str, display: Display) -> None:
        self._display = display
        self._reading = Reading((name,), RunPosition(0, None, "step"))

    def advance(self, step: int, total: int, loss: float, best: tuple[float, int] | None) -> None:
        """Show where the job is.

        Args:
            step: Optimizer steps so far.
            total: Of how many.
            loss: Of the last one.
            best: The best value on the dev split and its step, once it has been evaluated.
        """
        judged = () if best is None else (f"best {best[0]:.4g} at step {best[1]}",)
        position = RunPosition(step, total, "step")
        self._reading = self._reading._replace(
            position=position, figures=(f"loss {loss:.3f}", *judged)
        )
        self._display.update(self._reading)

    def pause(self, reason: str) -> None:
        """Show on a bar why it stands still."""
        if self._display.is_live:
            self._display.show(self._reading._replace(figures=(reason,)))
