"""Two made-up worlds for tests of reports: one with holes, one in which every string is hostile."""

from __future__ import annotations

import made_up
from made_up import provenance, record, run, world

from mae_bench.aggregate import TableResult, aggregate
from mae_bench.plan import CellPlan
from mae_bench.records import Metric, Outcome, Picture, Record, Table

HOSTILE = (
    "<script>alert(1)</script> & a_b $x$ {y} 50% #1 ~^\\ | *b* `c` [red](http://e.vil)\x1b[31m"
    ' --q"q"'
)
LONG = "=" + 3000 * "W"
BASE = {
    "random": 10.0,
    "supervised": 20.0,
    "mae-pixel": 15.0,
    "mae-norm-pixel": 30.0,
    "mae-dvae-token": 25.0,
}
World = tuple[list[TableResult], dict[str, Record]]


def score(init: str, metric: str, seed: int) -> float:
    return BASE[init] + {"box_ap": 0, "mask_ap": 1, "miou": 3}.get(metric, 2) + seed / 10


def measured() -> World:
    """Tables 4 to 7, three seeds: one cell has lost a seed, one seed failed."""
    tables = made_up.tables()
    cells, records = world(tables, (0, 1, 2), score, imported=("moco-v3", "beit"))
    ids = {(*key[:3], key.seed): plan.run_id for key, plan in cells.items()}
    for column in (0, 1):
        del records[ids["table5", "supervised", column, 2]]
    bad = ids["table4", "random", 0, 1]
    failed = {"status": "failed", "outcome": None, "error": "loss is nan\nat step 12"}
    records[bad] = records[bad].model_copy(update=failed)
    return aggregate(tables, "mini", cells, records, {}), records


def hostile() -> World:
    """One table in which every string a user or a failure can set is hostile."""
    table = made_up.tables()[0]
    rows = (
        table.rows[0].model_copy(update={"init": HOSTILE, "title": HOSTILE}),
        table.rows[1].model_copy(update={"init": LONG, "title": "=cmd()"}),
        table.rows[4].model_copy(update={"title": "[0pt]"}),
    )
    column = table.columns[0].model_copy(update={"title": HOSTILE, "group": HOSTILE})
    update = {"rows": rows, "columns": (column,), "title": HOSTILE, "note": HOSTILE}
    table = Table.model_validate(table.model_copy(update=update).model_dump())
    cells, records = world([table], (0, 1), lambda init, metric, seed: 5.0 + seed)
    first, *others = list(records)
    records[first] = records[first].model_copy(
        update={"status": "failed", "error": HOSTILE, "outcome": None}
    )
    records[others[0]] = record(
        run(init=HOSTILE, recipe_values={HOSTILE: HOSTILE}, dataset=HOSTILE),
        {"box_ap": Metric(value=5.0, unit=HOSTILE)},
        id=others[0],
        provenance=provenance(hardware={HOSTILE: HOSTILE}, command=HOSTILE, commit="=1+1"),
        outcome=Outcome(
            metrics={"box_ap": Metric(value=5.0, unit=HOSTILE)},
            facts={HOSTILE: [HOSTILE]},
            pictures=(Picture(path="p.png", caption=HOSTILE),),
        ),
    )
    last = list(cells)[-1]
    cells[last] = CellPlan(None, HOSTILE)
    return aggregate([table], "mini", cells, records, {}), records
