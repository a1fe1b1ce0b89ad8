"""Open-loop load: arrivals, recording, and the report that says whether the SLO held."""
