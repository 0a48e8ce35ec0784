"""Which backend runs a model: the native one, or the reference where native has no kernel."""

from __future__ import annotations

from octavo.backends.base import REFERENCE_ONLY, Executor, RuntimeConfig
from octavo.backends.served import settled
from octavo.core.errors import UnsupportedError
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec


def load_executor(spec: DecoderSpec, source: WeightSource, config: RuntimeConfig) -> Executor:
    """The native executor. Activations and KV formats that no native kernel has run on the
    reference decoder, slowly, and the receipt says so; `strict` refuses them.

    Raises as the backends' own `load` does, and UnsupportedError where the reference is called for
    and torch isn't there.
    """
    from octavo.backends.native.backend import load

    missing = only_reference(settled(config, source)[0])
    if not missing:
        return load(spec, source, config)
    if config.strict:
        raise UnsupportedError(
            f"strict: no native kernel has {', '.join(missing)}, and the reference decoder is slow;"
            " leave strict out, or ask for others (--activations, --kv)"
        )
    try:
        from octavo.backends.reference.executor import load_reference
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"{', '.join(missing)} run on the reference decoder, which needs torch: "
            "`pip install 'octavo[torch]'`"
        ) from error
    return load_reference(source, spec, config)


def only_reference(config: RuntimeConfig) -> tuple[str, ...]:
    """What a settled config asks for that no native kernel has."""
    asked = (config.activations, *(name for _, name in config.keep_activations), config.kv_format)
    return tuple(dict.fromkeys(name for name in asked if name in REFERENCE_ONLY))
