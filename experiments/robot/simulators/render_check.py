"""Renders one picture off-screen and prints a line of JSON about it; `prismatic.doctor` runs it as a program.

python -m experiments.robot.simulators.render_check
"""

from __future__ import annotations

import json
import sys
import time

from experiments.robot.simulators.rendering import OffscreenRenderer, RenderingUnavailableError, configure_rendering

_SCENE = """
<mujoco>
  <worldbody>
    <light pos="0 0 2"/>
    <geom type="box" size="0.2 0.2 0.2" rgba="1 0 0 1"/>
  </worldbody>
</mujoco>
"""
_SIZE = 64  # pixels


def main() -> None:
    """Exit status 1 and one line of text where rendering is not possible."""
    try:
        backend = configure_rendering()
        import mujoco

        model = mujoco.MjModel.from_xml_string(_SCENE)
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        started = time.monotonic()
        renderer = OffscreenRenderer(model, _SIZE, fast=True)
        camera = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(model, camera)
        image = renderer.render(data, camera, mujoco.MjvOption(), _SIZE)
        renderer.close()
    except (RenderingUnavailableError, ImportError, AttributeError) as error:  # a MUJOCO_GL that does not fit fails while it is imported
        sys.exit(f"error: {error}")
    red = image[..., 0].astype(int) - image[..., 1]
    if red.max() < 50:
        sys.exit(f"error: the red box is not in the picture (MUJOCO_GL={backend}), which is all of one colour")
    print(json.dumps({"mujoco": mujoco.__version__, "backend": backend, "seconds": time.monotonic() - started}))


if __name__ == "__main__":
    main()
