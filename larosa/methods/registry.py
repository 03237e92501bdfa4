"""From a method's name to the method."""

from __future__ import annotations

from larosa.methods.base import Method
from larosa.methods.cats import Cats
from larosa.methods.dense import Dense
from larosa.methods.larosa import Larosa
from larosa.methods.magnitude import Magnitude
from larosa.methods.r_sparse import RSparse
from larosa.methods.teal import Teal
from larosa.methods.wina import Wina

METHODS: dict[str, Method] = {
    "dense": Dense(),
    "magnitude": Magnitude(),
    "wina": Wina(),
    "teal": Teal(),
    "cats": Cats(),
    "r_sparse": RSparse(),
    "larosa": Larosa(),
}
