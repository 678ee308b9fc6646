"""Where in its epoch a run stands: all contact with the state of Lightning's loops.

Lightning saves its counters as they happen to be in the hook that asks for a checkpoint, and
guesses that hook when it restarts; what lies between (a validation, the ends of an epoch) may be
left out or done twice. Here every checkpoint says the same: so many batches of this epoch are done,
with all that belongs to them, and the next one has not begun.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import lightning as L

_BATCHES = "epoch_loop.batch_progress"
_OPTIMIZER = "epoch_loop.automatic_optimization.optim_progress"
_LOADERS = "combined_loader"


class Position(NamedTuple):
    """A place in an epoch.

    Attributes:
        epoch: Epochs that are over.
        batch: Batches of the present epoch that are done, on each rank.
        num_batches: Batches of an epoch, on each rank.
    """

    epoch: int
    batch: int
    num_batches: int


def settle_position(loops: dict[str, Any], num_batches: float, window: int = 1) -> Position:
    """Bring the saved state of the loops to the start of the next optimizer step.

    Gradients are in no checkpoint: of a window of accumulated batches that is cut, all batches are
    still to be done, with the weights as they are.

    Args:
        loops: ``checkpoint["loops"]``; changed in place.
        num_batches: Batches of an epoch, on each rank; infinite if nobody knows.
        window: Batches that are accumulated for an optimizer step.

    Returns:
        Where the run stands.
    """
    fit = loops["fit_loop"]
    epochs, batches = fit["epoch_progress"]["current"], fit[_BATCHES]["current"]
    done: int = batches["processed"]
    undone = batches_of_cut_window(loops, num_batches, window)
    done -= undone
    if undone:  # its gradients will be cleared again
        for counters in fit[_OPTIMIZER]["optimizer"]["zero_grad"].values():
            counters.update({name: count - 1 for name, count in counters.items()})
    epoch: int = epochs["processed"]
    if epochs["started"] == 0:  # a search for a learning rate saves what it goes back to
        return Position(0, 0, int(min(num_batches, 2**62)))
    if done >= num_batches:  # the epoch is over, whether or not its last hooks have run
        epoch, done = max(epoch, epochs["started"]), 0
        for each in fit[_OPTIMIZER]["optimizer"].values():
            _set(each["current"], 0)
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
    """Put a run that goes on with another number of batches an epoch at the same share of it.

    Args:
        loops: ``checkpoint["loops"]``, settled; changed in place.
        saved: Where the run stood.
        num_batches: Batches of an epoch on each rank from now on.
        window: Batches of a window of accumulated gradients; the new place is the start of one.

    Returns:
        Batches of the epoch that count as done.
    """
    done = saved.batch * num_batches // saved.num_batches // window * window
    fit = loops["fit_loop"]
    _set(fit[_BATCHES]["current"], done)
    _set_first_batch(fit, done)
    return done


def align_logging_step(trainer: L.Trainer) -> None:
    """Let metrics be logged under the optimizer step, as if the run had never been cut.

    At the start of a step, the loggers' counter is the number of optimizer steps. Lightning's
    restart adds one to it or doesn't, depending on the hook it guesses.
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
    """Return the states of the training loaders that are not ours, as they are at this moment.

    Ours say which batch is the next whatever has been read ahead; any other loader has to be asked
    before the first batch of the next step is read. Empty if all are ours or none has a state.
    """
    combined: Any = trainer.fit_loop._combined_loader
    states = [] if combined is None else combined._state_dicts()
    return [] if all(map(_is_ours, states)) else copy.deepcopy(states)


def set_loader_states(loops: dict[str, Any], states: list[Any]) -> None:
    """Let saved loops continue with loaders that are not ours; see ``loader_states``.

    Args:
        loops: ``checkpoint["loops"]``; changed in place.
        states: What the loaders were in between two steps; empty if no batch was read before.
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
