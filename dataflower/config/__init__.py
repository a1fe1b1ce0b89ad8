"""Configuration: what can be set (`settings`) and how it is composed (`compose`)."""
