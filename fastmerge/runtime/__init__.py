"""Live models that switch tasks: an EMR artefact or a folder of experts in a torch module, and a router of inputs."""

from .evaluation import Evaluation, evaluate
from .features import mean_pooled
from .load import load
from .routed import RoutedModel
from .router import Router
from .router_files import evaluate_router, train_router
from .task_model import TaskModel
from .texts import text_features

__all__ = [
    "Evaluation",
    "RoutedModel",
    "Router",
    "TaskModel",
    "evaluate",
    "evaluate_router",
    "load",
    "mean_pooled",
    "text_features",
    "train_router",
]
