"""Training: losses, optimisers, learning-rate schedules, clipping, fit, checkpoints."""
from .checkpoint import load_checkpoint
from .clipping import clip_norm, clip_value
from .history import History
from .loop import evaluate, fit, predict
from .losses import MAE, MSE, BinaryCrossEntropy, CrossEntropy
from .metrics import accuracy
from .optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from .schedules import CosineDecay, ExponentialDecay, InverseTimeDecay, StepDecay

__all__ = ["Adam", "AdamW", "BinaryCrossEntropy", "CosineDecay", "CrossEntropy", "ExponentialDecay", "History",
           "InverseTimeDecay", "MAE", "MSE", "Optimizer", "RMSprop", "SGD", "StepDecay", "accuracy", "clip_norm",
           "clip_value", "evaluate", "fit", "load_checkpoint", "predict"]
