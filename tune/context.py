"""What search and verification of one run work on."""

from dataclasses import dataclass

from search_spaces.spec import Spec
from tune.cluster.share import Share
from tune.cluster.shipping import Shipment
from tune.prepare import Preparation
from tune.record import Record
from tune.study import Study


@dataclass(frozen=True)
class Context:
    """What a search's stages work on.

    Attributes:
        spec: the resolved search.
        record: its run folder.
        study: its journal.
        prepared: what stage 1 made.
        sent: the files that travelled to other nodes.
        share: of a node, for one training.
    """

    spec: Spec
    record: Record
    study: Study
    prepared: Preparation
    sent: Shipment
    share: Share
