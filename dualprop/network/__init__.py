"""The view that rules work on: layers, their local maps, and states with exact reuse."""

from dualprop.network.layered import Layered
from dualprop.network.layers import Layer
from dualprop.network.network import Network
from dualprop.network.recorded import RecordedNetwork

__all__ = ["Layer", "Layered", "Network", "RecordedNetwork"]
