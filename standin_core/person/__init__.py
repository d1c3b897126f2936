"""A person whom users keep: photos, and what the methods make of them before they know of a model.

The identity's keys and values are not in it, because they belong to one adapter. ``make`` does the work on the photos
once, ``file`` writes and reads it.
"""
from .file import PEOPLE, load_person, save_person
from .make import PersonSettings, make_person
from .record import Person, Use

__all__ = ["PEOPLE", "Person", "PersonSettings", "Use", "load_person", "make_person", "save_person"]
