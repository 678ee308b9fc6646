"""The position of a run in its epoch, and all contact with the state of Lightning's loops.

Lightning saves its counters as they are in the hook that writes a checkpoint, and guesses that hook
when it restarts; what lies between (a validation, the end of an epoch) may be skipped or done
twice. Here every checkpoint has one form: so many batches of this epoch are done, hooks included,
and the next batch has not started.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import lightning as L

_BATCHES = "epoch_loop.batch_progress"
_OPTIMIZER = "epoch_loop.automatic_optimization.optim_progress"
_LOADERS = "combined_loader"


class Position(NamedTuple):
    """A position in an epoch.

    Attributes:
        epoch: Epochs that are over.
        batch: Batches of the current epoch that are done, on each rank.
        num_batches: Batches of an epoch, on each rank.
    """

    epoch: int
    batch: int
    num_batches: int


def settle_position(loops: dict[str, Any], num_batches: float, window: int = 1) -> Position:
    """Bring the saved state of the loops to the start of the next optimizer step.

    Gradients are in no checkpoint: a window of accumulated batches that is interrupted starts again
    at its first batch, with the weights as they are.

    Args:
        loops: ``checkpoint["loops"]``; changed in place.
        num_batches: Batches of an epoch, on each rank; infinite if unknown.
        window: Batches that are accumulated for an optimizer step.

    Returns:
        The position that the checkpoint then has.
    """
    fit = loops["fit_loop"]
    epochs, batches = fit["epoch_progress"]["current"], fit[_BATCHES]["current"]
    undone = batches_of_cut_window(loops, num_batches, window)
    done: int = batches["processed"] - undone
    if undone:  # its gradients will be cleared again
        for counters in fit[_OPTIMIZER]["optimizer"]["zero_grad"].values():
            counters.update({name: count - 1 for name, count in counters.items()})
    epoch: int = epochs["processed"]
    if epochs["started"] == 0:  # a learning-rate search saves what it returns to
        return Position(0, 0, int(min(num_batches, 2**62)))
    if done >= num_batches:  # the epoch is over, whether or not its last hooks have run
        epoch, done = max(epoch, epochs["started"]), 0
        for counters in fit[_OPTIMIZER]["optimizer"].values():
            _set(counters["current"], 0)
        fit["state_dict"].pop(_LOADERS, None)  # the next epoch has loaders of its own
    _set(batches, done)
    _set(fit[_BATCHES]["total"], fit[_BATCHES]["total"]["processed"] - undone)
    fit[_BATCHES]["is_last_batch"] = False
    for counters in fit["epoch_progress"].values():
        counters.update(ready=epoch + 1, started=epoch + 1, processed=epoch, completed=epoch)
    _set_first_batch(fit, done)
    return Position(epoch, done, int(min(num_batches, 2**62)))


def batches_of_cut_window(loops: dict[str, Any], num_batches: float, window: int) -> int:
    """Return how many batches are done of an optimizer step that is not done."""
    done: int = loops["fit_loop"][_BATCHES]["current"]["processed"]
    return done % window if done < num_batches else 0


def rescale_position(loops: dict[str, Any], saved: Position, num_batches: int, window: int) -> int:
    """Move a run that resumes with another number of batches an epoch to the same fraction of it.

    Args:
        loops: ``checkpoint["loops"]``, settled; changed in place.
        saved: The position of the run when it was saved.
        num_batches: Batches of an epoch on each rank from now on.
        window: Batches of an accumulation window; the new position is the start of one.

    Returns:
        Batches of the epoch that count as done.
    """
    done = saved.batch * num_batches // saved.num_batches // window * window
    fit = loops["fit_loop"]
    _set(fit[_BATCHES]["current"], done)
    _set_first_batch(fit, done)
    return done


def align_logging_step(trainer: L.Trainer) -> None:
    """Set the loggers' step to the optimizer step, as it is in a run that was not interrupted.

    Lightning's restart adds one to it or doesn't, depending on the hook it guesses.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def _set(counters: dict[str, int], value: int) -> None:
    for name in counters:
        counters[name] = value


def _set_first_batch(fit: dict[str, Any], done: int) -> None:
    for state in fit["state_dict"].get(_LOADERS, []):
        if _is_ours(state):
            state["first_batch"] = done


def loader_states(trainer: L.Trainer) -> list[Any]:
    """Return the present states of the training loaders, unless all of them are ours.

    Ours save the index of the next batch whatever has been read ahead; the state of any other
    loader has to be read before the first batch of the next step is. Empty if none has a state.
    """
    combined: Any = trainer.fit_loop._combined_loader
    states = [] if combined is None else combined._state_dicts()
    return [] if all(map(_is_ours, states)) else copy.deepcopy(states)


def set_loader_states(loops: dict[str, Any], states: list[Any]) -> None:
    """Put the states of loaders that are not ours into a checkpoint.

    Args:
        loops: ``checkpoint["loops"]``; changed in place.
        states: What `loader_states` returned between two steps; empty before the first batch.
    """
    saved = loops["fit_loop"]["state_dict"]
    if all(map(_is_ours, saved.get(_LOADERS, []))):
        return
    if states:
        saved[_LOADERS] = states
    else:
        del saved[_LOADERS]


def _is_ours(state: object) -> bool:
    return isinstance(state, dict) and "first_batch" in state
