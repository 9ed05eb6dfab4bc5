"""Tests, in folders that mirror the packages; what several need is in support/."""
