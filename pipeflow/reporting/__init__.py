"""Tables, charts and the HTML page."""

from .html import page
from .plan_report import report_plan
from .run_figures import REPORT_MAKER, Drawing
from .run_history import Story, read

__all__ = ["REPORT_MAKER", "Drawing", "Story", "page", "read", "report_plan"]
