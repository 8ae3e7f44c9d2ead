"""What a robot under a policy may be doing, and what leads from one to the other: one explicit table."""

from __future__ import annotations

from enum import Enum


class State(str, Enum):
    """What the robot is doing."""

    ACTING = "acting"  # what the policy says
    HOLDING = "holding"  # it stays where it is until there is something to do
    BLOCKED = "blocked"  # it is not where it was told to be, and stays where it was found until a person lets it go on
    WAITING = "waiting"  # for a person's sign, without end
    INTERVENTION = "intervention"  # what a person says
    STOPPED = "stopped"  # it stays where it is until the next rollout


class Event(str, Enum):
    """What happened at a control step."""

    ACTION = "action"  # an action is due, and everything is well
    TROUBLE = "trouble"  # no action, one that may not be done, no fresh measurement, a device that fails
    BLOCKED = "blocked"  # measured and commanded position have parted
    TOO_LONG = "too long"  # it has been held for as long as it may
    PAUSE = "pause"  # a person's key, or a warning that a person is to read
    CONTINUE = "continue"  # a person's key
    TAKE_OVER = "take over"  # a person commands from now on
    HAND_BACK = "hand back"  # and no longer
    RESET = "reset"  # a rollout begins


_STATES = tuple(State)
_ROWS: dict[Event, tuple[State, ...]] = {  # event -> the state after it, for each state before it in the order of `_STATES`
    #  after ACTING, HOLDING, BLOCKED, WAITING, INTERVENTION, STOPPED
    Event.ACTION: (State.ACTING, State.ACTING, State.BLOCKED, State.WAITING, State.INTERVENTION, State.STOPPED),
    Event.TROUBLE: (State.HOLDING, State.HOLDING, State.BLOCKED, State.WAITING, State.INTERVENTION, State.STOPPED),
    Event.BLOCKED: (State.BLOCKED, State.BLOCKED, State.BLOCKED, State.WAITING, State.INTERVENTION, State.STOPPED),
    Event.TOO_LONG: (State.STOPPED, State.STOPPED, State.STOPPED, State.WAITING, State.INTERVENTION, State.STOPPED),
    Event.PAUSE: (State.WAITING, State.WAITING, State.WAITING, State.WAITING, State.WAITING, State.STOPPED),
    Event.CONTINUE: (State.ACTING, State.HOLDING, State.HOLDING, State.HOLDING, State.INTERVENTION, State.STOPPED),
    Event.TAKE_OVER: (State.INTERVENTION, State.INTERVENTION, State.INTERVENTION, State.INTERVENTION, State.INTERVENTION, State.STOPPED),
    Event.HAND_BACK: (State.ACTING, State.HOLDING, State.BLOCKED, State.WAITING, State.HOLDING, State.STOPPED),
    Event.RESET: (State.HOLDING,) * len(_STATES),
}
TRANSITIONS: dict[tuple[State, Event], State] = {
    (before, event): after for event, row in _ROWS.items() for before, after in zip(_STATES, row, strict=True)
}
