"""Quantized linear layers: int8 and int4 made on loading, and layers of bitsandbytes and torchao as they come."""
