"""Live models that switch tasks: an EMR artefact or a folder of experts in a torch module, and a router of inputs."""

from .features import mean_pooled
from .load import load
from .routed import RoutedModel
from .router import Router
from .task_model import TaskModel

__all__ = ["RoutedModel", "Router", "TaskModel", "load", "mean_pooled"]
