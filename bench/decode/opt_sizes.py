"""The OPT models that are measured (Zhang et al. 2022, table 1)."""

SIZES = {  # layers, hidden size, heads
    "125m": (12, 768, 12),
    "1.3b": (24, 2048, 32),
    "6.7b": (32, 4096, 32),
    "13b": (40, 5120, 40),
    "30b": (48, 7168, 56),
    "66b": (64, 9216, 72),
    "175b": (96, 12288, 96),
}
VOCABULARY = 50272
POSITIONS = 2050
