"""Tables, charts and the HTML page."""

from .html import page
from .plan_chart import PLAN_MAKER, chart
from .plan_tables import tables
from .report_files import write_report
from .run_history import RunHistory, read_run

__all__ = ["PLAN_MAKER", "RunHistory", "chart", "page", "read_run", "tables", "write_report"]
