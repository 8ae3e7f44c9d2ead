"""An SO-101's six motors on a serial line: a pseudo-terminal that answers Feetech's protocol 0 as STS3215 servos do.

Packets FF FF, id, length, instruction or error, parameters, checksum. Sources: Feetech's protocol manual for SMS/STS; the control table in
LeRobot's motors/feetech/tables.py. A motor with torque is at its goal; what is written to torque and goals is kept in `history`.
"""

from __future__ import annotations

import os
import threading
import tty

NUM_MOTORS = 6
_PING, _READ, _WRITE, _SYNC_READ, _SYNC_WRITE = 1, 2, 3, 0x82, 0x83
_ALL = 0xFE
_FIRMWARE, _MODEL, _LOWEST, _HIGHEST, _TORQUE, _GOAL, _POSITION = 0, 3, 9, 11, 40, 42, 56
_STS3215 = 777
MIDDLE, LOWEST, HIGHEST = 2048, 648, 3448  # of 4096 a turn


class FeetechBus:
    """`port` is the device that a driver opens."""

    def __init__(self) -> None:
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.port = os.ttyname(self._slave)
        self.motors = {number: bytearray(128) for number in range(1, NUM_MOTORS + 1)}
        self.history: list[tuple[str, int, int]] = []  # (torque or goal, motor, value)
        for motor in self.motors.values():
            motor[_FIRMWARE], motor[_FIRMWARE + 1] = 3, 10
            for address, value in ((_MODEL, _STS3215), (_LOWEST, LOWEST), (_HIGHEST, HIGHEST), (_GOAL, MIDDLE), (_POSITION, MIDDLE)):
                motor[address : address + 2] = value.to_bytes(2, "little")
            motor[_TORQUE] = 1
        threading.Thread(target=self._serve, daemon=True).start()

    def word(self, number: int, address: int = _POSITION) -> int:
        """A register of two bytes."""
        return int.from_bytes(self.motors[number][address : address + 2], "little")

    @property
    def calibration(self) -> dict[str, dict[str, int]]:
        """What LeRobot keeps in a file for such an arm."""
        names = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
        same = {"drive_mode": 0, "homing_offset": 0, "range_min": LOWEST, "range_max": HIGHEST}
        return {name: {"id": number, **same} for number, name in enumerate(names, 1)}

    def _serve(self) -> None:
        received = b""
        while True:
            received += os.read(self._master, 4096)
            while (start := received.find(b"\xff\xff")) >= 0 and len(received) >= start + 4 + received[start + 3 : start + 4][0]:
                end = start + 4 + received[start + 3]
                packet, received = received[start:end], received[end:]
                assert (~sum(packet[2:-1])) & 0xFF == packet[-1], "checksum"
                self._answer(packet[2], packet[4], packet[5:-1])

    def _answer(self, number: int, instruction: int, parameters: bytes) -> None:
        if instruction == _SYNC_WRITE:
            address, length = parameters[:2]
            rows = parameters[2:]
            for start in range(0, len(rows), length + 1):
                self._write(rows[start], address, rows[start + 1 : start + 1 + length])
        elif instruction == _SYNC_READ:
            for each in parameters[2:]:
                self._reply(each, self._read(each, *parameters[:2]))
        elif number == _ALL:
            for each in self.motors:
                self._reply(each, b"")
        elif number in self.motors:
            if instruction == _WRITE:
                self._write(number, parameters[0], parameters[1:])
            self._reply(number, self._read(number, *parameters[:2]) if instruction == _READ else b"")

    def _read(self, number: int, address: int, length: int) -> bytes:
        return bytes(self.motors[number][address : address + length])

    def _write(self, number: int, address: int, values: bytes) -> None:
        motor = self.motors[number]
        motor[address : address + len(values)] = values
        if address in (_TORQUE, _GOAL):
            self.history.append(("torque" if address == _TORQUE else "goal", number, int.from_bytes(values, "little")))
        if motor[_TORQUE]:
            motor[_POSITION : _POSITION + 2] = motor[_GOAL : _GOAL + 2]

    def _reply(self, number: int, parameters: bytes) -> None:
        body = bytes((number, len(parameters) + 2, 0)) + parameters
        os.write(self._master, b"\xff\xff" + body + bytes(((~sum(body)) & 0xFF,)))
