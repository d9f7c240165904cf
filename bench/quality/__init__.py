"""The papers' tables in miniature: small models really trained, merged by every method, and tested.

Domains (`images`, `text`, `adapters`, `two_stream`) give tasks and a model, `training` trained models; `methods` has
the tables' rows as data, which `evaluate` merges and tests; `run` does domains and seeds, two at a time; `report` makes
tables and plots of the results, `claims` what the papers say of them.
"""
