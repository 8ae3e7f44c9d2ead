"""What the recording of a rollout says beyond a demonstration: the names in its HDF5 file, for who writes and who reads it.

    /rollout/commanded_by   [T]             policy, person or expert: whose /action it is
    /rollout/mode           [T]             acting, approaching (walking to the first target of a plan), intervention or relabelled
    /rollout/chunk          int32 [T]       number of the chunk that the command is from, counted from 1; 0: of no chunk
    /rollout/delay_s        float32 [T]     from the observation behind that chunk to its arrival; NaN: of no chunk
    /rollout/position       float64 [T, A]  where the robot was measured to be, in the units of its actions; not in simulators
    /rollout/executed       float32 [T, A]  relabelled alone: what the policy did, where /action is what the expert would have done
    attributes              `ATTRIBUTES`

The rest is the layout of ACT (prismatic/vla/datasets/hdf5/recording.py). Letters: T steps, A action dim.
"""

from __future__ import annotations

from enum import Enum

GROUP = "rollout"
COMMANDED_BY = "commanded_by"
ACTING, INTERVENTION, RELABELLED = "acting", "intervention", "relabelled"  # of /rollout/mode
# Attributes of the file; one whose value is not known is absent.
ATTRIBUTES = {
    "language_instruction": "what the robot was told",
    "success": "whether the task was solved; false where a rollout was ended before, absent where nobody can say",
    "ending": "how the rollout ended, in words",
    "task": "the simulator's name of the task",
    "episode": "number of the episode within its task, or of the rollout within its session, from 0",
    "seed": "of the start",
    "perturb": "how the simulator's scenes, pictures or words were changed on purpose (--perturb)",
    "checkpoint": "the policy: its folder or Hub id, or its run and step",
    "checkpoint_content": "changes with the files of the checkpoint, not with their place",
    "robot": "the class of the robot, or the simulator",
    "robot_platform": "what the policy calls it",
    "action_names": "of the dimensions of /action, with units",
    "state_names": "of the dimensions of /observations/qpos, with units",
    "control_hz": "steps per second",
    "fast_rendering": "simulators: --fast_rendering",
    "image_size": "simulators: pixels of the rendered pictures; of LIBERO env_img_res",
    "env_img_res": "see image_size",
    "num_person_steps": "steps that a person commanded",
    "num_expert_steps": "steps whose /action is a scripted expert's",
    "num_left_out": "commands that are not in the file, because no picture could be taken or written in time",
}


class Commander(str, Enum):
    """Who commanded a step."""

    POLICY = "policy"
    PERSON = "person"
    EXPERT = "expert"


COMMANDERS = tuple(Commander)  # numbered from 1 where a step's is stored as a number; 0: nobody says
