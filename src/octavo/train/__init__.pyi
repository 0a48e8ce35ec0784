from octavo.train.modules import FakeQuantize, QuantizedLinear, fake_quantize

__all__ = ["FakeQuantize", "QuantizedLinear", "fake_quantize"]
