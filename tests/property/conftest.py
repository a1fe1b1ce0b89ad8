"""How hard the property tests try: fast by default, `DATAFLOWER_HYPOTHESIS=thorough` for a long look."""

import os

from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("fast", max_examples=60, **_COMMON)
settings.register_profile("thorough", max_examples=3000, **_COMMON)
settings.load_profile(os.environ.get("DATAFLOWER_HYPOTHESIS", "fast"))
