"""What the first figures, files and sorted lists need, made before anybody waits for it."""

from __future__ import annotations

import gc

from ksearch.errors import KsearchError
from ksearch.pages import figures
from ksearch.web.downloads import source
from ksearch.web.query import COLUMNS, Query
from ksearch.web.site import Site
from ksearch.web.workloads import view_of, winner_of


def warm_up(site: Site) -> None:
    """Import torch, plotly and Optuna's plots, and sort the entries by every column: some 5 s."""
    try:
        found = site.opened()
        for column in COLUMNS:
            found.catalogue.find(Query(sort=column))
        if (entry := found.catalogue.latest()) is None:
            return
        figures.draw(view_of(found, entry))
        if winner := winner_of(found, entry):
            source(found, winner, ".py")
    except KsearchError:  # the file has gone, PyTorch won, plotly is not there: whoever asks is told
        return
    finally:
        # What is there now stays: to look through 100,000 entries for garbage, again and again while figures
        # were made, took the slowest from 0.4 to 1.2 s on busy cores.
        gc.collect()
        gc.freeze()
