"""YAML files become frozen values: an :class:`Experiment` or a :class:`Benchmark`.

A file may hold free ``vars`` and interpolate them (``${vars.window}``); every field can be overridden from the command
line (``recipes[0].decoding.max_new_tokens=8``). Unknown keys are refused, with a suggestion.
"""

from swaa.config.benchmark import BASELINES, Baseline, Benchmark, BenchmarkModel
from swaa.config.common import DEVICES, DTYPES, KERNELS, ModelConfig
from swaa.config.experiment import SCORINGS, Experiment
from swaa.config.loading import load_benchmark, load_experiment, load_file

__all__ = [
    "BASELINES",
    "DEVICES",
    "DTYPES",
    "KERNELS",
    "SCORINGS",
    "Baseline",
    "Benchmark",
    "BenchmarkModel",
    "Experiment",
    "ModelConfig",
    "load_benchmark",
    "load_experiment",
    "load_file",
]
