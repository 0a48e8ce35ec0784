"""The native backend: packed weights, our own kernels, one call per step.

`from octavo.backends.native.backend import load, NativeBackend`; this package itself imports
nothing, so that naming it costs nothing.
"""
