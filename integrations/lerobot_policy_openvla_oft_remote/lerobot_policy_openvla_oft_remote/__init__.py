"""Registers the policy type openvla_oft_remote with LeRobot, which imports installed packages of such a name."""

from lerobot_policy_openvla_oft_remote.configuration_openvla_oft_remote import OpenVLAOFTRemoteConfig

__all__ = ["OpenVLAOFTRemoteConfig"]
