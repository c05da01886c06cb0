"""The dashboards are what Grafana reads, and whole: nothing overlaps, nothing is unnamed or without a unit."""

from __future__ import annotations

import itertools
import json
import re

import prometheus
import pytest
import yaml

MONITORING = prometheus.DEPLOY / "components" / "monitoring"
FILES = sorted((MONITORING / "dashboards").glob("*.json"))
APPLY_LIMIT = 262144
"""What `kubectl apply` can keep of an object in its annotation."""

RECORDED = {
    rule["record"]: rule["expr"]
    for group in yaml.safe_load((MONITORING / "recording.yaml").read_text())["spec"]["groups"]
    for rule in group["rules"]
}
AGGREGATED = re.compile(r"\b(?:sum|min|max|avg|count|group)(?: by \(([^)]*)\) )?\(")
"""An aggregation, and the labels that it keeps: none where it names none."""

of_each_dashboard = pytest.mark.parametrize(
    "board", [json.loads(path.read_text()) for path in FILES], ids=lambda b: b["uid"]
)
of_each_panel = pytest.mark.parametrize(
    "panel",
    [panel for path in FILES for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row"],
    ids=lambda panel: panel["title"],
)


def test_kustomization_has_them_all():
    """Each file is in the ConfigMap, and the ConfigMap is small enough to be applied."""
    component = yaml.safe_load((MONITORING / "kustomization.yaml").read_text())
    (generator,) = component["configMapGenerator"]
    assert generator["files"] == [str(path.relative_to(MONITORING)) for path in FILES]
    assert sum(len(path.read_bytes()) for path in FILES) < APPLY_LIMIT / 2


@of_each_dashboard
def test_ids(board):
    """A dashboard's uid is its file's name and fits Grafana's 40 characters; panels have numbers of their own."""
    assert (MONITORING / "dashboards" / f"{board['uid']}.json") in FILES
    assert len(board["uid"]) <= 40
    assert "id" not in board, "Grafana gives that number itself"
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)


@of_each_dashboard
def test_nothing_overlaps(board):
    """Panels lie side by side in the 24 columns, and each below the row that names it."""
    for panel in board["panels"]:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for one, other in itertools.combinations((panel["gridPos"] for panel in board["panels"]), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above
    assert board["panels"][0]["type"] == "row"


@of_each_dashboard
def test_variables_are_used_and_known(board):
    """Each variable narrows some panel, and no query names one that isn't there."""
    known = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board["panels"]))) - {"__rate_interval"}
    assert used == known


@of_each_panel
def test_panel_is_whole(panel):
    """A title, a description, a unit, the chosen Prometheus, and queries with letters of their own."""
    assert panel["title"]
    assert panel["description"].endswith((".", "?"))
    assert panel["fieldConfig"]["defaults"]["unit"]
    letters = [target["refId"] for target in panel["targets"]]
    assert letters == sorted(set(letters))
    for part in (panel, *panel["targets"]):
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@of_each_panel
def test_legends_name_labels_of_the_query(panel):
    """What a legend shows, the query keeps: one that sums it away would show nothing."""
    for target in panel["targets"]:
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        for kept in AGGREGATED.findall(spelt_out(target["expr"])):
            assert shown <= set(kept.split(", ")), target["expr"]


def test_the_autoscaler_is_shown_whosever_it_is():
    """The Deployment's own, and the one that KEDA makes and names after its ScaledObject."""
    base = (prometheus.DEPLOY / "triton" / "hpa.yaml").read_text()
    scaled = yaml.safe_load((prometheus.DEPLOY / "components" / "keda" / "scaledobject.yaml").read_text())
    names = [yaml.safe_load(base)["metadata"]["name"], f"keda-hpa-{scaled['metadata']['name']}"]
    board = "".join(path.read_text() for path in FILES)
    patterns = re.findall(r'horizontalpodautoscaler(=~?)\\"(.*?)\\"', board)
    assert len(patterns) == 3
    for name in names:
        assert all(kind == "=~" and re.fullmatch(pattern, name) for kind, pattern in patterns), name


def spelt_out(query: str) -> str:
    """With the rules' own queries in the place of the names that they record."""
    return re.sub(r"\w+:\w+:\w+", lambda name: f"({spelt_out(RECORDED[name[0]])})", query)
