"""The methods that can be trained, by the names that configurations give them; the first one where nothing is named.

The node that prepares data lists the same methods by their titles.
"""
from .concat_id.training import ConcatIDMethod
from .stand_in.training import StandInMethod
from .train.method import Method

TRAINED: dict[str, type[Method]] = {"stand_in": StandInMethod, "concat_id": ConcatIDMethod}
