"""Columns that several sections' tables have."""

from fusionrun.evaluation.controls_table import COST_COLUMNS
from fusionrun.tables.table import Column

ROW = Column("row", "text", lambda row: row.name)
OF_ROW = Column("row", "text", lambda item: item[0].name)  # of (row, ...)
METHOD = (  # of (row, method, ...)
    OF_ROW,
    Column("method", "text", lambda item: item[1].label),
    Column("stage", "text", lambda item: item[1].stage),
)
DIFFERENCE = (  # of (row, method, difference)
    Column("difference", "points", lambda item: item[2].points),
    Column("low", "points", lambda item: item[2].low),
    Column("high", "points", lambda item: item[2].high),
)
DIFFERENCE_TO_CONTROL = (  # likewise, with what both cost
    *DIFFERENCE,
    Column("p", "p", lambda item: item[2].p_value),
    Column("p (Holm)", "p", lambda item: item[2].p_holm),
    *COST_COLUMNS,
)
