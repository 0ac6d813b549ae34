"""The static report: one file that holds its style, its script, plotly.js and every figure as JSON.

It opens without a network, and asks none: its content security policy lets nothing be loaded, and no script
run but the two that are in it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from markupsafe import Markup

from ksearch.errors import ToolMissing
from ksearch.pages import figures, roof, template
from ksearch.pages.contents import Contents
from ksearch.pages.views import WorkloadView

_HERE = "\x00"
"""Where the workloads come between head and foot; nothing that is escaped holds it."""


def html(contents: Contents) -> Iterator[str]:
    """The page in pieces, a workload read and drawn at a time. Raises ToolMissing without plotly."""
    try:
        from plotly.offline import get_plotlyjs  # 0.2 s, which only this needs
    except ImportError as error:
        raise ToolMissing("a report in HTML needs plotly: pip install 'ksearch[report]'") from error
    scripts = [get_plotlyjs(), template.script()]
    page = template.fragment(
        "report.html.j2",
        view=contents.overview,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        policy=_policy(scripts),
        style=Markup(template.style()),  # noqa: S704  (ours)
        scripts=[Markup(script) for script in scripts],  # noqa: S704  (ours and plotly's)
        workloads=_HERE,
    )
    head, foot = page.split(_HERE)
    places = contents.places()
    yield head
    for view in contents.views():
        yield _workload(view, places)
    yield foot


def _workload(view: WorkloadView, places: tuple[roof.Place, ...]) -> str:
    drawn = {name: figure.to_json() for name, figure in figures.draw(view, places).items()}
    source = "" if view.source is None else template.highlighted(view.source, view.row.backend)
    return template.fragment(
        "report_workload.html.j2",
        view=view,
        plans=figures.PLANS,
        source=None,
        back="#",
        tools="",
        held={"figures": drawn, "source": source},
    )


def _policy(scripts: Iterable[str]) -> str:
    """plotly.js writes styles of its own; pictures are what it makes of a figure to be saved."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {allowed}"
