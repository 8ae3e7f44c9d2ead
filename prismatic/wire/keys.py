"""Keys of observations and answers that both sides of a connection use; what cameras are called is in `prismatic.vla.cameras`."""

from __future__ import annotations

STATE = "state"
ACTIONS = "actions"

# The websockets of openpi's form
IMAGES = "images"  # camera -> picture
PROMPT = "prompt"
WARNINGS = "warnings"  # new ones, about what the policy is shown
TIMING = "server_timing"
BEGINS = "begins"  # True: the first observation of a rollout

# A picture as a JPEG file instead of an array: {JPEG: True, DATA: bytes, in JSON base64}
JPEG, DATA = "__jpeg__", "data"

# POST /act
INSTRUCTION = "instruction"
ERROR = "error"  # of an answer that is not 200
# Headers of our own client: whose observations these are (on websockets in the handshake), whether a rollout begins, whether this is the
# first request on a new connection, so that the last answer may be lost, and new warnings about the observations (JSON) in the answer.
SESSION_HEADER, BEGINS_HEADER, RETURNS_HEADER, WARNINGS_HEADER = "X-Session", "X-Begins", "X-Returns", "X-Warnings"

POLICY_PATH = "/policy"  # websocket of our own client: openpi's form, but always in the robot's own units
# How many milliseconds from now an answer is of use to the client: afterwards nothing is computed for it. With a request, or in the
# handshake of a websocket, where it holds for all its requests.
DEADLINE_HEADER = "X-Deadline-Ms"
