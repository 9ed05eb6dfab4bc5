"""Tables, charts and the HTML page."""

from .html import page
from .plan_chart import PLAN_MAKER, chart
from .plan_tables import tables
from .run_figures import REPORT_MAKER, Drawing
from .run_history import Story, read

__all__ = ["PLAN_MAKER", "REPORT_MAKER", "Drawing", "Story", "chart", "page", "read", "tables"]
