"""Keys of observations and answers that both sides of a connection use; what cameras are called stands in `prismatic.vla.cameras`."""

from __future__ import annotations

STATE = "state"
ACTIONS = "actions"

# The websockets of openpi's form
IMAGES = "images"  # camera -> picture
PROMPT = "prompt"
WARNINGS = "warnings"  # new ones, about what the policy is shown
TIMING = "server_timing"

# POST /act
INSTRUCTION = "instruction"
ERROR = "error"  # of an answer that is not 200
