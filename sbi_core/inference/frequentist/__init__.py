"""Limits with frequentist guarantees: maximum likelihood, profiles, toys."""
