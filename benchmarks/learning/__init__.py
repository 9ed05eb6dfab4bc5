"""Test bits/dim of the ways to train."""
