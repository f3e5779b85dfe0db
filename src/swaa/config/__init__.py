"""YAML files become frozen values: an :class:`Experiment`, a :class:`Benchmark`, a
:class:`Distillation`, a :class:`FineTuning` or a :class:`Search`.

A file may hold free ``vars`` and interpolate them (``${vars.window}``); every field can be overridden from the command
line (``recipes[0].decoding.max_new_tokens=8``). Unknown keys are refused, with a suggestion.
"""

from swaa.config.benchmark import BASELINES, Baseline, Benchmark, BenchmarkModel
from swaa.config.common import DEVICES, DTYPES, KERNELS, ModelConfig, Prompts, RunnerConfig
from swaa.config.distill import FORMATS, KEEPS, Distillation
from swaa.config.experiment import SCORINGS, Experiment
from swaa.config.finetune import FineTuning
from swaa.config.finetune_parts import (
    Annealing,
    Evaluation,
    LoraConfig,
    Objective,
    Optimization,
    TrainerConfig,
    Training,
    Validation,
)
from swaa.config.loading import (
    kind_of,
    load_benchmark,
    load_distillation,
    load_experiment,
    load_file,
    load_finetuning,
    load_search,
)
from swaa.config.perplexity import Perplexity
from swaa.config.search import Search
from swaa.config.search_parts import Budget, Calibration, Controls, Halving, HeldOut, Request, Scenarios, Space

__all__ = [
    "BASELINES",
    "DEVICES",
    "DTYPES",
    "FORMATS",
    "KEEPS",
    "KERNELS",
    "SCORINGS",
    "Annealing",
    "Baseline",
    "Benchmark",
    "BenchmarkModel",
    "Budget",
    "Calibration",
    "Controls",
    "Distillation",
    "Evaluation",
    "Experiment",
    "FineTuning",
    "Halving",
    "HeldOut",
    "LoraConfig",
    "ModelConfig",
    "Objective",
    "Optimization",
    "Perplexity",
    "Prompts",
    "Request",
    "RunnerConfig",
    "Scenarios",
    "Search",
    "Space",
    "TrainerConfig",
    "Training",
    "Validation",
    "kind_of",
    "load_benchmark",
    "load_distillation",
    "load_experiment",
    "load_file",
    "load_finetuning",
    "load_search",
]
