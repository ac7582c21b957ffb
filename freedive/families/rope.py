"""Converts rope settings to inverse frequencies and a factor on cosines and sines.

The formulas and the precision, float32, are those of modeling_rope_utils.py of transformers. Frequencies are [dim / 2].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from freedive.families.config import Config
from freedive.model.spec import MAX_CONTEXT, AttentionTemperature, Rope

Frequencies = npt.NDArray[np.float32]

DEFAULT_THETA = 10_000.0

_FULL = "full_attention"


def rope(
    config: Config,
    head_dim: int,
    *,
    interleaved: bool = False,
    partial: bool = False,
    kind: str = "",
    theta: float | None = None,
) -> Rope:
    """Returns the rotary embedding of heads of ``head_dim``; ``kind`` is the layer type if the settings depend on it.

    Only with ``partial`` may the configuration rotate a part of each head. ``theta`` replaces that of the
    configuration. Raises UserError for impossible settings.
    """
    table = _table(config, kind)
    dim = _rotary_dim(config, table, head_dim, partial)
    theta = theta or table.number("rope_theta", config.number("rope_theta", DEFAULT_THETA, least=2), least=2)
    inv_freq, factor = SCALINGS[_scaling(table)](config, table, theta, dim)
    applies = kind in ("", _FULL)  # llama.cpp divides the frequencies of layers without a window
    width = head_dim if kind else dim  # a table for layers of several kinds is as long as for a whole head
    divisors = config.numbers("rope_divisors", width // 2, least=1e-3, most=1e31) if applies else None
    if divisors is not None:
        inv_freq /= np.array(divisors[: dim // 2], np.float32)
    return Rope(dim, tuple(map(float, inv_freq)), factor, interleaved)


def supply_rope(config: Config, settings: Mapping[str, Any]) -> None:
    """Sets the rope ``settings``, in their older form, if the configuration has none."""
    if not any(key in config for key in ("rope_parameters", "rope_scaling", "rope_theta")):
        config.supply(settings)


def local_rope(config: Config, head_dim: int) -> Rope:
    """Returns the rotary embedding of layers with a window, if rope settings depend on the type of a layer.

    The scaling in older files and in GGUF files is that of the other layers only.
    """
    if "sliding_attention" in config.section("rope_parameters"):
        return rope(config, head_dim, kind="sliding_attention")
    theta = config.number("rope_theta", DEFAULT_THETA, least=2)
    return plain_rope(config.number("rope_local_base_freq", theta, least=2), head_dim)


def plain_rope(theta: float, dim: int, *, interleaved: bool = False) -> Rope:
    """Returns the rotary embedding of ``dim`` dimensions without scaling."""
    return Rope(dim, tuple(map(float, _plain(theta, dim))), interleaved=interleaved)


def latent_magnitude(config: Config) -> float:
    """Returns the factor of YaRN on the scores of latent attention, in addition to that on cosines and sines."""
    table = _table(config)
    if _scaling(table) == "default":
        return 1.0
    return _magnitude(_factor(table, 1.0), table.number("mscale_all_dim", 0.0, least=0)) ** 2


def attention_temperature(config: Config) -> AttentionTemperature | None:
    """Returns the temperature of Ministral 3, which rises each time a position passes the context before scaling."""
    table = _table(config)
    table.count("max_position_embeddings", 1, most=MAX_CONTEXT)  # read but not used: a copy
    scale = table.number("llama_4_scaling_beta", 0.0, least=0)
    return AttentionTemperature(float(_original(config, table)), scale, offset=0) if scale else None


def max_context(config: Config) -> int:
    """Returns the maximum context length; with YaRN, the original context times its factor if that is greater."""
    table = _table(config)
    given = _max_position(config)
    if _scaling(table) != "yarn" or "factor" not in table:
        return given
    return max(given, int(min(table.number("factor") * _original(config, table), MAX_CONTEXT)))


def _table(config: Config, kind: str = "") -> Config:
    """Returns the rope settings from ``rope_parameters``, or in older files from ``rope_scaling``."""
    table = config.section("rope_parameters" if "rope_parameters" in config else "rope_scaling")
    kind = kind or _FULL
    return table.section(kind) if kind in table else table


def _rotary_dim(config: Config, table: Config, head_dim: int, partial: bool) -> int:
    """Returns the number of rotated dimensions of a head: all, unless the configuration has a number or a fraction.

    Families without ``partial`` refuse a fraction, because releases of transformers treat it differently.
    """
    if _scaling(table) == "proportional":
        return head_dim
    fraction = table.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0, most=1), most=1)
    dim = config.count("rotary_dim", max(int(head_dim * fraction), 1), most=head_dim)
    if dim % 2 or dim < 4 or (dim != head_dim and not partial):
        decides = table if "partial_rotary_factor" in table and "rotary_dim" not in config else config
        key = decides.first("rotary_dim", "partial_rotary_factor", "head_dim")
        raise decides.refusal(key, f"rotates {dim} dimensions of {head_dim}")
    return dim


def _scaling(table: Config) -> str:
    names = ("default", *(name for name in SCALINGS if name != "default"))
    old_key = table.choice("type", names)
    return table.choice("rope_type", names) if "rope_type" in table else old_key


def _max_position(config: Config) -> int:
    return config.count("max_position_embeddings", most=MAX_CONTEXT)


def _original(config: Config, table: Config) -> int:
    """Returns the context length before scaling; a key outside of the rope settings has priority."""
    key = "original_max_position_embeddings"
    inside = table.count(key, _max_position(config), most=MAX_CONTEXT)
    return config.count(key, inside, most=MAX_CONTEXT)


def _plain(theta: float, dim: int) -> Frequencies:
    """Returns unscaled frequencies; powers are computed in float64 and rounded once, so that they equal torch's."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.float32(1) / (np.float64(theta) ** exponents).astype(np.float32)


def _default(config: Config, table: Config, theta: float, dim: int) -> tuple[Frequencies, float]:
    """Returns unscaled frequencies; the settings may have a factor of 1 and an original context length."""
    table.number("factor", 1.0, least=1, most=1)
    _original(config, table)
    return _plain(theta, dim), 1.0


def _linear(config: Config, table: Config, theta: float, dim: int) -> tuple[Frequencies, float]:
    return _plain(theta, dim) / np.float32(_factor(table)), 1.0


def _dynamic(config: Config, table: Config, theta: float, dim: int) -> tuple[Frequencies, float]:
    """Returns NTK scaling with a fixed ``alpha`` (Hunyuan), which multiplies theta; other settings are ignored.

    Without ``alpha``, scaling would begin only beyond the context length, which requests cannot exceed.
    """
    _factor(table)
    for key in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
        table.number(key, 0.0, least=0)
    alpha = table.number("alpha", 1.0, least=1, most=1e6)
    return _plain(theta * alpha ** (dim / (dim - 2)), dim), 1.0


def _llama3(config: Config, table: Config, theta: float, dim: int) -> tuple[Frequencies, float]:
    """Divides low frequencies by ``factor``, keeps high ones, and interpolates between them (Llama 3.1)."""
    factor, low, high = _factor(table), table.number("low_freq_factor"), table.number("high_freq_factor")
    if low > high:
        raise table.refusal("high_freq_factor", f"({high:g}) is below low_freq_factor ({low:g})")
    inv_freq = _plain(theta, dim)
    rotations = np.float32(_original(config, table)) * inv_freq / np.float32(2 * math.pi)
    unscaled = np.clip((rotations - np.float32(low)) / np.float32(high - low or 1e-6), 0, 1)
    return (1 - unscaled) * inv_freq / np.float32(factor) + unscaled * inv_freq, 1.0


def _yarn(config: Config, table: Config, theta: float, dim: int) -> tuple[Frequencies, float]:
    """Divides low frequencies by the factor, keeps high ones, ramps between (YaRN, Peng et al. 2023, section 3.2)."""
    original = _original(config, table)
    factor = _factor(table, _max_position(config) / original)
    fast, slow = table.number("beta_fast", 32.0), table.number("beta_slow", 1.0)
    low, high = (
        dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta)) for rotations in (fast, slow)
    )
    if table.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.arange(dim // 2, dtype=np.float32) - np.float32(low)
    unscaled = 1 - np.clip(ramp / np.float32(high - low or 0.001), 0, 1)
    inv_freq = _plain(theta, dim)
    return inv_freq / np.float32(factor) * (1 - unscaled) + inv_freq * unscaled, _yarn_magnitude(table, factor)


def _yarn_magnitude(table: Config, factor: float) -> float:
    """Returns the factor on cosines and sines: ``attention_factor``, or computed from the scaling factor."""
    above, below = table.number("mscale", 0.0, least=0), table.number("mscale_all_dim", 0.0, least=0)
    ratio = _magnitude(factor, above) / _magnitude(factor, below) if above and below else _magnitude(factor, 1.0)
    return table.number("attention_factor", ratio)


def _longrope(config: Config, table: Config, theta: float, dim: int) -> tuple[Frequencies, float]:
    """Divides each frequency by a factor of its own (LongRoPE, Ding et al. 2024; Phi-3).

    There are factors for contexts up to the original length and others for longer ones. The maximum context decides for
    every request, so that cached keys stay valid; transformers decides by the length of each sequence, and llama.cpp by
    its setting of the context.
    """
    original, longest = _original(config, table), _max_position(config)
    key = "long_factor" if longest > original else "short_factor"
    lists = {name: table.numbers(name, dim // 2, least=1e-3, most=1e6) for name in ("short_factor", "long_factor")}
    factors, inv_freq = lists[key], _plain(theta, dim)
    if factors is None:
        raise table.refusal(key, f"is missing, with a context of {longest} tokens")
    growth = _factor(table, longest / original)
    magnitude = math.sqrt(1 + math.log(growth) / math.log(max(original, 2))) if growth > 1 else 1.0
    inv_freq /= np.array(factors, np.float32)
    return inv_freq, table.number("attention_factor", magnitude)


def _magnitude(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _factor(table: Config, default: float | None = None) -> float:
    return table.number("factor", default, least=1e-3, most=1e6)


def _proportional(config: Config, table: Config, theta: float, dim: int) -> tuple[Frequencies, float]:
    """Returns the frequencies of the whole head, of which only the first part is not 0 (Gemma 4)."""
    inv_freq = _plain(theta, dim) / np.float32(_factor(table, 1.0))
    inv_freq[int(table.number("partial_rotary_factor", 1.0, least=0, most=1) * dim // 2) :] = 0
    return inv_freq, 1.0


Scaling = Callable[[Config, Config, float, int], tuple[Frequencies, float]]

SCALINGS: dict[str, Scaling] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "proportional": _proportional,
    "longrope": _longrope,
    "su": _longrope,  # its name in the first files
}
"""rope_type -> (configuration, rope settings, theta, dim) -> (inverse frequencies, factor)."""
