"""The cheapest way to keep an SLO: profiles and an application in, a `Plan` out. Decides; measures and runs nothing."""

from dataflower.planner.application import Application, Module, from_workflow
from dataflower.planner.options import Billing, Dispatch, Kinds, Options, Scheduler, Splitter
from dataflower.planner.plan import Infeasible, Plan, StagePlan, plan
from dataflower.planner.profile import Configuration, Device, Estimate, Point, Profile, Profiles
from dataflower.planner.table import Dips, ProfileInvalid, parse_prices, parse_profiles

__all__ = [
    "Application",
    "Billing",
    "Configuration",
    "Device",
    "Dips",
    "Dispatch",
    "Estimate",
    "Infeasible",
    "Kinds",
    "Module",
    "Options",
    "Plan",
    "Point",
    "Profile",
    "ProfileInvalid",
    "Profiles",
    "Scheduler",
    "Splitter",
    "StagePlan",
    "from_workflow",
    "parse_prices",
    "parse_profiles",
    "plan",
]
