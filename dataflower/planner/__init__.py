"""The cheapest way to keep an SLO: profiles and an application in, a `Plan` out. Decides; measures and runs nothing."""

from dataflower.planner.application import Application, Fanned, Module, from_workflow
from dataflower.planner.document import PlanDocument, check_against, document_of, parse_plan
from dataflower.planner.measured import ProfileDocument, parse_measured, profiles_of
from dataflower.planner.options import Arrivals, Billing, Dispatch, Kinds, Options, Scheduler, Splitter
from dataflower.planner.plan import Infeasible, Plan, StagePlan, plan
from dataflower.planner.profile import Configuration, Device, Estimate, Point, Profile, Profiles
from dataflower.planner.question import Question
from dataflower.planner.reading import DocumentInvalid
from dataflower.planner.table import Dips, ProfileInvalid, parse_prices, parse_profiles
from dataflower.planner.together import Tenant, Together, plan_together
from dataflower.planner.traced import Trace

__all__ = [
    "Application",
    "Arrivals",
    "Billing",
    "Configuration",
    "Device",
    "Dips",
    "Dispatch",
    "DocumentInvalid",
    "Estimate",
    "Fanned",
    "Infeasible",
    "Kinds",
    "Module",
    "Options",
    "Plan",
    "PlanDocument",
    "Point",
    "Profile",
    "ProfileDocument",
    "ProfileInvalid",
    "Profiles",
    "Question",
    "Scheduler",
    "Splitter",
    "StagePlan",
    "Tenant",
    "Together",
    "Trace",
    "check_against",
    "document_of",
    "from_workflow",
    "parse_measured",
    "parse_plan",
    "parse_prices",
    "parse_profiles",
    "plan",
    "plan_together",
    "profiles_of",
]
