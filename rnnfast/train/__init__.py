"""Training: losses, optimizers, learning-rate schedules, gradient clipping, fit, and checkpoints."""

from rnnfast.train.callbacks import Callback, Training
from rnnfast.train.checkpoint import load_checkpoint
from rnnfast.train.clipping import clip_norm, clip_value
from rnnfast.train.history import History
from rnnfast.train.loop import evaluate, fit, predict
from rnnfast.train.losses import MAE, MSE, BinaryCrossEntropy, CrossEntropy, Huber
from rnnfast.train.metrics import accuracy
from rnnfast.train.optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from rnnfast.train.schedules import CosineDecay, ExponentialDecay, InverseTimeDecay, StepDecay

__all__ = [
    "Adam",
    "AdamW",
    "BinaryCrossEntropy",
    "Callback",
    "CosineDecay",
    "CrossEntropy",
    "ExponentialDecay",
    "History",
    "Huber",
    "InverseTimeDecay",
    "MAE",
    "MSE",
    "Optimizer",
    "RMSprop",
    "SGD",
    "StepDecay",
    "Training",
    "accuracy",
    "clip_norm",
    "clip_value",
    "evaluate",
    "fit",
    "load_checkpoint",
    "predict",
]
