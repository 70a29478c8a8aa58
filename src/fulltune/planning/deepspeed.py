"""The configuration that DeepSpeed gets: made of the recipe, with what the user's own file says besides. Pure.

What the recipe decides stands in one place: the file may say the same, or `"auto"`. What it alone can say (sizes of
buckets, prefetching, logs) is passed on. All else is refused, since nobody would know what it does here.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fulltune.base.errors import Fault, RecipeError
from fulltune.base.formats import PrecisionPlan
from fulltune.recipe.schema import Recipe

AUTO = "auto"
_SPELLED = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_PASSED = frozenset(
    "steps_per_print wall_clock_breakdown memory_breakdown dump_state disable_python_gc comms_logger aio".split()
)
"""What says nothing of the training."""
_ZERO_PASSED = frozenset(
    """contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce allgather_partitions allgather_bucket_size
    overlap_comm ignore_unused_parameters sub_group_size parameter_alignment log_trace_cache_warnings
    memory_efficient_linear stage3_max_live_parameters stage3_max_reuse_distance stage3_model_persistence_threshold
    stage3_module_granularity_threshold stage3_use_all_reduce_for_fetch_params stage3_allgather_sequential
    reduce_bucket_size stage3_prefetch_bucket_size stage3_param_persistence_threshold""".split()
)
"""Of `zero_optimization`: how it does it, not what."""
_OFFLOAD_PASSED = frozenset("pin_memory buffer_count buffer_size max_in_cpu".split())
_BETAS = {"adamw": (0.9, 0.999), "lion": (0.9, 0.99)}
"""What optimizers take where the recipe says nothing."""
SMALLEST_BUCKET = 1 << 20
"""Numbers that are exchanged at once at least: below that a bucket costs more than it saves."""


def configuration(recipe: Recipe, dtypes: PrecisionPlan, hidden: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe; RecipeError with every contradiction of the user's own file.

    `hidden`: width of the model, by which buckets are as large as transformers takes them for `auto`.
    """
    decided = _decided(recipe, dtypes, hidden)
    if recipe.engine.deepspeed is None:
        return decided
    path = Path(recipe.engine.deepspeed)
    told = _Told(str(path), recipe, dtypes)
    merged = told.merged(_read(path), decided)
    if told.faults:
        raise RecipeError(faults=told.faults)
    return merged


def _decided(recipe: Recipe, dtypes: PrecisionPlan, hidden: int) -> dict[str, Any]:
    """What the recipe says, and what is best for a model of this width."""
    stage = int(recipe.engine.name.removeprefix("zero"))
    bucket = max(hidden**2, SMALLEST_BUCKET)
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": bucket}
    if stage == 3:
        zero["stage3_prefetch_bucket_size"] = int(0.9 * bucket)
        zero["stage3_param_persistence_threshold"] = 10 * hidden
    if recipe.engine.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    half = dtypes.compute == "bfloat16"
    return {
        # How many examples a pass has is decided update by update; DeepSpeed is told which pass is the last.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.optim.clip or 0.0,
        "zero_optimization": zero,
        # In float32 it looks for numbers that are not finite by itself.
        "bf16": {"enabled": True, "check_grad_overflow": True} if half else {"enabled": False},
        "data_types": {"grad_accum_dtype": _SPELLED[dtypes.reduction]},
        "communication_data_type": _SPELLED[dtypes.reduction],
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _read(path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
        return dict(pairs)

    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except OSError as fault:
        raise RecipeError(
            f"cannot be read: {fault.strerror}", where=f"engine.deepspeed: {path}", mend="name a JSON file"
        ) from fault
    except ValueError as fault:  # of JSON, of UTF-8, or our own
        raise RecipeError(f"not JSON: {fault}", where=f"engine.deepspeed: {path}", mend="mend the file") from fault
    if not isinstance(values, dict):
        raise RecipeError("not a mapping", where=f"engine.deepspeed: {path}", mend="write {...} around it")
    return values


class _Told:
    """Reads the user's file beside the recipe, and collects what contradicts."""

    def __init__(self, path: str, recipe: Recipe, dtypes: PrecisionPlan) -> None:
        self._path, self._recipe, self._dtypes = path, recipe, dtypes
        self.faults: list[Fault] = []

    def merged(self, told: Mapping[str, Any], decided: dict[str, Any]) -> dict[str, Any]:
        """The whole configuration, where there are no faults."""
        sections: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "optimizer": self._optimizer,
            "bf16": lambda own: self._half("bf16", own, "bfloat16"),
            "fp16": lambda own: self._half("fp16", own, "float16"),
        }
        passed: dict[str, Any] = {}
        for name, value in told.items():
            if name == "zero_optimization" and isinstance(value, Mapping):
                passed[name] = self._zero(value, decided[name])
            elif name in sections and isinstance(value, Mapping):
                sections[name](value)
            elif name == "data_types" and isinstance(value, Mapping):
                self._agree_all(name, value, {"grad_accum_dtype": _SPELLED[self._dtypes.reduction]})
            elif name in _PASSED:
                passed[name] = value
            else:
                self._agree(name, value, self._known(decided))
        return {**decided, **{name: value for name, value in passed.items() if value != AUTO}}

    def _known(self, decided: Mapping[str, Any]) -> dict[str, Any]:
        """What a line of the file must be if it is there."""
        train = self._recipe.train
        return {
            "train_batch_size": None if train.batch_tokens else train.batch_examples,
            "train_micro_batch_size_per_gpu": train.micro_examples,
            "gradient_accumulation_steps": None,
            "prescale_gradients": False,
            "gradient_predivide_factor": 1.0,
            **{name: decided[name] for name in ("gradient_clipping", "communication_data_type")},
            **{name: decided[name] for name in ("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer")},
        }

    def _zero(self, told: Mapping[str, Any], decided: Mapping[str, Any]) -> dict[str, Any]:
        merged = dict(decided)
        known = {
            "stage": decided["stage"],
            "stage3_gather_16bit_weights_on_model_save": True,
            "round_robin_gradients": False,
        }
        for name, value in told.items():
            place = f"zero_optimization.{name}"
            if name in ("offload_optimizer", "offload_param") and isinstance(value, Mapping):
                merged[name] = self._offload(place, value, decided.get(name, {"device": "none"}))
            elif name not in _ZERO_PASSED:
                self._agree(place, value, {f"zero_optimization.{key}": wanted for key, wanted in known.items()})
            elif value != AUTO:
                merged[name] = value
        return merged

    def _offload(self, place: str, told: Mapping[str, Any], decided: Mapping[str, Any]) -> dict[str, Any]:
        passed = {name: value for name, value in told.items() if name in _OFFLOAD_PASSED and value != AUTO}
        rest = {name: value for name, value in told.items() if name not in _OFFLOAD_PASSED}
        if rest.get("device") == "nvme":
            self._fault(f"{place}.device", "checkpoints of what waits on NVMe cannot be written", "cpu")
            del rest["device"]
        rest = {name: value for name, value in rest.items() if not (name == "nvme_path" and value is None)}
        self._agree_all(place, rest, {"device": decided["device"]})
        return {**decided, **passed}

    def _optimizer(self, told: Mapping[str, Any]) -> None:
        optim = self._recipe.optim
        known: dict[str, Any] = {"lr": optim.lr, "weight_decay": optim.weight_decay}
        if optim.name in _BETAS:
            known["betas"] = list(optim.options.get("betas", _BETAS[optim.name]))
        if optim.name == "adamw":
            known |= {"eps": optim.options.get("eps", 1e-8), "torch_adam": True, "adam_w_mode": True}
        kind = told.get("type", AUTO)
        if kind != AUTO and str(kind).lower() != optim.name:
            self._fault("optimizer.type", f"{kind!r}, and optim.name is {optim.name}", optim.name)
        parameters = told.get("params", {})
        self._agree_all("optimizer.params", parameters if isinstance(parameters, Mapping) else {}, known)
        self._agree_all("optimizer", {name: None for name in told if name not in ("type", "params")}, {})

    def _half(self, name: str, told: Mapping[str, Any], number: str) -> None:
        enabled = self._dtypes.compute == number
        self._agree(f"{name}.enabled", told.get("enabled", False), {f"{name}.enabled": enabled})
        if enabled:
            rest = {key: value for key, value in told.items() if key != "enabled"}
            self._agree_all(name, rest, {"check_grad_overflow": True})

    def _agree_all(self, place: str, told: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        for name, value in told.items():
            self._agree(f"{place}.{name}", value, {f"{place}.{key}": wanted for key, wanted in known.items()})

    def _agree(self, place: str, value: Any, known: Mapping[str, Any]) -> None:
        """Whether a value is what it must be; nothing but `auto` is, where the recipe knows no number for it."""
        if place not in known:
            self._fault(place, "fulltune does not pass it on", "take it out")
        elif value != AUTO and value != known[place]:
            number = None if known[place] is None else json.dumps(known[place])
            mend = f'write {number} or "auto"' if number else 'write "auto"'
            what = f"{json.dumps(value)}, and by the recipe it is {number or AUTO}"
            self._fault(place, what, f"{mend}, or change the recipe")

    def _fault(self, place: str, what: str, mend: str) -> None:
        self.faults.append(Fault(f"{place}: {what}", f"engine.deepspeed: {self._path}", mend))
